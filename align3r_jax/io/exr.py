"""Depth as OpenEXR: one channel of floats, as compositing and rendering programs write it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np

from align3r_jax.errors import UserError

# Where a file has several channels: the names of depth in what OpenCV, Blender and Nuke write.
_DEPTH_CHANNELS = ("Z", "Y", "DEPTH", "DEPTH.Z", "DEPTH.V", "V")


def read_exr(path: str | Path) -> np.ndarray:
    """Returns the (H, W) float32 values of the only channel, or of the one that is named as depth.

    Channels of 16-bit floats are widened; NaN and infinity stay. Several channels: `Z`, `Y`,
    `depth`, or a name that ends with `.Z`, `.Depth.V`.
    Raises UserError if the file is unreadable, no channel is depth, or OpenEXR is not installed.
    """
    library = _library(path)
    try:
        # The library reads a missing or empty file as a failure without a reason.
        if Path(path).stat().st_size == 0:
            raise UserError(f"'{path}' is empty; an OpenEXR file is expected.")
        with library.File(str(path), separate_channels=True) as file:
            channels = {name: channel.pixels for name, channel in file.channels().items()}
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{path}' cannot be read as OpenEXR ({error}).") from error
    name = _depth_channel(list(channels))
    if name is None or channels[name].ndim != 2:
        raise UserError(
            f"'{path}' holds the channels {', '.join(sorted(channels))}; expected one channel, or "
            "one of them named Z or Y."
        )
    return np.asarray(channels[name], np.float32)


def write_exr(path: str | Path, values: np.ndarray, *, channel: str = "Z") -> None:
    """Writes (H, W) as one channel of 32-bit floats, compressed without loss, top row first.

    Raises UserError if OpenEXR is not installed or the file cannot be written.
    """
    library = _library(path)
    header = {"compression": library.ZIP_COMPRESSION, "type": library.scanlineimage}
    pixels = np.ascontiguousarray(values, np.float32)
    if pixels.ndim != 2:
        raise ValueError(f"One channel is (H, W), got {pixels.shape}.")
    try:
        with library.File(header, {channel: pixels}) as file:
            file.write(str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(f"'{path}' cannot be written ({error}).") from error


def _depth_channel(names: list[str]) -> str | None:
    if len(names) == 1:
        return names[0]
    for wanted in _DEPTH_CHANNELS:
        for name in names:
            if name.upper() == wanted or name.upper().endswith(f".{wanted}"):
                return name
    return None


def _library(path: str | Path) -> ModuleType:
    try:
        import OpenEXR
    except ImportError as error:  # only those who read or write such files need it
        raise UserError(f"'{path}' is an OpenEXR file: pip install OpenEXR to use it.") from error
    return OpenEXR
