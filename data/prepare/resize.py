"""The preprocessing of Align3R's training sets: centred on the principal point, then smaller.

    mx = min(cx, W - cx), my = min(cy, H - cy)       crop [cx - mx, cx + mx) x [cy - my, cy + my)
    s  = (3/4 L) / min(H, W), or L / max(H, W) if the long side falls short of L otherwise
    the crop is resized by one factor to cover floor(s (H, W)); H, W are those before the crop

L is the long side asked for; pictures of 4:3 become exactly L wide, wider ones wider.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import train_crop
from align3r_jax.io.train_crop import View
from data.readers.training import TrainingFrame

_COVER = 1e-8  # as in `train_crop`


def principal_box(shape: tuple[int, int], intrinsics: np.ndarray) -> tuple[int, int, int, int]:
    """Returns (left, top, right, bottom) of the largest window centred on the principal point.

    Its corners are cut down to whole pixels. Raises UserError if the point lies outside.
    """
    height, width = shape
    centre_x, centre_y = (float(value) for value in intrinsics[:2, 2])
    half_x, half_y = min(centre_x, width - centre_x), min(centre_y, height - centre_y)
    box = (
        int(centre_x - half_x), int(centre_y - half_y),
        int(centre_x + half_x), int(centre_y + half_y),
    )  # fmt: skip
    if min(half_x, half_y) <= 0 or box[2] <= box[0] or box[3] <= box[1]:
        raise UserError(
            f"The principal point ({centre_x:g}, {centre_y:g}) does not lie inside of the picture "
            f"({width} x {height}); the intrinsics must be in pixels of this picture."
        )
    return box


def asked_size(shape: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Returns the (height, width) that a picture of `shape` is resized to cover."""
    scale = long_side * 3 / 4 / min(shape) + _COVER
    if int(np.floor(max(shape) * scale)) < long_side:
        scale = long_side / max(shape) + _COVER
    return int(np.floor(shape[0] * scale)), int(np.floor(shape[1] * scale))


def prepare_view(view: View, long_side: int) -> View:
    """Returns the view cropped and resized as above, its intrinsics with it.

    The picture by Pillow (Lanczos down, bicubic up), maps by nearest neighbour.
    """
    left, top, right, bottom = principal_box(view.shape, view.intrinsics)
    cropped = train_crop.cut(view, top, left, (bottom - top, right - left))
    return train_crop.resize_to_cover(cropped, asked_size(view.shape, long_side))


def prepare_frame(frame: TrainingFrame, long_side: int) -> TrainingFrame:
    """Returns the frame at `long_side`, its prior with it; as it is if `long_side` is 0."""
    if long_side == 0:
        return frame
    maps = {"depth": frame.depth}
    if frame.prior_depth is not None:
        maps["prior_depth"] = frame.prior_depth
    view = prepare_view(View(frame.image, maps, frame.intrinsics), long_side)
    focal = frame.prior_focal
    if focal is not None:
        focal *= float(view.intrinsics[0, 0] / frame.intrinsics[0, 0])
    return dataclasses.replace(
        frame,
        image=view.image,
        depth=view.maps["depth"],
        intrinsics=view.intrinsics,
        prior_depth=view.maps.get("prior_depth"),
        prior_focal=focal,
    )
