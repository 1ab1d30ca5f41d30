"""TUM RGB-D: Kinect video with depth and motion capture; the eight sequences with people.

Below the root one folder per sequence (`rgbd_dataset_freiburg3_walking_xyz`), or the root is one.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from data.readers import files, tum_format
from data.readers.sequence import DatasetReader, EvaluationSequence, FrameSlice, ReaderOptions

_PREFIX = "rgbd_dataset_freiburg3_"
DYNAMIC = tuple(
    f"{_PREFIX}{who}_{how}"
    for who in ("sitting", "walking")
    for how in ("static", "xyz", "halfsphere", "rpy")
)
# fx, fy, cx, cy of the colour cameras, from the page of the benchmark.
_CAMERAS = {
    1: (517.3, 516.5, 318.6, 255.3),
    2: (520.9, 521.0, 325.1, 249.7),
    3: (535.4, 539.2, 320.1, 247.6),  # its pictures are already undistorted
}


def found(root: Path, options: ReaderOptions) -> list[str]:
    """Names of the sequences; the root's own name if it is one."""
    if tum_format.is_sequence(root):
        return [root.resolve().name]
    return [name for name in files.subfolders(root) if tum_format.is_sequence(root / name)]


def read(
    root: Path, name: str, task: str, options: ReaderOptions, frames: FrameSlice
) -> EvaluationSequence:
    """Returns one sequence; its name may lack the data set's prefix. Raises UserError."""
    if tum_format.is_sequence(root):
        folder = root.resolve()
    else:
        folder = files.first_folder(
            [root / name, root / f"{_PREFIX}{name}", root / f"rgbd_dataset_{name}"], "sequence"
        )
    camera = re.search(r"(?:freiburg|fr)([123])", folder.name)
    intrinsics = None
    if camera:
        fx, fy, cx, cy = _CAMERAS[int(camera[1])]
        intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    return tum_format.read(folder, "tum", task, options, frames, intrinsics)


READER = DatasetReader(
    name="tum",
    tasks=("video_depth", "single_depth", "camera_pose"),
    layout="rgbd_dataset_freiburg3_walking_xyz/rgb and so on, or a folder with rgb/ itself",
    found=found,
    read=read,
    lists={"dynamics": DYNAMIC},
    default_list={"": "dynamics"},
    # Depth: Align3R's 50 frames. Cameras: MonST3R's 90.
    default_frames={"": FrameSlice(30, 1, 50), "camera_pose": FrameSlice(0, 3, 90)},
)
