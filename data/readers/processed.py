"""The folders that Align3R's preparation writes: four files per frame, beside each other.

`ID_rgb.jpg`, `ID_depth.pfm`, `ID_mask.png` (255: usable) and `ID_metadata.npz`
(`camera_intrinsics`, `camera_pose`). A prior is `ID_rgb_pred_depth_NAME.npz`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import pfm
from data.readers import files
from data.readers.sequence import EvaluationSequence, FrameSlice

_RGB = "_rgb"


class Metadata(NamedTuple):
    """intrinsics: (3, 3) pixels of the picture. pose: (4, 4) as stored."""

    intrinsics: np.ndarray
    pose: np.ndarray


def is_sequence(folder: Path) -> bool:
    """Whether a folder holds processed frames."""
    return folder.is_dir() and any(folder.glob(f"*{_RGB}.jpg"))


def read_metadata(path: Path) -> Metadata:
    """Returns the camera of one frame. Raises UserError if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            intrinsics = np.asarray(stored["camera_intrinsics"], np.float64).reshape(3, 3)
            pose = np.asarray(stored["camera_pose"], np.float64).reshape(4, 4)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"'{path}' holds no camera that can be read ({error}).") from error
    return Metadata(intrinsics, pose)


def frame_file(picture: Path, ending: str) -> Path:
    """The file of the same frame with another ending, e.g. `_depth.pfm`."""
    return picture.with_name(picture.stem.removesuffix(_RGB) + ending)


def read(
    folder: Path,
    name: str,
    dataset: str,
    frames: FrameSlice,
    world_from_cam: Callable[[np.ndarray], np.ndarray],
) -> EvaluationSequence:
    """Returns one folder. The mask is not applied: the reference evaluates the raw depth.

    world_from_cam: (T, 4, 4) of `camera_pose` -> OpenCV poses. Raises UserError.
    """
    every = files.listed(folder, (".jpg",), "pictures")
    every = [path for path in every if path.stem.endswith(_RGB)]
    if not every:
        raise UserError(f"The folder '{folder}' holds no processed frames (ID{_RGB}.jpg).")
    files.check_no_gaps([frame_file(path, ".jpg") for path in every])
    pictures = files.chosen(every, frames)
    depth = files.partners(pictures, lambda path: frame_file(path, "_depth.pfm"), "depth map")
    stored = files.partners(pictures, lambda path: frame_file(path, "_metadata.npz"), "metadata")
    cameras = [read_metadata(path) for path in stored]
    return EvaluationSequence(
        name, dataset, tuple(pictures), files.picture_size(pictures),
        depth=files.depth_stack(depth, pfm.read_pfm),
        world_from_cam=world_from_cam(np.stack([camera.pose for camera in cameras])),
        intrinsics=np.stack([camera.intrinsics for camera in cameras]),
        prior_files=files.priors(pictures, "beside"),
    ).check()  # fmt: skip
