"""Camera files and constants of SceneFlow (FlyingThings3D, Driving, Monkaa)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from align3r_jax.errors import UserError
from data.readers import poses

SIZE = (540, 960)
CENTRE = (479.5, 269.5)  # cx, cy
FOCAL = 1050.0
FOCAL_15MM = 450.0  # Driving/15mm_focallength


class FrameCameras(NamedTuple):
    """world_from_cam of the left and the right camera, (4, 4) float64, OpenCV axes."""

    left: np.ndarray
    right: np.ndarray


def read_camera_data(path: Path) -> dict[int, FrameCameras]:
    """Returns the cameras of `camera_data.txt` by frame number, in the order of the file.

    Blocks of `Frame n`, `L` and `R` with 16 numbers each: world from camera with Blender axes.
    Raises UserError that names the line.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read ({error}).") from error
    cameras: dict[int, FrameCameras] = {}
    frame: int | None = None
    sides: dict[str, np.ndarray] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        try:
            if fields[0] == "Frame":
                frame, sides = int(fields[1]), {}
                if cameras and frame <= max(cameras):
                    raise ValueError("frames must rise")
            elif fields[0] in ("L", "R") and frame is not None:
                matrix = np.array([float(value) for value in fields[1:]]).reshape(4, 4)
                sides[fields[0]] = poses.from_blender(matrix)
                if len(sides) == 2:
                    cameras[frame] = FrameCameras(sides["L"], sides["R"])
            else:
                raise ValueError("'Frame n', 'L ...' or 'R ...' expected")
        except (ValueError, IndexError) as error:
            raise UserError(
                f"'{path}', line {number}: '{line.strip()[:60]}' is not understood ({error})."
            ) from error
    if not cameras:
        raise UserError(f"'{path}' holds no cameras.")
    return cameras
