"""Pictures for people: colour maps of depth, confidence and flow, mask overlays, strips, mp4."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import av
import cv2
import numpy as np

MISSING_COLOUR = (96, 96, 96)  # depth that is not a positive number
MASK_COLOUR = (230, 60, 40)
MIN_PLAYBACK_FPS, MAX_PLAYBACK_FPS = 5.0, 60.0


def inverse_depth_range(
    depth: np.ndarray, percentiles: tuple[float, float] = (2.0, 98.0)
) -> tuple[float, float]:
    """Returns (far, near) inverse depth of a whole video, for one colour scale over all frames.

    depth: (..., H, W), scene units; values that are not positive numbers are ignored. Percentiles
    keep single outliers from taking all the contrast. (0, 1) if nothing is valid.
    """
    values = depth.reshape(-1)[:: max(1, depth.size // 1_000_000)].astype(np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return 0.0, 1.0
    far, near = np.percentile(1.0 / values, percentiles)
    if near <= far * (1 + 1e-6):  # a constant plane
        far, near = 0.5 * far, 1.5 * far
    return float(far), float(near)


def colour_depth(depth: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Returns (..., H, W, 3) uint8 RGB: inverse depth on the Inferno map, near bright, far dark.

    depth: (..., H, W). scale: (far, near) inverse depth of `inverse_depth_range`. Inverse depth,
    because its steps are what the eye (and parallax) sees; missing depth is grey.
    """
    valid = np.isfinite(depth) & (depth > 0)
    far, near = scale
    level = (1.0 / np.where(valid, depth, 1.0) - far) / (near - far)
    coloured = _apply_map(level, cv2.COLORMAP_INFERNO)
    coloured[~valid] = MISSING_COLOUR
    return coloured


def colour_confidence(confidence: np.ndarray, maximum: float | None = None) -> np.ndarray:
    """Returns (..., H, W, 3) uint8 RGB of ln(confidence) on Viridis; 1 (or less) is the darkest.

    confidence: (..., H, W). maximum: the brightest confidence (98th percentile if None).
    """
    logarithm = np.log(np.maximum(np.nan_to_num(confidence, nan=1.0, posinf=1e30), 1.0))
    top = np.percentile(logarithm, 98) if maximum is None else math.log(max(maximum, 1.0))
    return _apply_map(logarithm / max(float(top), 1e-6), cv2.COLORMAP_VIRIDIS)


def colour_flow(flow: np.ndarray, maximum: float) -> np.ndarray:
    """Returns (..., H, W, 3) uint8 RGB: hue = direction, saturation = length / maximum.

    flow: (..., H, W, 2) pixels (x, y); vectors that are not numbers are grey.
    """
    valid = np.isfinite(flow).all(-1)
    clean = np.where(valid[..., None], flow, 0.0)
    hue = (np.degrees(np.arctan2(clean[..., 1], clean[..., 0])) % 360.0) / 2.0  # OpenCV: 0..180
    saturation = np.clip(np.linalg.norm(clean, axis=-1) / max(maximum, 1e-6), 0, 1) * 255
    hsv = np.stack([hue, saturation, np.full_like(hue, 255.0)], -1).round()
    # 180 is 0 again; OpenCV does not wrap it.
    hsv[..., 0] %= 180
    rows = hsv.astype(np.uint8).reshape(-1, hsv.shape[-2], 3)
    coloured = cv2.cvtColor(rows, cv2.COLOR_HSV2RGB).reshape(hsv.shape)
    coloured[~valid] = MISSING_COLOUR
    return coloured


def overlay_mask(images: np.ndarray, mask: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """Returns uint8 images: masked pixels tinted red, the others greyed, so that both are clear.

    images: (..., H, W, 3) uint8. mask: (..., H, W) bool.
    """
    grey = images.astype(np.float32).mean(-1, keepdims=True).repeat(3, -1)
    background = 0.5 * grey + 0.5 * images
    tinted = (1 - opacity) * images + opacity * np.array(MASK_COLOUR, np.float32)
    return np.where(mask[..., None], tinted, background).round().astype(np.uint8)


def even_indices(length: int, count: int) -> np.ndarray:
    """Returns up to `count` indices spread evenly over `range(length)`, first and last included."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int))


def strip(images: np.ndarray, width: int, gap: int = 0) -> np.ndarray:
    """Returns one (h, n * width + (n - 1) * gap, 3) uint8 picture of images side by side.

    images: (n, H, W, 3) uint8; each is resized to `width`, its aspect ratio kept; gaps are black.
    """
    height = max(1, round(images.shape[1] * width / images.shape[2]))
    shrink = width < images.shape[2]
    method = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    parts = []
    for image in images:
        parts += [cv2.resize(image, (width, height), interpolation=method)]
        parts += [np.zeros((height, gap, 3), np.uint8)] if gap else []
    return np.concatenate(parts[:-1] if gap else parts, axis=1)


def playback_rate(times: np.ndarray) -> float:
    """Returns frames per second of the video's own speed, but 5 at least and 60 at most."""
    steps = np.diff(np.asarray(times, np.float64))
    steps = steps[np.isfinite(steps) & (steps > 0)]
    rate = 1.0 / float(np.median(steps)) if steps.size else MIN_PLAYBACK_FPS
    return min(max(rate, MIN_PLAYBACK_FPS), MAX_PLAYBACK_FPS)


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes H.264 (yuv420p: plays in every browser) from (H, W, 3) uint8 RGB frames of one size.

    Odd sizes get their last row or column repeated, because yuv420p halves both sides.
    Raises OSError if the file cannot be written.
    """
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = None
        for frame in frames:
            height, width = frame.shape[:2]
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if stream is None:
                # Milliseconds keep any rate exact enough; players dislike odd fractions.
                stream = container.add_stream("libx264", rate=max(1, round(fps)))
                stream.height, stream.width = even.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.options = {"crf": "20", "preset": "fast"}
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            container.mux(stream.encode(picture))
        if stream is not None:
            container.mux(stream.encode(None))


def encode_jpeg(image: np.ndarray, quality: int = 82) -> bytes:
    """Returns the JPEG file of an (H, W, 3) uint8 RGB image."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def encode_webp(image: np.ndarray, quality: int = 75) -> bytes:
    """Returns the WebP file of an (H, W, 3) uint8 RGB image: a third smaller than JPEG, slower."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()


def encode_png(image: np.ndarray) -> bytes:
    """Returns the PNG file of (H, W) uint8 or uint16, (H, W, 3) RGB or (H, W, 4) RGBA uint8."""
    if image.ndim == 3:
        order = cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        image = cv2.cvtColor(image, order)
    return cv2.imencode(".png", image)[1].tobytes()


def _apply_map(level: np.ndarray, colour_map: int) -> np.ndarray:
    """Returns (..., 3) uint8 RGB of levels in [0, 1] (clipped)."""
    index = (np.clip(np.nan_to_num(level), 0, 1) * 255).round().astype(np.uint8)
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], colour_map)[:, 0, ::-1]
    return table[index]
