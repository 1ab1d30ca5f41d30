"""Bonn RGB-D Dynamic: the folders of TUM with other cameras and people who carry things.

`rgbd_bonn_dataset/rgbd_bonn_balloon2/{rgb,depth}/STAMP.png`, `groundtruth.txt`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from data.readers import files, poses, tum_format
from data.readers.sequence import DatasetReader, EvaluationSequence, FrameSlice, ReaderOptions

_PREFIX = "rgbd_bonn_"
PAPERS = tuple(
    f"{_PREFIX}{name}"
    for name in ("balloon2", "crowd2", "crowd3", "person_tracking2", "synchronous")
)
# From the page of the data set; its lens distortion is small and not removed.
_INTRINSICS = np.array([[542.822841, 0, 315.59352], [0, 542.57687, 237.756098], [0, 0, 1]])


def _base(root: Path) -> Path:
    inner = root / "rgbd_bonn_dataset"
    return inner if inner.is_dir() else root


def found(root: Path, options: ReaderOptions) -> list[str]:
    """Names of the sequences; the root's own name if it is one."""
    if tum_format.is_sequence(root):
        return [root.resolve().name]
    base = _base(root)
    return [name for name in files.subfolders(base) if tum_format.is_sequence(base / name)]


def read(
    root: Path, name: str, task: str, options: ReaderOptions, frames: FrameSlice
) -> EvaluationSequence:
    """Returns one sequence; its name may lack `rgbd_bonn_`. Raises UserError."""
    base = _base(root)
    if tum_format.is_sequence(root):
        folder = root.resolve()
    else:
        folder = files.first_folder([base / name, base / f"{_PREFIX}{name}"], "sequence")
    sequence = tum_format.read(folder, "bonn", task, options, frames, _INTRINSICS)
    if sequence.world_from_cam is None:
        return sequence
    if options.bonn_poses == "camera":
        camera = poses.from_bonn_markers(sequence.world_from_cam)
        return dataclasses.replace(sequence, world_from_cam=camera)
    note = "Poses are those of groundtruth.txt, whose axes are those of the markers."
    return dataclasses.replace(sequence, notes=(*sequence.notes, note))


READER = DatasetReader(
    name="bonn",
    tasks=("video_depth", "single_depth", "camera_pose"),
    layout="rgbd_bonn_balloon2/rgb and so on",
    found=found,
    read=read,
    lists={"papers": PAPERS},
    default_list={"": "papers"},
    default_frames={"": FrameSlice(30, 1, 110), "camera_pose": FrameSlice(30, 1, 30)},
)
