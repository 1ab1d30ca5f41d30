"""FlyingThings3D, TEST split: synthetic stereo clips of ten frames; raw or processed layout.

Raw: `frames_finalpass/TEST/A/0000/left/0006.png`, `disparity/TEST/A/0000/left/0006.pfm`,
`camera_data/TEST/A/0000/camera_data.txt`. Processed: `FlyingThings3D_proc/TEST/A/0000/left/`
(`processed.py`). A sequence is one side of one clip, called `A_0000_left`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import pfm
from data.readers import disparity, files, processed, sceneflow_files
from data.readers.sequence import DatasetReader, EvaluationSequence, FrameSlice, ReaderOptions

SIDES = ("left", "right")
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
        if side in SIDES
    ]


def read(
    root: Path, name: str, task: str, options: ReaderOptions, frames: FrameSlice
) -> EvaluationSequence:
    """Returns one side of one clip. Raises UserError for missing or damaged files.

    Raw: pictures, disparity and cameras belong together by frame number; with
    association="position" by position, cut to the shortest.
    # parity: positions are what Align3R's preparation uses.
    """
    parts = name.split("_")
    if len(parts) != 3 or parts[2] not in SIDES:
        raise UserError(f"'{name}' is no sequence of FlyingThings3D; one is 'A_0000_left'.")
    letter, clip, side = parts
    base = _processed(root)
    if base is not None:
        folder = files.first_folder([base / letter / clip / side], f"frames of '{name}'")
        return processed.read(folder, name, "flyingthings", frames, lambda stored: stored)
    within = Path("TEST") / letter / clip
    every = files.listed(_raw(root, options) / letter / clip / side, (".png",), "pictures")
    maps = files.listed(root / "disparity" / within / side, (".pfm",), "disparity maps")
    camera_file = root / "camera_data" / within / "camera_data.txt"
    cameras = sceneflow_files.read_camera_data(camera_file)
    if options.association == "stamps":
        files.check_no_gaps(every)
        files.same_count(every, maps, "disparity maps")
        maps = list(
            files.partners(every, lambda path: maps[0].with_name(f"{path.stem}.pfm"), "disparity")
        )
        numbers = [files.frame_number(path) for path in every]
        lacking = [n for n in numbers if n not in cameras]
        if lacking:
            raise UserError(f"'{camera_file}' has no camera of frame {lacking[0]} of '{name}'.")
        rows = [getattr(cameras[n], side) for n in numbers]
    else:
        rows = [getattr(camera, side) for camera in cameras.values()]
        shortest = min(len(every), len(maps), len(rows))
        every, maps, rows = every[:shortest], maps[:shortest], rows[:shortest]
    pictures = files.chosen(every, frames)
    (cx, cy), focal = sceneflow_files.CENTRE, sceneflow_files.FOCAL
    return EvaluationSequence(
        name, "flyingthings", tuple(pictures), files.picture_size(pictures),
        depth=files.depth_stack(frames.of(maps), _depth),
        world_from_cam=np.stack(frames.of(rows)),
        intrinsics=files.intrinsics_of(focal, focal, cx, cy, len(pictures)),
        prior_files=files.priors(pictures, "sibling"),
        notes=("Depth is in the units of the poses (the stereo baseline is 1).",),
    ).check()  # fmt: skip


def _depth(path: Path) -> np.ndarray:
    values = pfm.read_pfm(path)
    if values.ndim != 2:
        raise UserError(f"'{path}' has {values.shape[2]} channels; disparity has one.")
    return disparity.sceneflow_depth(values, sceneflow_files.FOCAL)


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
