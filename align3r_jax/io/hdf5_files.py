"""HDF5 files of data sets: Spring's disparity (.dsp5), prepared NYUv2 images (.h5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from align3r_jax.errors import UserError


def read_arrays(path: str | Path, names: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Returns the arrays of these names.

    Raises UserError if the file is unreadable, lacks one of them, or h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:  # only those who read such files need it
        raise UserError(f"'{path}' is an HDF5 file: install h5py to read it.") from error
    try:
        with h5py.File(path, "r") as file:
            lacking = [name for name in names if name not in file]
            if lacking:
                raise UserError(
                    f"'{path}' has no array '{lacking[0]}'; it holds {', '.join(sorted(file))}."
                )
            return tuple(np.asarray(file[name]) for name in names)
    except UserError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"'{path}' cannot be read as HDF5 ({error}).") from error


def read_dsp5(path: str | Path) -> np.ndarray:
    """Returns Spring's disparity, (2 H, 2 W) float32 in pixels of the (H, W) image, NaN: sky."""
    (disparity,) = read_arrays(path, ("disparity",))
    if disparity.ndim != 2:
        raise UserError(f"'{path}': disparity has shape {disparity.shape}, expected (2 H, 2 W).")
    return disparity.astype(np.float32)
