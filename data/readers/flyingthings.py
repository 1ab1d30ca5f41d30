"""FlyingThings3D, TEST split: synthetic stereo clips of ten frames; raw or processed layout.

Raw: `frames_finalpass/TEST/A/0000/left/0006.png`, `disparity/TEST/A/0000/left/0006.pfm`,
`camera_data/TEST/A/0000/camera_data.txt`. Processed: `FlyingThings3D_proc/TEST/A/0000/left/`
(`processed.py`). A sequence is one side of one clip, called `A_0000_left`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from align3r_jax.errors import UserError
from data.readers import files, processed, sceneflow_files
from data.readers.sequence import DatasetReader, EvaluationSequence, FrameSlice, ReaderOptions

_EVERY = 20  # of the sorted folders: 44 of 874


def _processed(root: Path) -> Path | None:
    candidates = (root / "FlyingThings3D_proc" / "TEST", root / "TEST")
    return next((folder for folder in candidates if folder.is_dir()), None)


def _raw(root: Path, options: ReaderOptions) -> Path:
    return root / f"frames_{options.render_pass}pass" / "TEST"


def found(root: Path, options: ReaderOptions) -> list[str]:
    """Names of the sides of all clips, sorted, of either layout."""
    base = _processed(root) or _raw(root, options)
    return [
        f"{letter}_{clip}_{side}"
        for letter in files.subfolders(base)
        for clip in files.subfolders(base / letter)
        for side in files.subfolders(base / letter / clip)
        if side in sceneflow_files.SIDES
    ]


def read(
    root: Path, name: str, task: str, options: ReaderOptions, frames: FrameSlice
) -> EvaluationSequence:
    """Returns one side of one clip. Raises UserError for missing or damaged files.

    Raw: pictures, disparity and cameras belong together by frame number; with
    association="position" by position, cut to the shortest.
    """
    parts = name.split("_")
    if len(parts) != 3 or parts[2] not in sceneflow_files.SIDES:
        raise UserError(f"'{name}' is no sequence of FlyingThings3D; one is 'A_0000_left'.")
    letter, clip, side = parts
    base = _processed(root)
    if base is not None:
        folder = files.first_folder([base / letter / clip / side], f"frames of '{name}'")
        return processed.read(folder, name, "flyingthings", frames, lambda stored: stored)
    within = Path("TEST") / letter / clip
    clip_files = sceneflow_files.clip_files(
        _raw(root, options) / letter / clip / side,
        root / "disparity" / within / side,
        root / "camera_data" / within / "camera_data.txt",
        side,
        by_position=options.association != "stamps",
    )
    pictures = files.chosen(clip_files.pictures, frames)
    (cx, cy), focal = sceneflow_files.CENTRE, sceneflow_files.FOCAL
    return EvaluationSequence(
        name, "flyingthings", tuple(pictures), files.picture_size(pictures),
        depth=files.depth_stack(frames.of(clip_files.disparity), _depth),
        world_from_cam=np.stack(frames.of(clip_files.world_from_cam)),
        intrinsics=files.intrinsics_of(focal, focal, cx, cy, len(pictures)),
        prior_files=files.priors(pictures, "sibling"),
        notes=("Depth is in the units of the poses (the stereo baseline is 1).",),
    ).check()  # fmt: skip


def _depth(path: Path) -> np.ndarray:
    return sceneflow_files.read_depth(path, sceneflow_files.FOCAL)


def _every_twentieth(names: list[str]) -> list[str]:
    return names[::_EVERY]


READER = DatasetReader(
    name="flyingthings",
    tasks=("video_depth", "single_depth", "camera_pose"),
    layout="frames_finalpass/TEST/A/0000/left/0006.png, disparity and camera_data, or "
    "FlyingThings3D_proc/TEST/A/0000/left/0006_rgb.jpg",
    found=found,
    read=read,
    lists={"every20": _every_twentieth},
    default_list={"": "every20"},
)
