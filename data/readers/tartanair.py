"""TartanAir for training: synthetic flights through many places, 640 x 480, two cameras.

Raw: `PLACE/{Easy,Hard}/P000/{image_left,depth_left,image_right,depth_right}/`, with
`000000_left.png`, `000000_left_depth.npy` and one line per frame in `pose_left.txt`.
Processed (`processed.py`): `PLACE_Easy_P000_left/`. Depth is in metres.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from align3r_jax.errors import UserError
from data.readers import files, poses, processed_training, training_frames
from data.readers.training import SkippedScene, TrainingOptions, TrainingReader, TrainingScene

# Align3R does not unpack these.
LEFT_OUT = (
    "abandonedfactory",
    "abandonedfactory_night",
    "amusement",
    "carwelding",
    "endofworld",
    "gascola",
)
# Flights of one place cross, so a whole place is held out for test.
_HELD_OUT = "japanesealley"
_FOCAL, _CENTRE = 320.0, (320.0, 240.0)
_LEVELS, _SIDES = ("Easy", "Hard"), ("left", "right")
_PROCESSED = re.compile(r"(.+)_(Easy|Hard)_(P[0-9]+)_(left|right)")


class _Choice(NamedTuple):
    """What of the set is read."""

    levels: tuple[str, ...]
    sides: tuple[str, ...]
    left_out: tuple[str, ...]


_CHOICES = {
    "easy": _Choice(("Easy",), _SIDES, LEFT_OUT),
    "hard": _Choice(("Hard",), _SIDES, LEFT_OUT),
    "hard_left": _Choice(("Hard",), ("left",), ()),
    "all": _Choice(_LEVELS, _SIDES, ()),
}


class _Flight(NamedTuple):
    """folder: of the flight if raw, of the side's frames if processed."""

    place: str
    level: str
    flight: str
    side: str
    folder: Path
    processed: bool

    @property
    def name(self) -> str:
        return "_".join((self.place, self.level, self.flight, self.side))


def scenes(root: Path, options: TrainingOptions) -> tuple[list[TrainingScene], list[SkippedScene]]:
    """Returns the flights of the variant, "easy" by default, sorted by name.

    Places that the variant leaves out are among those skipped. We hold `japanesealley` out for
    test; with `options.parity` both splits take every place, as the published loaders do.
    """
    choice = _CHOICES[options.variant or "easy"]
    flights = [
        flight
        for flight in _processed(root) or _raw(root)
        if flight.level in choice.levels and flight.side in choice.sides
    ]
    left_out = sorted({item.place for item in flights} & set(choice.left_out))
    flights = training_frames.of_split(
        [item for item in flights if item.place not in left_out],
        options,
        lambda item: item.place == _HELD_OUT,
    )
    found, skipped = training_frames.gather(
        [(item.name, item) for item in sorted(flights)], functools.partial(_scene, options)
    )
    reason = "Align3R leaves this place out; variant='all' reads it."
    return found, skipped + [SkippedScene(place, reason) for place in left_out]


def _raw(root: Path) -> list[_Flight]:
    found = []
    for place in files.subfolders(root):
        # The archives repeat the name of the place.
        base = root / place / place if (root / place / place).is_dir() else root / place
        for level in _LEVELS:
            for flight in files.subfolders(base / level):
                folder = base / level / flight
                there = set(files.subfolders(folder))
                found += [
                    _Flight(place, level, flight, side, folder, False)
                    for side in _SIDES
                    if f"image_{side}" in there
                ]
    return found


def _processed(root: Path) -> list[_Flight]:
    """The processed folders in the root, or in the first folder of it called `..._proc`."""
    below = [root / name for name in files.subfolders(root) if name.endswith("_proc")]
    for base in (root, *below):
        found = []
        for name in files.subfolders(base):
            match = _PROCESSED.fullmatch(name)
            if match:
                place, level, flight, side = match.groups()
                found.append(_Flight(place, level, flight, side, base / name, True))
        if found:
            return found
    return []


def _scene(options: TrainingOptions, name: str, item: _Flight) -> TrainingScene:
    if item.processed:
        return processed_training.processed_scene(item.folder, name, "tartanair", options)
    pictures = files.listed(item.folder / f"image_{item.side}", (".png",), "pictures")
    files.check_no_gaps(pictures)
    depth_folder = item.folder / f"depth_{item.side}"
    depths = files.partners(
        pictures, lambda path: depth_folder / f"{path.stem}_depth.npy", "depth map"
    )
    pose_file = item.folder / f"pose_{item.side}.txt"
    lines = files.number_table(pose_file, 7)
    if len(lines) != len(pictures):
        raise UserError(
            f"'{pose_file}' has {len(lines)} poses for {len(pictures)} pictures of "
            f"'{pictures[0].parent}': frames are missing in one of them."
        )
    if not np.linalg.norm(lines[:, 3:], axis=1).all():
        raise UserError(f"'{pose_file}' has a quaternion of zeros.")
    (camera,) = files.intrinsics_of(_FOCAL, _FOCAL, *_CENTRE, 1)
    return training_frames.file_scene(
        "tartanair", name, pictures, depths, _depth, camera, poses.from_ned_lines(lines), options
    )


def _depth(path: Path, intrinsics: np.ndarray) -> np.ndarray:
    try:
        depth = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"The depth file '{path}' cannot be read ({error}).") from error
    if not isinstance(depth, np.ndarray) or depth.ndim != 2 or depth.dtype.kind != "f":
        raise UserError(f"'{path}' does not hold a depth map, (H, W) floats.")
    return depth


TRAINING = TrainingReader(
    name="tartanair",
    layout="PLACE/Easy/P000/{image_left,depth_left}/ and pose_left.txt, or "
    "PLACE_Easy_P000_left/000000_rgb.jpg and so on",
    scenes=scenes,
    variants={
        "easy": "Easy, both cameras, without six places, as Align3R trains",
        "hard": "Hard, both cameras, without the same places",
        "hard_left": "Hard, left cameras, every place, as MonST3R trains",
        "all": "Easy and Hard, both cameras, every place",
    },
)
