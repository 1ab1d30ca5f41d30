"""NYU Depth v2, the official 654 test images as HDF5: single images with Kinect depth.

`val/official/00001.h5` with `rgb` (3, H, W) uint8 and `depth` (H, W) metres.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import hdf5_files
from data.readers import files
from data.readers.sequence import DatasetReader, EvaluationSequence, FrameSlice, ReaderOptions

# The colour camera by the toolbox of the data set, for pictures of 640 x 480.
_CAMERA = (518.857901, 519.469611, 325.582449, 253.736166)
_SIZE = (480, 640)


def _base(root: Path) -> Path:
    return next((p for p in (root / "val" / "official", root / "official") if p.is_dir()), root)


def found(root: Path, options: ReaderOptions) -> list[str]:
    """Names of the images."""
    base = _base(root)
    return sorted(path.stem for path in base.glob("*.h5")) if base.is_dir() else []


def read(
    root: Path, name: str, task: str, options: ReaderOptions, frames: FrameSlice
) -> EvaluationSequence:
    """Returns one image as a sequence of one frame. Raises UserError."""
    path = _base(root) / f"{name}.h5"
    if not path.is_file():
        raise UserError(f"'{path}' does not exist.")
    image, depth = _load(path)
    size = image.shape[:2]
    if depth.shape != size:
        raise UserError(f"'{path}': depth is {depth.shape}, rgb {size} (height, width).")
    return EvaluationSequence(
        name, "nyu", (path,), size,
        depth=files.depth_stack((path,), lambda file: _load(file)[1]),
        intrinsics=files.intrinsics_of(*_CAMERA, 1) if size == _SIZE else None,
        prior_files=files.priors((path,), "beside"),
        load_image=lambda file: _load(file)[0],
    ).check()  # fmt: skip


def _load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    rgb, depth = hdf5_files.read_arrays(path, ("rgb", "depth"))
    if rgb.ndim != 3 or rgb.shape[0] != 3 or rgb.dtype != np.uint8 or depth.ndim != 2:
        raise UserError(
            f"'{path}': rgb is {rgb.dtype} {rgb.shape} and depth {depth.shape}; expected uint8 "
            "(3, H, W) and (H, W)."
        )
    return np.ascontiguousarray(np.moveaxis(rgb, 0, -1)), depth


READER = DatasetReader(
    name="nyu",
    tasks=("single_depth",),
    layout="val/official/00001.h5",
    found=found,
    read=read,
    default_list={"": "found"},
)
