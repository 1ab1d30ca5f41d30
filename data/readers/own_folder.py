"""Your own folder for training: pictures, depth, poses and intrinsics, docs/training_data.md.

`SCENE/images/NAME.jpg`, `SCENE/depth/NAME.png` (or npz, npy, pfm, exr) and the cameras in any
format that the project reads. A root holds one scene, scenes, or `train` and `test` with scenes.
`validate` lists all problems of a root at once.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from align3r_jax.errors import UserError
from data.readers import own_folder_check, own_folder_files, training_frames
from data.readers.training import SkippedScene, TrainingOptions, TrainingReader, TrainingScene

validate = own_folder_check.validate
FEWEST_FRAMES = own_folder_check.FEWEST_FRAMES


def scenes(root: Path, options: TrainingOptions) -> tuple[list[TrainingScene], list[SkippedScene]]:
    """Returns the scenes that are whole; of the others the first thing that is wrong."""
    return training_frames.gather(
        own_folder_files.scene_folders(root, options.split), functools.partial(_scene, options)
    )


def _scene(options: TrainingOptions, name: str, folder: Path) -> TrainingScene:
    pictures = own_folder_files.picture_files(folder)
    if len(pictures) < FEWEST_FRAMES:
        raise UserError(f"'{folder}' has one picture; a pair needs {FEWEST_FRAMES}.")
    twice = own_folder_files.same_names(pictures)
    if twice:
        raise UserError(f"'{folder}' has several pictures named '{twice[0]}'.")
    depths = own_folder_files.depth_of(folder, pictures)
    lacking = [path.name for path, depth in zip(pictures, depths) if depth is None]
    cameras = own_folder_files.read_cameras(folder, pictures)
    known = np.isfinite(cameras.intrinsics).all((1, 2)) & np.isfinite(cameras.world_from_cam).all(
        (1, 2)
    )
    without = [path.name for path, one in zip(pictures, known) if not one]
    for frames, what in ((lacking, "depth map"), (without, "camera")):
        if frames:
            raise UserError(
                f"{len(frames)} of {len(pictures)} pictures of '{folder}' have no {what}, the "
                f"first is '{frames[0]}': add it, or take these pictures away."
            )
    intrinsics, poses = [], []
    size = own_folder_files.picture_size(pictures[0])
    for index, path in enumerate(pictures):
        intrinsics.append(
            own_folder_files.of_picture(
                cameras.intrinsics[index], cameras.sizes[index], size, f"'{path}'"
            )
        )
        poses.append(own_folder_files.rigid(cameras.world_from_cam[index], f"'{path}'"))
    return training_frames.file_scene(
        "folder", name, pictures, [path for path in depths if path is not None], _depth,
        np.stack(intrinsics), np.stack(poses), options, far=np.inf,
    )  # fmt: skip


def _depth(path: Path, intrinsics: np.ndarray) -> np.ndarray:
    return own_folder_files.read_depth(path)


TRAINING = TrainingReader(
    name="folder",
    layout="SCENE/images/ and SCENE/depth/ with files of the same names, and cameras "
    "(docs/training_data.md); below train/ and test/ if there is a test split",
    scenes=scenes,
)
