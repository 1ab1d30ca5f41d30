"""Depth as 16-bit PNG: what a value is worth in each data set, and files that cannot be depth."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image

from align3r_jax.errors import UserError

# Values per metre, as the pages of the data sets say.
VALUES_PER_METRE = {
    "bonn": 5000.0,
    "tum": 5000.0,
    "kitti": 256.0,
    "vkitti2": 100.0,  # 65535 = 655.35 m is the sky
    "pointodyssey": 65.535,  # 65535 = 1000 m
    "scannet": 1000.0,
}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EIGHT_BITS = 255


def read_png16(path: str | Path) -> np.ndarray:
    """Returns the (H, W) uint16 values of a 16-bit PNG of one channel.

    Raises UserError if the file is unreadable or has 8 bits or several channels.
    """
    try:
        with Image.open(path) as image:
            if not image.mode.startswith("I"):
                raise UserError(
                    f"'{path}' is an 8-bit picture (mode {image.mode}), not depth: 16 bits of one "
                    "channel are expected."
                )
            return np.asarray(image).astype(np.uint16)
    except UserError:
        raise
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise UserError(f"The depth file '{path}' cannot be read ({error}).") from error


def check_png16(path: str | Path) -> tuple[int, int]:
    """Returns (height, width) from the first bytes of the file, without decoding it.

    Raises UserError as `read_png16`.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(26)
    except OSError as error:
        raise UserError(f"The depth file '{path}' cannot be read ({error}).") from error
    if len(head) < 26 or head[:8] != _SIGNATURE:
        raise UserError(f"'{path}' is no PNG file, or is cut short; 16-bit depth is expected.")
    width, height, bits, kind = struct.unpack(">IIBB", head[16:])
    if (bits, kind) != (16, 0):
        raise UserError(
            f"'{path}' is an {bits}-bit picture of {1 if kind in (0, 3) else 3} channels, not "
            "depth: 16 bits of one channel are expected. Take the file as the data set "
            "distributes it; a copy saved by a picture viewer has lost its depth."
        )
    return height, width


def decode(values: np.ndarray, values_per_metre: float, missing: float = 0.0) -> np.ndarray:
    """depth = value / values_per_metre, float32 metres; `missing` where the value is 0."""
    depth = np.asarray(values, np.float64) / values_per_metre
    return np.where(np.asarray(values) > 0, depth, missing).astype(np.float32)


def read_depth_png16(
    path: str | Path, values_per_metre: float, *, refuse_small: bool = True
) -> np.ndarray:
    """Returns (H, W) float32 metres, 0 where nothing was measured.

    refuse_small: values that end at 255 are an 8-bit picture saved with 16 bits, as the readers
    of Bonn, TUM and KITTI assume. Raises UserError for such files and as `read_png16`.
    """
    values = read_png16(path)
    if refuse_small and 0 < values.max() <= _EIGHT_BITS:
        raise UserError(
            f"'{path}' has no value above 255 ({values.max()} at most), that is "
            f"{values.max() / values_per_metre:.3g} m: an 8-bit picture saved with 16 bits, not "
            "the depth of the data set."
        )
    return decode(values, values_per_metre)
