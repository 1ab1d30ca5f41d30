"""Frames written in the layout of the published preparation: four files beside each other.

    OUTPUT/SPLIT/SCENE/ID_rgb.jpg  ID_depth.pfm  ID_mask.png  ID_metadata.npz

`camera_pose` is world_from_cam with OpenCV axes. PointOdyssey's is cam_from_world diag(1, -1, -1,
1), which is what loaders of the published folder undo; Spring's is right, not the mistaken one of
the published folder. Depth is 0 where the mask is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from align3r_jax.io import atomic, pfm, prior_files
from data.prepare import frame_record
from data.readers import poses
from data.readers.training import TrainingFrame, TrainingScene

_METADATA = "_metadata.npz"  # written last: a frame that has it is complete
_ENDINGS = ("_rgb.jpg", "_depth.pfm", "_mask.png", _METADATA)


def stored_pose(dataset: str, world_from_cam: np.ndarray) -> np.ndarray:
    """Returns what `camera_pose` of a data set holds, (4, 4)."""
    if dataset == "pointodyssey":
        return poses.processed_pointodyssey(np.linalg.inv(world_from_cam))
    return world_from_cam


def file_name(frame: str) -> str:
    """ID of a frame: one name, whatever folders the source has it in."""
    return frame.replace("/", "_")


def write_frame(
    folder: Path, quality: int, prior: str | None, scene: TrainingScene, index: int,
    frame: TrainingFrame,
) -> int:  # fmt: skip
    """Writes the files of one frame below `folder` (of the split); returns their bytes.

    prior: also writes the prior of this name. Raises UserError if the disk refuses.
    """
    pose = stored_pose(scene.dataset, frame.world_from_cam)
    picture, depth, mask, metadata = _paths(folder, scene, index)
    with atomic.told_to_user(picture):
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(frame_record.picture_bytes(frame.image, "jpeg", quality))
        pfm.write_pfm(depth, frame.depth)
        mask.write_bytes(frame_record.picture_bytes(frame_record.mask_of(frame), "png"))
        if prior is not None and frame.prior_depth is not None:
            path = prior_files.prior_path(picture, prior)
            prior_files.write_prior(path, frame.prior_depth, frame.prior_focal)
        with atomic.new_file(metadata) as file:
            np.savez(file, camera_intrinsics=frame.intrinsics, camera_pose=pose)
    return size_of(folder, scene, index)


def is_written(folder: Path, scene: TrainingScene, index: int) -> bool:
    """Whether all files of a frame are there."""
    return _paths(folder, scene, index)[-1].is_file()


def size_of(folder: Path, scene: TrainingScene, index: int) -> int:
    """Bytes of the four files of a frame."""
    return sum(path.stat().st_size for path in _paths(folder, scene, index))


def remove_frame(folder: Path, scene: TrainingScene, index: int) -> None:
    """Removes the files of a frame whose scene cannot be used."""
    for path in _paths(folder, scene, index):
        path.unlink(missing_ok=True)


def _paths(folder: Path, scene: TrainingScene, index: int) -> list[Path]:
    place = folder / scene.name
    return [place / f"{file_name(scene.frames[index])}{ending}" for ending in _ENDINGS]
