"""Portable float maps: one or three float32 channels, the bottom row first in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from align3r_jax.errors import UserError

_CHANNELS = {b"Pf": 1, b"PF": 3}


def read_pfm(path: str | Path) -> np.ndarray:
    """Returns (H, W) float32 of a grey file (Pf), (H, W, 3) of a colour one (PF), top row first.

    The sign of the scale is the byte order (negative: little endian), its magnitude is ignored.
    Header fields may stand apart by any white space; one white-space byte ends the header.
    Raises UserError if the file is unreadable, of another kind or cut short.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"The PFM file '{path}' cannot be read ({error}).") from error
    header, position = [], 0
    for _ in range(4):  # kind, width, height, scale
        while data[position : position + 1].isspace():
            position += 1
        end = position
        while end < len(data) and not data[end : end + 1].isspace():
            end += 1
        header.append(data[position:end])
        position = end
    if header[0] not in _CHANNELS:
        raise UserError(f"'{path}' is no PFM file: it does not begin with Pf or PF.")
    channels = _CHANNELS[header[0]]
    try:
        width, height, order = int(header[1]), int(header[2]), float(header[3])
        kind = "<f4" if order < 0 else ">f4"
        if width < 1 or height < 1:
            raise ValueError(f"{width} x {height} pixels")
        values = np.frombuffer(data, kind, width * height * channels, offset=position + 1)
    except ValueError as error:
        raise UserError(f"The PFM file '{path}' cannot be read ({error}).") from error
    shape = (height, width) if channels == 1 else (height, width, channels)
    return values.reshape(shape)[::-1].astype(np.float32)


def write_pfm(path: str | Path, values: np.ndarray) -> None:
    """Writes (H, W) or (H, W, 3) as a little-endian PFM."""
    kind = "Pf" if np.ndim(values) == 2 else "PF"
    header = f"{kind}\n{values.shape[1]} {values.shape[0]}\n-1.0\n".encode()
    Path(path).write_bytes(header + np.asarray(values)[::-1].astype("<f4").tobytes())
