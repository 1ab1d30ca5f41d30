"""From an original picture to the working size: resize, crop, normalise; prior point maps alike.

Every size is (height, width). The rules are DUSt3R's and Align3R's, to the pixel: images are
resized by Pillow (antialiased), point maps by OpenCV (not antialiased).
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from align3r_jax.errors import UserError
from align3r_jax.structs import WorkingSize

MULTIPLE = 16  # both sides of the working size are multiples of the patch size
SQUARE_SIZE = 224  # the one size that names the short side, and crops to a square
_BLACK = 0.01  # sum of the three channels in [0, 1]; pixels up to here carry no content


def plan_working_size(
    original: tuple[int, int], size: int = 512, *, crop: bool = True, square_ok: bool = False
) -> WorkingSize:
    """Returns how pictures of `original` (height, width) get to the working size.

    size: the long side after the first resize (512 rule, any number); 224 instead makes the
    *short* side 224 and crops to a square. Then both sides are cut down to multiples of 16: by
    a centre crop, or with `crop=False` by a second resize that keeps the field of view (the
    224 rule always crops). Square pictures become 4:3 unless `square_ok`.
    Raises UserError if `size` is below 32 or nothing would be left of the short side.
    """
    if size < 2 * MULTIPLE:
        raise UserError(f"The working size is {size}; it must be at least {2 * MULTIPLE} pixels.")
    height0, width0 = original = (original[0], original[1])
    if size == SQUARE_SIZE:
        long_side = round(SQUARE_SIZE * max(width0 / height0, height0 / width0))
    else:
        long_side = size
    height, width = _resize_long_side(original, long_side)
    centre_x, centre_y = width // 2, height // 2
    if size == SQUARE_SIZE:
        half_x = half_y = min(centre_x, centre_y)
    else:
        half_x, half_y = (2 * centre_x) // 16 * 8, (2 * centre_y) // 16 * 8
        if width == height and not square_ok:
            half_y = (3 * half_x // 4) // 8 * 8
    if min(half_x, half_y) == 0:
        raise UserError(
            f"Frames of {width0} x {height0} pixels are too long and thin: resized to a long side "
            f"of {long_side} they are {width} x {height}, and both sides must be at least "
            f"{MULTIPLE}. Crop the frames or choose a larger size."
        )
    working = (2 * half_y, 2 * half_x)
    if crop or size == SQUARE_SIZE:
        corner = (centre_y - half_y, centre_x - half_x)
        return WorkingSize(original, (height, width), corner, working)
    return WorkingSize(original, working, (0, 0), working, between=(height, width))


def to_working_size(image: np.ndarray, size: WorkingSize) -> np.ndarray:
    """Returns an original (H0, W0, 3) uint8 image at working size, (H, W, 3) uint8.

    Pillow Lanczos when shrinking, bicubic when growing; the second resize (no crop) Lanczos.
    """
    height, width = size.between or size.resized
    shrinks = max(image.shape[:2]) > max(height, width)
    kernel = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    picture = Image.fromarray(image).resize((width, height), kernel)
    if size.between is not None:
        picture = picture.resize(size.working[::-1], Image.Resampling.LANCZOS)
    return _crop(np.asarray(picture), size.crop, size.working)


def network_input(images: np.ndarray) -> np.ndarray:
    """Returns (v / 255 - 0.5) / 0.5 of (..., H, W, 3) uint8 images: float32 in [-1, 1]."""
    scaled = images.astype(np.float32) / np.float32(255)
    return (scaled - np.float32(0.5)) / np.float32(0.5)


def valid_mask(images: np.ndarray) -> np.ndarray:
    """Returns (..., H, W) bool, False where a pixel of (..., H, W, 3) uint8 images is black."""
    return images.astype(np.float32).sum(axis=-1) / np.float32(255) > _BLACK


def normalised_pointmap(depth: np.ndarray, focal: float = 1.0) -> np.ndarray:
    """Returns the prior point map of one depth map, each axis in [0, 1].

    X = (u - Wd/2) Z/f, Y = (v - Hd/2) Z/f, Z; then (P - min) / (max - min) per axis, minimum and
    maximum over the whole map. depth: (Hd, Wd), any scale; non-finite values are missing, left
    out of the minima and zero in the result. Returns (Hd, Wd, 3) float32. An axis of one value
    has denominator 1. The focal cancels (it scales X and Y alike); the argument is there because
    the files carry one.
    """
    height, width = depth.shape
    low, high = pointmap_bounds(depth, focal)
    return pixels_of_pointmap(
        depth, np.arange(height), np.arange(width), (height, width), low, high, focal
    )


def pointmap_bounds(depth: np.ndarray, focal: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns minimum and maximum (3,) float32 of the points of `normalised_pointmap`.

    They are those of a column's or row's extreme depths: (u - Wd/2) Z/f is monotonous in Z, in
    floating point too. Infinite where no depth is known.
    """
    known = np.isfinite(depth)
    near, far = np.where(known, depth, np.inf), np.where(known, depth, -np.inf)
    axes = []
    for axis, size in ((0, depth.shape[1]), (1, depth.shape[0])):
        ends = np.stack([near.min(axis), far.max(axis)]).astype(np.float64)
        seen = np.isfinite(ends[0])
        ends = ends[:, seen]
        axes.append((np.arange(size) - size / 2)[seen] * ends / focal)
    axes.append(ends)
    low = [values.min(initial=np.inf) for values in axes]
    high = [values.max(initial=-np.inf) for values in axes]
    return np.array(low, np.float32), np.array(high, np.float32)


def pixels_of_pointmap(
    depth: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    shape: tuple[int, int],
    low: np.ndarray,
    high: np.ndarray,
    focal: float = 1.0,
) -> np.ndarray:
    """Returns `normalised_pointmap` at rows (H,) and columns (W,) of a map of `shape`.

    depth: (H, W), at those pixels. low, high: `pointmap_bounds` of the whole map.
    Returns (H, W, 3) float32.
    """
    known = np.isfinite(depth)
    if not known.any():
        return np.zeros((*depth.shape, 3), np.float32)
    z = np.where(known, depth, 0).astype(np.float64)
    points = np.empty((*depth.shape, 3), np.float32)
    points[..., 0] = (columns - shape[1] / 2)[None, :] * z / focal
    points[..., 1] = (rows - shape[0] / 2)[:, None] * z / focal
    points[..., 2] = z
    points -= low
    points /= np.where(high == low, np.float32(1), high - low)
    points[~known] = 0
    return points


def pointmap_to_working(pointmap: np.ndarray, size: WorkingSize) -> np.ndarray:
    """Returns a normalised (Hd, Wd, 3) float32 point map at working size, (H, W, 3) float32.

    OpenCV Lanczos-4 when shrinking, else cubic: values overshoot [0, 1] slightly and stay so.
    The long side is made that of the resized image, so the map must have the image's proportions;
    if its short side is shorter, the result is smaller than the working size.
    """
    long_side = max(size.between or size.resized)
    height, width = _resize_long_side(pointmap.shape[:2], long_side)
    shrinks = max(pointmap.shape[:2]) > long_side
    kernel = cv2.INTER_LANCZOS4 if shrinks else cv2.INTER_CUBIC
    resized = cv2.resize(np.ascontiguousarray(pointmap), (width, height), interpolation=kernel)
    if size.between is not None:
        return cv2.resize(resized, size.working[::-1], interpolation=cv2.INTER_CUBIC)
    half_y, half_x = size.working[0] // 2, size.working[1] // 2
    rows = slice(max(height // 2 - half_y, 0), height // 2 + half_y)
    columns = slice(max(width // 2 - half_x, 0), width // 2 + half_x)
    return np.ascontiguousarray(resized[rows, columns])


def depth_to_working(depth: np.ndarray, size: WorkingSize) -> np.ndarray:
    """Returns a (Hd, Wd) depth (or inverse depth) map at working size, (H, W) float32.

    Bilinear between known values; NaN where less than half of the support is known. The map
    covers the field of view of the original image, whatever its own size.
    """
    known = np.isfinite(depth)
    values = np.where(known, depth, 0).astype(np.float32)
    shape = size.resized[::-1]
    total = cv2.resize(values, shape, interpolation=cv2.INTER_LINEAR)
    weight = cv2.resize(known.astype(np.float32), shape, interpolation=cv2.INTER_LINEAR)
    resized = np.where(weight >= 0.5, total / np.maximum(weight, 1e-6), np.float32(np.nan))
    return _crop(resized, size.crop, size.working)


def _resize_long_side(shape: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Returns (height, width) with the long side scaled to `long_side`; halves go to even."""
    height, width = (round(side * long_side / max(shape)) for side in shape)
    return height, width


def _crop(array: np.ndarray, corner: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    top, left = corner
    return np.ascontiguousarray(array[top : top + shape[0], left : left + shape[1]])
