"""Masks of a user: what stands still, what moves by itself, what nobody should look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from align3r_jax.errors import UserError
from align3r_jax.io import images
from align3r_jax.structs import WorkingSize

STATIC, DYNAMIC, IGNORE = 0, 1, 2
UNKNOWN = 255  # in frames without a mask
# Grey pictures of more than two values: where each label's range begins.
_GREY_IGNORE, _GREY_DYNAMIC = 64, 192
_ENDINGS = ("", "_mask", "_dynamic_mask")


class MaskFolder(NamedTuple):
    """labels: (T, H, W) uint8 at working size, UNKNOWN in frames without a mask.

    notes: sentences for the reader of the result.
    """

    labels: np.ndarray
    notes: tuple[str, ...]


def read_labels(path: str | Path) -> np.ndarray:
    """Returns (H0, W0) uint8 labels of one picture: STATIC 0, DYNAMIC 1 or IGNORE 2.

    Grey (or equal colours): 0 to 63 static, 64 to 191 ignore, 192 to 255 dynamic, so 0, 128 and
    255 are what to write. Palette pictures: the index, 0 static, 1 dynamic, 2 ignore. One bit:
    0 static, 1 dynamic.
    Raises UserError for unreadable files, colours, or other indices.
    """
    try:
        with Image.open(path) as picture:
            mode, values = picture.mode, np.array(picture)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UserError(f"The mask '{path}' cannot be read ({error}).") from error
    if mode == "1":
        return values.astype(np.uint8)
    if mode == "P":
        if values.max() > IGNORE:
            raise UserError(
                f"The mask '{path}' has palette index {values.max()}; known are 0 static, "
                "1 dynamic, 2 ignore. Save it as grey (0, 255, 128) or with these indices."
            )
        return values.astype(np.uint8)
    if mode in ("RGB", "RGBA"):
        if np.ptp(values[..., :3], axis=-1).max() > 0:
            raise UserError(
                f"The mask '{path}' is a colour picture; give grey (0 static, 128 ignore, 255 "
                "dynamic) or palette indices (0 static, 1 dynamic, 2 ignore)."
            )
        values = values[..., 0]
    elif mode != "L":
        raise UserError(f"The mask '{path}' has mode {mode}; 8-bit grey or palette is expected.")
    if 0 < values.max() <= IGNORE:
        raise UserError(
            f"The mask '{path}' is grey with values up to {values.max()}: labels are 0, 128 and "
            "255 in grey pictures; indices 0, 1, 2 need a palette picture."
        )
    labels = np.where(values >= _GREY_IGNORE, IGNORE, STATIC)
    return np.where(values >= _GREY_DYNAMIC, DYNAMIC, labels).astype(np.uint8)


def read_mask_folder(source: str | Path, names: Sequence[str], size: WorkingSize) -> MaskFolder:
    """Returns the masks of the frames from a folder or glob, at working size.

    Files carry the frame's name (`NAME.png`, `NAME_mask.png`), for any of the frames; if none
    does and there are as many files as frames, in natural order. A mask covers the original frame
    whatever its own size, and is resized to the nearest pixel.
    Raises UserError if no file fits, or one is unreadable or of other proportions.
    """
    paths = images.list_images(source)
    by_name = {path.stem.lower(): path for path in paths}
    found = [
        next((by_name[key] for end in _ENDINGS if (key := (name + end).lower()) in by_name), None)
        for name in names
    ]
    notes: tuple[str, ...] = ()
    if not any(found):
        if len(paths) != len(names):
            raise UserError(
                f"'{source}' holds {len(paths)} masks for {len(names)} frames, none of them named "
                f"after a frame (expected '{names[0]}.png'). Name them after the frames or give "
                "exactly one per frame."
            )
        found = list(paths)
        notes = (f"The masks of '{source}' were taken in the order of the frames.",)
    labels = np.full((len(names), *size.working), UNKNOWN, np.uint8)
    for t, path in enumerate(found):
        if path is not None:
            labels[t] = _to_working(read_labels(path), size, path)
    given = np.array([path is not None for path in found])
    if not given.all():
        notes += (
            f"{int(given.sum())} of {len(names)} frames have a mask of the user; the motion of the "
            "others is estimated.",
        )
    return MaskFolder(labels, notes)


def _to_working(labels: np.ndarray, size: WorkingSize, path: Path) -> np.ndarray:
    height, width = labels.shape
    if abs(height * size.original[1] / (width * size.original[0]) - 1) > 0.02:
        raise UserError(
            f"The mask '{path}' is {width} x {height} pixels, the frames {size.original[1]} x "
            f"{size.original[0]}: other proportions. Masks must cover the whole original frame."
        )
    resized = cv2.resize(labels, size.resized[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    top, left = size.crop
    return resized[top : top + size.working[0], left : left + size.working[1]]
