"""The training variant of the preparation: random crop and resize of a view, cameras kept exact.

Sizes here are (height, width); an intrinsics matrix has the centre of the first pixel at 0.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from align3r_jax.errors import UserError

FOCAL_SCALES = (0.8, 0.9, 1.0)  # Align3R `aug_f`
_COVER = 1e-8  # added to the scale so that the floor below never falls short of the target


@dataclasses.dataclass(frozen=True)
class CropDraw:
    """What chance decides about one view.

    portrait: a nearly square view takes the portrait target. centre_scale: keep this fraction of
    the view (zooms in); None: no such step. extra: pixels added to both sides of the target
    before the final crop; None: none. shift: (rows, columns) by which the final crop lies off the
    centre, each at most half of `extra`.
    """

    portrait: bool = False
    centre_scale: float | None = None
    extra: int | None = None
    shift: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class View:
    """A picture with the maps that must stay on its pixels.

    image: (H, W, 3) uint8. maps: name -> (H, W, ...) arrays. intrinsics: (3, 3) float64.
    """

    image: np.ndarray
    maps: dict[str, np.ndarray]
    intrinsics: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.image.shape[:2]


def crop_view(view: View, target: tuple[int, int], draw: CropDraw = CropDraw()) -> View:
    """Returns the view at `target` (height, width), or its transpose if the view is portrait.

    1. the largest window centred on the rounded principal point; 2. portrait or landscape target;
    3. `draw.centre_scale`; 4. resize to cover the target plus `draw.extra`: image by Pillow
    (Lanczos down, bicubic up), maps by nearest neighbour; 5. crop to the target around the centre
    moved by `draw.shift`. The intrinsics follow every step.
    Raises ValueError if a map has another size than the image, UserError if the principal point
    lies outside of it.
    """
    for name, array in view.maps.items():
        if array.shape[:2] != view.shape:
            raise ValueError(f"Map '{name}' is {array.shape[:2]}, its image {view.shape}.")
    top, left, *window = principal_window(view.shape, view.intrinsics)
    view = cut(view, top, left, (window[0], window[1]))
    height, width = view.shape
    if target[0] != target[1] and (
        height > 1.1 * width or (0.9 < height / width < 1.1 and draw.portrait)
    ):
        target = target[::-1]
    if draw.centre_scale is not None:
        view = _keep_centre(view, draw.centre_scale)
    extra = draw.extra or 0
    view = resize_to_cover(view, (target[0] + extra, target[1] + extra))
    top, left = (
        round(0.5 * (side - goal)) + moved
        for side, goal, moved in zip(view.shape, target, draw.shift)
    )
    return cut(view, top, left, target)


def principal_window(
    shape: tuple[int, int], intrinsics: np.ndarray, min_margin: float = 0.0
) -> tuple[int, int, int, int]:
    """Returns (top, left, height, width) of the largest window centred on the principal point.

    The point is rounded half to even. Raises UserError if its distance to an edge is not above
    min_margin * (height or width) (MonST3R: 0.2), or if it lies outside of the image.
    """
    centre_x, centre_y = (round(float(value)) for value in intrinsics[:2, 2])
    height, width = shape
    half_x, half_y = min(centre_x, width - centre_x), min(centre_y, height - centre_y)
    if half_x <= min_margin * width or half_y <= min_margin * height:
        place = f"within {min_margin:g} of the size from an edge" if min_margin else "outside"
        raise UserError(
            f"The principal point ({centre_x}, {centre_y}) lies {place} of the image "
            f"({width} x {height})."
        )
    return centre_y - half_y, centre_x - half_x, 2 * half_y, 2 * half_x


def resize_to_cover(view: View, shape: tuple[int, int]) -> View:
    """Returns the view resized by one factor s so that it covers `shape`: floor(size * s).

    Intrinsics: c <- (c + 0.5) s - 0.5 - (size s - out) / 2, f <- f s.
    """
    scale = max(goal / side for goal, side in zip(shape, view.shape)) + _COVER
    height, width = (int(np.floor(side * scale)) for side in view.shape)
    kernel = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    image = np.asarray(Image.fromarray(view.image).resize((width, height), kernel))
    rows = _nearest(height, view.shape[0])
    columns = _nearest(width, view.shape[1])
    maps = {name: array[rows][:, columns] for name, array in view.maps.items()}
    intrinsics = view.intrinsics.astype(np.float64).copy()
    intrinsics[:2, 2] += 0.5
    intrinsics[:2] *= scale
    remainder = np.array([view.shape[1] * scale - width, view.shape[0] * scale - height])
    intrinsics[:2, 2] -= 0.5 * remainder + 0.5
    return View(image, maps, intrinsics)


def cut(view: View, top: int, left: int, shape: tuple[int, int]) -> View:
    """Returns the window `shape` (height, width) from (top, left); the intrinsics move with it."""
    window = (slice(top, top + shape[0]), slice(left, left + shape[1]))
    intrinsics = view.intrinsics.astype(np.float64).copy()
    intrinsics[:2, 2] -= (left, top)
    maps = {name: array[window] for name, array in view.maps.items()}
    return View(view.image[window], maps, intrinsics)


def _keep_centre(view: View, fraction: float) -> View:
    height, width = (int(np.floor(side * fraction)) for side in view.shape)
    top, left = int((view.shape[0] - height) / 2), int((view.shape[1] - width) / 2)
    return cut(view, top, left, (height, width))


def _nearest(out: int, size: int) -> np.ndarray:
    # parity: OpenCV evaluates the source index in this order, which decides ties
    step = 1.0 / (out / size)
    return np.minimum(np.floor(np.arange(out) * step).astype(np.int64), size - 1)
