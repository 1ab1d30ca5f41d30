"""Files and constants of SceneFlow (FlyingThings3D, Driving, Monkaa), for both kinds of readers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import pfm
from data.readers import disparity, files, poses

SIDES = ("left", "right")
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


class ClipFiles(NamedTuple):
    """T frames of one side: their files, and world_from_cam, T of (4, 4)."""

    pictures: list[Path]
    disparity: list[Path]
    world_from_cam: list[np.ndarray]


def clip_files(
    pictures: Path, maps: Path, camera_file: Path, side: str, *, by_position: bool
) -> ClipFiles:
    """Returns what belongs together in the folders of one side of a clip.

    By frame number, all of which must be there, or by position in the sorted folders and in
    `camera_data.txt`, cut to the shortest.
    # parity: positions are what Align3R's preparation uses.
    Raises UserError that names what is missing.
    """
    every = files.listed(pictures, (".png",), "pictures")
    found = files.listed(maps, (".pfm",), "disparity maps")
    cameras = read_camera_data(camera_file)
    if by_position:
        rows = [getattr(camera, side) for camera in cameras.values()]
        shortest = min(len(every), len(found), len(rows))
        return ClipFiles(every[:shortest], found[:shortest], rows[:shortest])
    files.check_no_gaps(every)
    files.same_count(every, found, "disparity maps")
    partners = files.partners(every, lambda path: maps / f"{path.stem}.pfm", "disparity")
    numbers = [files.frame_number(path) for path in every]
    lacking = [number for number in numbers if number not in cameras]
    if lacking:
        raise UserError(f"'{camera_file}' has no camera of frame {lacking[0]} of '{pictures}'.")
    return ClipFiles(every, list(partners), [getattr(cameras[number], side) for number in numbers])


def read_depth(path: Path, fx: float) -> np.ndarray:
    """Returns z of one disparity file, (H, W) float32 units of the poses, 0 where unknown."""
    values = pfm.read_pfm(path)
    if values.ndim != 2:
        raise UserError(f"'{path}' has {values.shape[2]} channels; disparity has one.")
    return disparity.sceneflow_depth(values, fx)
