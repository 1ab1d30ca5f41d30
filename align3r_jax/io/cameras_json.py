"""The plain JSON of cameras, for whoever has them in none of the known formats.

    {
      "image_size": [1080, 1920],
      "intrinsics": {"fx": 1500, "fy": 1500, "cx": 959.5, "cy": 539.5},
      "frames": [
        {"name": "000000", "world_from_cam": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]},
        {"name": "000010", "intrinsics": [[1490, 0, 959.5], [0, 1490, 539.5], [0, 0, 1]]}
      ]
    }

`image_size`: height and width of the images that the intrinsics belong to; left out: the original
frames of the video. `intrinsics`: of every frame, or of one frame, which wins; a dictionary (fy
may be left out: fx) or a 3x3 matrix; pixel centres at integers. `frames`: any of them, each with
`name` (of the picture, with or without suffix), `time` (seconds) or `index` (position in the
source), the same one in all; `world_from_cam` 4x4 or 3x4, x right, y down, z forward, or
`cam_from_world`. Everything may be left out but something must be there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io.camera_file import CameraFile, check_pinhole

_TOP = {"image_size", "intrinsics", "frames", "comment"}
_FRAME = {"name", "time", "index", "intrinsics", "image_size", "world_from_cam", "cam_from_world",
          "comment"}  # fmt: skip
_KEYS = ("name", "time", "index")


def parse(content: Any, path: str | Path) -> CameraFile:
    """Returns the cameras of parsed JSON. Raises UserError that names what does not fit."""
    if not isinstance(content, dict):
        raise UserError(f"'{path}': expected a JSON object with intrinsics and/or frames.")
    _check_keys(content, _TOP, path, "the file")
    common = _intrinsics(content["intrinsics"], path) if "intrinsics" in content else None
    size = _size(content.get("image_size"), path)
    frames = content.get("frames", [])
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"'{path}': frames must be a list of objects.")
    if not frames:
        if common is None:
            raise UserError(f"'{path}' holds neither intrinsics nor frames.")
        return CameraFile(
            "JSON", everywhere=True, intrinsics=common[None], image_sizes=np.array([size])
        )
    key = _key(frames, path)
    unknown = np.full((3, 3), np.nan)
    intrinsics, sizes, poses = [], [], []
    for k, frame in enumerate(frames):
        where = f"'{path}', frame {k}"
        _check_keys(frame, _FRAME, path, f"frame {k}")
        own = _intrinsics(frame["intrinsics"], where) if "intrinsics" in frame else common
        intrinsics.append(unknown if own is None else own)
        sizes.append(_size(frame["image_size"], where) if "image_size" in frame else size)
        poses.append(_pose(frame, where))
    known = np.isfinite(np.array(intrinsics)).all((1, 2))
    posed = np.isfinite(np.array(poses)).all((1, 2))
    if not (known.any() or posed.any()):
        raise UserError(f"'{path}': no frame has intrinsics or a pose.")
    values = [frame[key] for frame in frames] if key else []
    return CameraFile(
        format="JSON",
        names=tuple(map(str, values)) if key == "name" else None,
        times=np.array(values, np.float64) if key == "time" else None,
        indices=np.array(values, np.int64) if key == "index" else None,
        intrinsics=np.array(intrinsics) if known.any() else None,
        image_sizes=np.array(sizes) if known.any() else None,
        world_from_cam=np.array(poses) if posed.any() else None,
    )


def _key(frames: list[dict[str, Any]], path: str | Path) -> str | None:
    used = {tuple(key for key in _KEYS if key in frame) for frame in frames}
    if used == {()}:
        return None
    if len(used) > 1 or len(next(iter(used))) > 1:
        raise UserError(
            f"'{path}': every frame must say which one it is by the same one of name, time and "
            "index."
        )
    (key,) = next(iter(used))
    kinds: dict[str, tuple[type, ...]] = {"name": (str,), "time": (int, float), "index": (int,)}
    if not all(isinstance(frame[key], kinds[key]) for frame in frames):
        raise UserError(f"'{path}': a frame's {key} is of the wrong kind.")
    return key


def _check_keys(content: dict[str, Any], known: set[str], path: str | Path, where: str) -> None:
    unknown = sorted(set(content) - known)
    if unknown:
        raise UserError(
            f"'{path}': unknown key {unknown[0]!r} in {where}; known are "
            f"{', '.join(sorted(known))}."
        )


def _intrinsics(value: Any, where: str | Path) -> np.ndarray:
    try:
        if isinstance(value, dict):
            fx, cx, cy = (float(value[name]) for name in ("fx", "cx", "cy"))
            value = [[fx, 0, cx], [0, float(value.get("fy", fx)), cy], [0, 0, 1]]
        matrix = np.asarray(value, np.float64).reshape(3, 3)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: intrinsics must be a 3x3 matrix or have fx, cx, cy and perhaps fy ({error})."
        ) from error
    return check_pinhole(matrix, str(where))


def _size(value: Any, where: str | Path) -> np.ndarray:
    if value is None:
        return np.full(2, np.nan)
    try:
        size = np.asarray(value, np.float64).reshape(2)
    except (TypeError, ValueError):
        size = np.zeros(2)
    if not (size > 0).all():
        raise UserError(f"{where}: image_size must be [height, width], got {value!r}.")
    return size


def _pose(frame: dict[str, Any], where: str) -> np.ndarray:
    if "world_from_cam" in frame and "cam_from_world" in frame:
        raise UserError(f"{where}: give world_from_cam or cam_from_world, not both.")
    for key in ("world_from_cam", "cam_from_world"):
        if key not in frame:
            continue
        try:
            pose = np.asarray(frame[key], np.float64)
            pose = np.concatenate([pose.reshape(-1, 4)[:3], [[0, 0, 0, 1]]])
            assert pose.shape == (4, 4) and np.isfinite(pose).all()
            return pose if key == "world_from_cam" else np.linalg.inv(pose)
        except (AssertionError, TypeError, ValueError, np.linalg.LinAlgError) as error:
            raise UserError(f"{where}: {key} must be a 4x4 or 3x4 matrix of numbers.") from error
    return np.full((4, 4), np.nan)
