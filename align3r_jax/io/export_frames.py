"""The frames of a result at the size that an export asks for: pictures, depth, masks, cameras."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.geometry import camera
from align3r_jax.io import images, joint_upsampling, preprocess, video
from align3r_jax.structs import Scene

Resolution = Literal["network", "original"]
# Mean difference of 8-bit colours that another encoding of the same video may make.
_SAME_PICTURE = 8.0


@dataclasses.dataclass(frozen=True)
class ExportFrame:
    """One frame. image: (H, W, 3) uint8. depth: (H, W) float32, NaN = missing. dynamic: (H, W)."""

    index: int
    image: np.ndarray
    depth: np.ndarray
    dynamic: np.ndarray


def image_size(scene: Scene, resolution: Resolution) -> tuple[int, int]:
    """Returns (height, width) of the exported frames."""
    return scene.size.working if resolution == "network" else scene.size.original


def intrinsics(scene: Scene, resolution: Resolution) -> np.ndarray:
    """Returns (T, 3, 3) float64, pixels of the exported frames, centres at integers."""
    matrices = scene.intrinsics
    if resolution == "original":
        matrices = camera.to_original(matrices, scene.size)
    return np.asarray(matrices, np.float64)


def file_names(scene: Scene) -> tuple[str, ...]:
    """Returns the frames' names with nothing in them that a file format could stumble over.

    Other characters than letters, digits, dot, dash and underscore become underscores; if two
    names are then equal, all get their number in front.
    """
    names = [re.sub(r"[^\w.\-]", "_", name, flags=re.ASCII) or "_" for name in scene.names]
    if len({name.casefold() for name in names}) < len(names):
        names = [f"{t:06d}_{name}" for t, name in enumerate(names)]
    return tuple(names)


def frames(
    scene: Scene, resolution: Resolution, source: str | Path | None = None
) -> Iterator[ExportFrame]:
    """Yields the frames one after the other.

    network: as they are in the result. original: the pictures of `source`, whole, also what the
    working size cropped away (no depth there, nothing dynamic); depth by
    `joint_upsampling.upsample_depth`; masks by the nearest pixel.

    source: the video, folder or glob that the result was made from. Raises UserError if it is
    missing or not that.
    """
    pictures = _originals(scene, source) if resolution == "original" else None
    for t, depth in enumerate(np.asarray(scene.depth)):
        known = np.isfinite(depth) & (depth > 0)
        colours, dynamic = np.asarray(scene.colours[t]), np.asarray(scene.dynamic_mask[t], bool)
        if pictures is None:
            yield ExportFrame(t, colours, np.where(known, depth, np.float32(np.nan)), dynamic)
            continue
        picture = next(pictures)
        yield ExportFrame(
            t,
            picture,
            joint_upsampling.upsample_depth(depth, colours, picture, scene.size),
            joint_upsampling.nearest(dynamic, scene.size),
        )


def _originals(scene: Scene, source: str | Path | None) -> Iterator[np.ndarray]:
    """Yields the original picture of every frame, found by its name."""
    if source is None:
        raise UserError(
            "The original resolution needs the video that the result was made from, and the result "
            "does not say which one that was; name it (--video), or take --resolution=network."
        )
    if not Path(source).expanduser().exists() and not images.is_glob(source):
        raise UserError(
            f"The original resolution needs the video that the result was made from, and "
            f"'{source}' is not there; it may have moved, or its name may count from another "
            "folder. Name it with --video, or take --resolution=network."
        )
    t = 0
    for frame in video.each_frame(source):
        if frame.name != scene.names[t]:
            continue
        picture = frame.load()
        _check_same(picture, scene, t, source)
        yield picture
        t += 1
        if t == len(scene.names):
            return
    raise UserError(
        f"'{source}' is not the video of this result: it has no frame '{scene.names[t]}' "
        f"(frame {t} of the result). Name the right one with --video."
    )


def _check_same(picture: np.ndarray, scene: Scene, t: int, source: str | Path) -> None:
    name, size = scene.names[t], scene.size
    if picture.shape[:2] != tuple(size.original):
        raise UserError(
            f"'{source}' is not the video of this result: frame '{name}' is {picture.shape[1]} x "
            f"{picture.shape[0]} pixels, it was {size.original[1]} x {size.original[0]}. Name the "
            "right one with --video."
        )
    small = preprocess.to_working_size(picture, size).astype(np.int16)
    difference = float(np.abs(small - np.asarray(scene.colours[t])).mean())
    if difference > _SAME_PICTURE:
        raise UserError(
            f"'{source}' is not the video of this result: frame '{name}' differs by "
            f"{difference:.0f} of 255 levels on average. Name the right one with --video."
        )
