"""`transforms.json` of nerfstudio and instant-ngp, read and written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io.camera_file import CameraFile, distortion_note, distortion_shift, matrix

_PINHOLES = {"OPENCV", "PINHOLE", "PERSPECTIVE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"}
# OpenGL cameras look along -z with y up.
_OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def is_nerfstudio(content: Any) -> bool:
    """Whether parsed JSON is a `transforms.json`."""
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        return False
    return any(isinstance(f, dict) and "transform_matrix" in f for f in content["frames"])


def parse(content: dict[str, Any], path: str | Path) -> CameraFile:
    """Returns the cameras of a parsed `transforms.json`.

    Keys: `fl_x`, `fl_y`, `cx`, `cy`, `w`, `h` (or `camera_angle_x` in radians with `w`), of the
    file or of a frame, which wins; `transform_matrix`, world_from_cam with OpenGL axes, 4x4 or
    3x4; `file_path`. Poses stay in the world of the file (`applied_transform` is not undone).
    A lens distortion that matters gives a note.

    Raises:
        UserError: damaged entries, fisheye cameras.
    """
    model = str(content.get("camera_model", "OPENCV")).upper()
    if model not in _PINHOLES:
        raise UserError(
            f"'{path}': the camera model is {model}; known are {', '.join(sorted(_PINHOLES))}. "
            "Undistort the video and give the cameras of that."
        )
    names, intrinsics, sizes, poses = [], [], [], []
    notes: dict[str, None] = {}
    for k, frame in enumerate(content["frames"]):
        try:
            settings = {key: value for key, value in (content | frame).items() if key != "frames"}
            pose = np.eye(4)
            pose[:3] = np.asarray(frame["transform_matrix"], np.float64)[:3]
            names.append(str(frame["file_path"]))
            values, size = _pinhole(settings)
            intrinsics.append(np.full((3, 3), np.nan) if values is None else matrix(*values))
            if values is not None and np.isfinite(size).all():
                shift = distortion_shift(settings, *values, *size)
                notes |= dict.fromkeys(distortion_note(shift, *size, f"The lens of '{path}'"))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"'{path}', frame {k} cannot be read ({error!r}).") from error
        sizes.append(size)
        poses.append(pose @ _OPENGL_FROM_OPENCV)
    known = np.isfinite(np.stack(intrinsics)).all()
    return CameraFile(
        format="nerfstudio",
        names=tuple(names),
        intrinsics=np.stack(intrinsics) if known else None,
        image_sizes=np.array(sizes, np.float64) if known else None,
        world_from_cam=np.stack(poses),
        notes=tuple(notes),
    )


def encode(
    intrinsics: np.ndarray,
    world_from_cam: np.ndarray,
    image_size: tuple[int, int],
    files: Sequence[Mapping[str, str]],
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """Returns a `transforms.json` of pinhole cameras.

    intrinsics: (T, 3, 3), pixel centres at integers (the file counts from the image's corner);
    written once if all frames share them, else per frame. world_from_cam: (T, 4, 4), x right, y
    down, z forward (the file: y up, looking along -z, in the same world). image_size: (height,
    width). files: per frame, `file_path` and, if there, `depth_file_path`, `mask_path`. extra:
    further keys of the file, such as `ply_file_path`.
    """
    height, width = image_size
    intrinsics = np.asarray(intrinsics, np.float64)
    shared = bool((intrinsics == intrinsics[0]).all())
    content: dict[str, Any] = {"camera_model": "OPENCV", "w": width, "h": height}
    if shared:
        content |= _lens(intrinsics[0])
    poses = np.asarray(world_from_cam, np.float64) @ _OPENGL_FROM_OPENCV
    content |= dict(extra or {})
    content["frames"] = [
        {**paths, **({} if shared else _lens(matrix)), "transform_matrix": pose.tolist()}
        for paths, matrix, pose in zip(files, intrinsics, poses, strict=True)
    ]
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _lens(intrinsics: np.ndarray) -> dict[str, float]:
    (fx, _, cx), (_, fy, cy) = intrinsics[:2].tolist()
    return {"fl_x": fx, "fl_y": fy, "cx": cx + 0.5, "cy": cy + 0.5}


def _pinhole(
    settings: dict[str, Any],
) -> tuple[tuple[float, float, float, float] | None, tuple[float, float]]:
    """Returns (fx, fy, cx, cy), None if not told, and (height, width), NaN if not told."""
    width, height = (float(settings.get(key, math.nan)) for key in ("w", "h"))
    fx = float(settings.get("fl_x", math.nan))
    if math.isnan(fx) and "camera_angle_x" in settings:
        fx = width / 2 / math.tan(float(settings["camera_angle_x"]) / 2)
    fy = float(settings.get("fl_y", fx))
    cx, cy = float(settings.get("cx", width / 2)), float(settings.get("cy", height / 2))
    if not np.isfinite([fx, fy, cx, cy]).all():
        return None, (height, width)
    if min(fx, fy) <= 0:
        raise ValueError(f"focals {fx} and {fy}")
    return (fx, fy, cx, cy), (height, width)
