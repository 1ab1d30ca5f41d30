"""The binary files of MPI Sintel: depth (.dpt) and cameras (.cam)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import flow_files

_CAM_BYTES = 4 + 8 * (9 + 12)


class SintelCamera(NamedTuple):
    """intrinsics: (3, 3) pixels. cam_from_world: (3, 4) metres. Both float64, OpenCV axes."""

    intrinsics: np.ndarray
    cam_from_world: np.ndarray


def read_dpt(path: str | Path) -> np.ndarray:
    """Returns (H, W) float32 depth in metres along z.

    Bytes: float32 tag 202021.25, int32 width, int32 height, then the rows from the top.
    Raises UserError if the file is unreadable, of another kind or length.
    """
    data = _read(path, ".dpt")
    if len(data) < 12:
        raise UserError(f"'{path}' has {len(data)} bytes; it was cut short.")
    width, height = (int(side) for side in np.frombuffer(data, "<i4", 2, offset=4))
    if width < 1 or height < 1 or len(data) != 12 + 4 * width * height:
        raise UserError(
            f"'{path}' says {width} x {height} pixels but has {len(data)} bytes, expected "
            f"{12 + 4 * width * height}."
        )
    return np.frombuffer(data, "<f4", offset=12).reshape(height, width).astype(np.float32)


def read_cam(path: str | Path) -> SintelCamera:
    """Returns the camera of one frame.

    Bytes: float32 tag 202021.25, nine float64 intrinsics, twelve float64 of the 3x4 matrix from
    world to camera, both row by row. Raises UserError as `read_dpt`.
    """
    data = _read(path, ".cam")
    if len(data) != _CAM_BYTES:
        raise UserError(f"'{path}' has {len(data)} bytes; a .cam file has {_CAM_BYTES}.")
    values = np.frombuffer(data, "<f8", offset=4).astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"'{path}' holds numbers that are not finite.")
    return SintelCamera(values[:9].reshape(3, 3), values[9:].reshape(3, 4))


def _read(path: str | Path, kind: str) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error}).") from error
    if len(data) < 4 or np.frombuffer(data, "<f4", 1)[0] != flow_files.TAG:
        raise UserError(f"'{path}' is no {kind} file: its first four bytes are not 'PIEH'.")
    return data
