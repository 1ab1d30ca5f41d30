"""SceneFlow for training: Driving, Monkaa and FlyingThings3D; raw or processed layout.

Raw, below the root or below a folder of the part's name: `frames_finalpass`, `disparity` and
`camera_data`, of which each holds `TRAIN/A/0000` (FlyingThings3D),
`15mm_focallength/scene_forwards/fast` (Driving) or `a_rain_of_stones_x2` (Monkaa), with `left` and
`right`. Processed: `FlyingThings3D_proc`, `Driving_proc`, `Monkaa_proc` (`processed.py`).
Depth is in the units of the poses: the stereo baseline is 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from align3r_jax.errors import UserError
from data.readers import files, processed_training, sceneflow_files, training_frames
from data.readers.training import SkippedScene, TrainingOptions, TrainingReader, TrainingScene

_FRAMES = "frames_finalpass"
_SHORT_FOCAL = "15mm_focallength"
_FOCALS = (_SHORT_FOCAL, "35mm_focallength")
_SPLITS = {"train": "TRAIN", "test": "TEST"}


class _Part(NamedTuple):
    """folders: names that the raw part may have below the root, in lower case. processed: that of
    the processed part. clips: (folder, split) -> clips below it that may have sides.
    """

    folders: tuple[str, ...]
    processed: str
    clips: Callable[[Path, str], list[Path]]


class _Side(NamedTuple):
    """base: of the part. clip: below the base's folders."""

    base: Path
    clip: Path
    side: str
    processed: bool


def _flyingthings(base: Path, split: str) -> list[Path]:
    top = Path(_SPLITS[split])
    return [
        top / letter / clip
        for letter in files.subfolders(base / top)
        for clip in files.subfolders(base / top / letter)
    ]


def _driving(base: Path, split: str) -> list[Path]:
    return [
        Path(focal, scene, speed)
        for focal in _FOCALS
        for scene in files.subfolders(base / focal)
        for speed in files.subfolders(base / focal / scene)
    ]


def _monkaa(base: Path, split: str) -> list[Path]:
    others = {*_FOCALS, *_SPLITS.values()}
    return [Path(name) for name in files.subfolders(base) if name not in others]


# In the order in which the papers draw from them.
_PARTS = {
    "driving": _Part(("driving",), "Driving_proc", _driving),
    "monkaa": _Part(("monkaa",), "Monkaa_proc", _monkaa),
    "flyingthings": _Part(("flyingthings3d", "flyingthings"), "FlyingThings3D_proc", _flyingthings),
}


def scenes(root: Path, options: TrainingOptions) -> tuple[list[TrainingScene], list[SkippedScene]]:
    """Returns the sides of all clips: Driving, Monkaa, FlyingThings3D TRAIN; or its TEST.

    Raw files belong together by frame number; with `options.parity` by position.
    A part that is not there is among those skipped. Raises UserError if a part without test clips
    is asked for test.
    """
    parts = list(_PARTS) if options.variant is None else [options.variant]
    if options.split == "test":
        parts = [part for part in parts if part == "flyingthings"]
        if not parts:
            raise UserError(
                f"{options.variant} of SceneFlow has no test clips; those of SceneFlow are the "
                "TEST folder of FlyingThings3D (variant='flyingthings')."
            )
    found: list[TrainingScene] = []
    skipped: list[SkippedScene] = []
    absent: list[SkippedScene] = []
    for part in parts:
        sides = _sides(root, _PARTS[part], options.split)
        if not sides:
            reason = f"'{root}' holds no {options.split} clips of {part}."
            absent.append(SkippedScene(part, reason))
        named = [("_".join((part, *item.clip.parts, item.side)), item) for item in sides]
        read, failed = training_frames.gather(named, functools.partial(_scene, options))
        found += read
        skipped += failed
    return found, (skipped + absent if found or skipped else [])


def _sides(root: Path, part: _Part, split: str) -> list[_Side]:
    """All sides of the part below the first folder that has any; processed before raw."""
    prepared = [root] if root.name == part.processed else [root / part.processed]
    raw = [root / name for name in files.subfolders(root) if name.lower() in part.folders]
    bases = [(base, True) for base in prepared] + [(base, False) for base in (*raw, root)]
    for base, processed in bases:
        top = base if processed else base / _FRAMES
        sides = [
            _Side(base, clip, side, processed)
            for clip in part.clips(top, split)
            for side in files.subfolders(top / clip)
            if side in sceneflow_files.SIDES
        ]
        if sides:
            return sides
    return []


def _scene(options: TrainingOptions, name: str, item: _Side) -> TrainingScene:
    base, clip, side, processed = item
    if processed:
        folder = base / clip / side
        return processed_training.processed_scene(folder, name, "sceneflow", options)
    found = sceneflow_files.clip_files(
        base / _FRAMES / clip / side,
        base / "disparity" / clip / side,
        base / "camera_data" / clip / "camera_data.txt",
        side,
        by_position=options.parity,
    )
    short = clip.parts[0] == _SHORT_FOCAL
    focal = sceneflow_files.FOCAL_15MM if short else sceneflow_files.FOCAL
    (cx, cy), count = sceneflow_files.CENTRE, len(found.pictures)
    return training_frames.file_scene(
        "sceneflow", name, found.pictures, found.disparity, _depth,
        files.intrinsics_of(focal, focal, cx, cy, count),
        np.reshape(found.world_from_cam, (count, 4, 4)), options,
    )  # fmt: skip


def _depth(path: Path, intrinsics: np.ndarray) -> np.ndarray:
    return sceneflow_files.read_depth(path, float(intrinsics[0, 0]))


TRAINING = TrainingReader(
    name="sceneflow",
    layout="frames_finalpass, disparity and camera_data of FlyingThings3D (TRAIN/A/0000/left/"
    "0006.png), Driving (15mm_focallength/scene_forwards/fast/left/0001.png) or Monkaa "
    "(SCENE/left/0000.png), each below a folder of its name or all in one; or "
    "FlyingThings3D_proc/TRAIN/A/0000/left/0006_rgb.jpg, Driving_proc, Monkaa_proc",
    scenes=scenes,
    variants={
        "flyingthings": "FlyingThings3D alone",
        "driving": "Driving alone",
        "monkaa": "Monkaa alone",
    },
)
