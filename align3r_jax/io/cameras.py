"""Cameras that a user has: any known file, and which frame of the video each belongs to.

| what | recognised by |
|---|---|
| COLMAP | a folder with `cameras.bin` or `.txt` (also in `sparse/0`), or one of these files |
| nerfstudio | `transforms.json`, or a folder that holds one |
| a result of ours | a folder with `pred_traj.txt` |
| TUM trajectory | lines of eight numbers `t x y z qx qy qz qw` |
| intrinsics | lines of nine numbers, or one 3x3 matrix |
| plain JSON | `cameras_json` |
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import cameras_json, colmap, images, nerfstudio, trajectory
from align3r_jax.io.camera_file import CameraFile

_COLMAP_FILES = ("cameras.bin", "cameras.txt", "images.bin", "images.txt")
_RESULT_TRAJECTORY, _RESULT_INTRINSICS = "pred_traj.txt", "pred_intrinsics_original.txt"


class NamedFrames(Protocol):
    """What cameras are matched to, e.g. `structs.Frames`: unique names, times in seconds."""

    @property
    def num_frames(self) -> int:
        """T."""

    @property
    def names(self) -> tuple[str, ...]:
        """(T,)."""

    @property
    def times(self) -> Any:
        """(T,)."""


class FrameCameras(NamedTuple):
    """What is known of the camera of every frame, NaN where nothing.

    intrinsics: (T, 3, 3) pixels of images of `image_sizes` (T, 2), height and width (NaN: the
    original frames), or None. world_from_cam: (T, 4, 4) or None. notes: sentences for the reader.
    """

    intrinsics: np.ndarray | None
    image_sizes: np.ndarray | None
    world_from_cam: np.ndarray | None
    notes: tuple[str, ...]


def read_cameras(path: str | Path) -> CameraFile:
    """Returns the cameras of a file or folder; its content says which format it is.

    Raises:
        UserError: nothing there, an unknown format, damaged content.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f"The cameras '{path}' do not exist: give a file, or a folder of COLMAP.")
    if path.name in _COLMAP_FILES and colmap.find(path.parent) == path.parent:
        return colmap.read_colmap(path.parent)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read as text ({error}); {_known()}") from error
    if text.lstrip()[:1] in ("{", "["):
        return _read_json(path, text)
    return _read_rows(path, text)


def match(file: CameraFile, frames: NamedFrames) -> FrameCameras:
    """Returns the file's cameras in the order of the frames; frames without one are unknown.

    By name: the stem of the picture, with as much of its folder as the frame's name has; else the
    number at its end (one note); by time: the nearest one within half the spacing of the frames,
    each camera once (the names of the frames are the clock if they are all decimal numbers, as in
    the data of TUM); else in order, if there are as many cameras as frames.

    Raises:
        UserError: several cameras claim one frame, or none belongs to any.
    """
    count = frames.num_frames
    notes = list(file.notes)
    if file.everywhere:
        chosen = np.zeros(count, int)
    elif file.names is not None:
        chosen = _by_name(file, frames, notes)
    elif file.times is not None:
        chosen = _by_time(file, frames, notes)
    elif file.indices is not None:
        chosen = _by_index(file, frames)
    else:
        chosen = _in_order(file, frames, notes, "nothing in it names a frame")
    if (chosen < 0).all():
        raise UserError(
            f"None of the {file.count} cameras ({file.format}) belongs to a frame of the video: "
            f"{_example(file)}, but the first frame is '{frames.names[0]}' at "
            f"{frames.times[0]:.3f} s. Rename them, or give one camera for every frame in order."
        )
    missing = int((chosen < 0).sum())
    if missing:
        notes.append(
            f"The cameras ({file.format}) know {count - missing} of {count} frames; the others "
            "are estimated."
        )

    def pick(values: np.ndarray | None) -> np.ndarray | None:
        if values is None:
            return None
        picked = np.asarray(values, np.float64)[np.maximum(chosen, 0)]
        picked[chosen < 0] = np.nan
        return picked if np.isfinite(picked).any() else None

    intrinsics = pick(file.intrinsics)
    sizes = None if intrinsics is None else pick(file.image_sizes)
    return FrameCameras(intrinsics, sizes, pick(file.world_from_cam), tuple(notes))


def _read_folder(folder: Path) -> CameraFile:
    model = colmap.find(folder)
    if model is not None:
        return colmap.read_colmap(model)
    transforms = folder / "transforms.json"
    if transforms.is_file():
        return read_cameras(transforms)
    if (folder / _RESULT_TRAJECTORY).is_file():
        times, poses = trajectory.read_tum(folder / _RESULT_TRAJECTORY)
        intrinsics = trajectory.read_intrinsics(folder / _RESULT_INTRINSICS)
        if len(intrinsics) != len(poses):
            raise UserError(f"'{folder}': {len(poses)} poses but {len(intrinsics)} intrinsics.")
        return CameraFile("result", times=times, intrinsics=intrinsics, world_from_cam=poses)
    raise UserError(f"The folder '{folder}' holds no cameras; {_known()}")


def _known() -> str:
    return (
        "known are COLMAP folders (cameras.bin or .txt), transforms.json of nerfstudio, TUM "
        "trajectories, lines of nine intrinsics, and plain JSON (docs/alignment.md)."
    )


def _read_json(path: Path, text: str) -> CameraFile:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"'{path}' is not valid JSON ({error}).") from error
    if nerfstudio.is_nerfstudio(content):
        return nerfstudio.parse(content, path)
    return cameras_json.parse(content, path)


def _read_rows(path: Path, text: str) -> CameraFile:
    lines = (line.split("#")[0].replace(",", " ").split() for line in text.splitlines())
    columns = next((len(fields) for fields in lines if fields), 0)
    if columns == 8:
        times, poses = trajectory.read_tum(path)
        return CameraFile("TUM", times=times, world_from_cam=poses)
    if columns in (3, 9):
        intrinsics = trajectory.read_intrinsics(path)
        return CameraFile("intrinsics", everywhere=len(intrinsics) == 1, intrinsics=intrinsics)
    raise UserError(f"'{path}' holds no cameras ({columns} columns in its first line); {_known()}")


def _by_name(file: CameraFile, frames: NamedFrames, notes: list[str]) -> np.ndarray:
    assert file.names is not None
    given = [_without_suffix(Path(name)) for name in file.names]
    found = [
        _look_up([key(path) for path in given], list(frames.names))
        for key in (lambda path: "_".join(path.parts), lambda path: path.name)
    ]
    chosen, twice = max(found, key=lambda result: (result[0] >= 0).sum())
    if (chosen >= 0).any():
        if twice:
            raise UserError(
                f"The cameras ({file.format}) hold the frame '{twice}' more than once; keep the "
                "one that belongs to this video."
            )
        return chosen
    numbers, wanted = [_number(path.name) for path in given], list(map(_number, frames.names))
    if None not in numbers and None not in wanted:
        chosen, twice = _look_up(numbers, wanted)
        if (chosen >= 0).any() and not twice:
            first = int(np.argmax(chosen >= 0))
            notes.append(
                f"The cameras ({file.format}) are named otherwise than the frames and were matched "
                f"by number: '{file.names[chosen[first]]}' is taken for '{frames.names[first]}'."
            )
            return chosen
    return _in_order(file, frames, notes, f"'{file.names[0]}' is not the name of a frame")


def _by_index(file: CameraFile, frames: NamedFrames) -> np.ndarray:
    assert file.indices is not None
    wanted = [int(name) if name.isdecimal() else None for name in frames.names]
    if None in wanted:
        raise UserError(
            f"The cameras ({file.format}) number frames by index, but the frames are pictures with "
            f"names such as '{frames.names[0]}'; give name instead of index."
        )
    chosen, twice = _look_up(file.indices.tolist(), wanted)
    if twice is not None:
        raise UserError(f"The cameras ({file.format}) hold the frame {twice} more than once.")
    return chosen


def _by_time(file: CameraFile, frames: NamedFrames, notes: list[str]) -> np.ndarray:
    assert file.times is not None
    given, clock = np.asarray(file.times, np.float64), np.asarray(frames.times, np.float64)
    if all(name.count(".") == 1 and name.replace(".", "").isdecimal() for name in frames.names):
        clock = np.array([float(name) for name in frames.names])
    distance = np.abs(given[None] - clock[:, None])
    nearest = distance.argmin(axis=1)
    close = distance.min(axis=1) <= np.median(np.diff(clock)) / 2 + 1e-6
    # A camera belongs to the nearest frame alone.
    close &= distance.argmin(axis=0)[nearest] == np.arange(len(clock))
    if close.any():
        return np.where(close, nearest, -1)
    reason = (
        f"its times, {given[0]:.2f} to {given[-1]:.2f} s, are of another clock than the frames', "
        f"{clock[0]:.2f} to {clock[-1]:.2f} s"
    )
    return _in_order(file, frames, notes, reason)


def _in_order(file: CameraFile, frames: NamedFrames, notes: list[str], reason: str) -> np.ndarray:
    if file.count != frames.num_frames:
        raise UserError(
            f"The {file.count} cameras ({file.format}) cannot be matched to the "
            f"{frames.num_frames} frames: {reason}, and their numbers differ. Give cameras with "
            "the names or times of the frames, or exactly one per frame."
        )
    notes.append(f"The cameras ({file.format}) were taken in the order of the frames: {reason}.")
    return np.arange(frames.num_frames)


def _look_up(given: list, wanted: list) -> tuple[np.ndarray, object | None]:
    """Returns the index into `given` of each wanted key, -1 if missing, and a key given twice."""
    position = {key: k for k, key in reversed(list(enumerate(given)))}
    twice = next((key for key in wanted if given.count(key) > 1), None)
    return np.array([position.get(key, -1) for key in wanted]), twice


def _without_suffix(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in images.SUFFIXES else path


def _number(name: str) -> int | None:
    digits = name[len(name.rstrip("0123456789")) :]
    return int(digits) if digits else None


def _example(file: CameraFile) -> str:
    if file.names is not None:
        return f"the first is named '{file.names[0]}'"
    if file.times is not None:
        return f"the first is at {file.times[0]:.3f} s"
    return "the first is frame " + (str(file.indices[0]) if file.indices is not None else "0")
