"""`transforms.json` of nerfstudio and instant-ngp."""

from __future__ import annotations

import math
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
