"""Where things lie in a folder of one's own, docs/training_data.md: scenes, pictures, cameras."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from align3r_jax.errors import UserError
from align3r_jax.io import cameras as camera_files
from align3r_jax.io import colmap, depth_files, images
from align3r_jax.io.camera_file import CameraFile, check_pinhole
from data.readers import files
from data.readers.training import SPLITS

PICTURE_FOLDERS = ("images", "rgb", "color", "frames")
DEPTH_FOLDERS = ("depth", "depths")
TRAJECTORIES = ("trajectory.txt", "poses.txt", "groundtruth.txt")
INTRINSICS = ("intrinsics.txt", "K.txt")
NEARLY_RIGID = 1e-2  # what rounding to three digits does to R^T R
_PROPORTIONS = 0.01  # by how much the sides' ratio of pictures and intrinsics may differ


class Cameras(NamedTuple):
    """Of every frame, NaN where unknown. intrinsics: (T, 3, 3) of images of `sizes` (T, 2),
    height and width, NaN: the pictures. world_from_cam: (T, 4, 4) as in the file. notes: what was
    assumed or left out."""

    intrinsics: np.ndarray
    sizes: np.ndarray
    world_from_cam: np.ndarray
    notes: tuple[str, ...]


class _Names(NamedTuple):
    names: tuple[str, ...]
    times: np.ndarray

    @property
    def num_frames(self) -> int:
        return len(self.names)


def scene_folders(root: Path, split: str) -> list[tuple[str, Path]]:
    """Returns the names and folders of the scenes of a split: subfolders, or the root alone.

    A root with a folder `train` or `test` has splits, else everything is for training.
    """
    if any((root / name).is_dir() for name in SPLITS):
        root = root / split
    elif split != "train":
        return []
    if _first(root, PICTURE_FOLDERS) is not None:
        return [(root.absolute().name, root)]
    return [(name, root / name) for name in files.subfolders(root)]


def picture_files(folder: Path) -> list[Path]:
    """Returns the pictures of a scene in natural order. Raises UserError if there are none."""
    place = _first(folder, PICTURE_FOLDERS)
    if place is None:
        raise UserError(
            f"'{folder}' has no folder of pictures ({', '.join(PICTURE_FOLDERS)}): it is no scene."
        )
    return images.list_images(place)


def same_names(pictures: Sequence[Path]) -> list[str]:
    """Returns the names (without ending) that several pictures have."""
    counts = collections.Counter(path.stem.lower() for path in pictures)
    return sorted(name for name, count in counts.items() if count > 1)


def depth_of(folder: Path, pictures: Sequence[Path]) -> list[Path | None]:
    """Returns the depth file of every picture, None where there is none. Raises UserError."""
    place = _first(folder, DEPTH_FOLDERS)
    if place is None:
        raise UserError(f"'{folder}' has no folder of depth maps ({', '.join(DEPTH_FOLDERS)}).")
    return depth_files.match_depth_files(place, [path.stem for path in pictures])


def read_depth(path: Path) -> np.ndarray:
    """Returns z, (H, W) float32, NaN where unknown; of inverse depth (`depth.json`), 1 / value.

    Raises UserError for damaged files, and for inverse depth that is not said to be metric.
    """
    depth = depth_files.read_depth(path).depth
    sidecar = depth_files.read_sidecar(path.parent)
    if not sidecar.get("inverse", False):
        return depth
    if not sidecar.get("metric", False):
        raise UserError(
            f"'{path.parent / depth_files.SIDECAR}' says that depth is inverse but not that it is "
            "metric: depth up to an unknown scale and shift cannot be trained on."
        )
    with np.errstate(divide="ignore"):
        return np.where(depth > 0, 1 / depth, np.float32(np.nan)).astype(np.float32)


def read_cameras(folder: Path, pictures: Sequence[Path]) -> Cameras:
    """Returns the cameras of a scene in the order of its pictures.

    `cameras.json`, `transforms.json`, a COLMAP model (in the scene, `sparse/0`, `colmap`), or a
    trajectory with `intrinsics.txt`; intrinsics that the first three lack are taken from it too.
    Raises UserError if there are none, several, or they cannot be read or matched.
    """
    sources = [folder / name for name in ("cameras.json", "transforms.json", *TRAJECTORIES)]
    sources = [path for path in sources if path.is_file()]
    model = colmap.find(folder)
    if model is not None:
        sources.append(model)
    if len(sources) != 1:
        found = " and ".join(f"'{path.name}'" for path in sources) or "no cameras"
        raise UserError(
            f"'{folder}' holds {found}; expected one of cameras.json, transforms.json, a COLMAP "
            f"model in sparse/0, or {' / '.join(TRAJECTORIES)} with {INTRINSICS[0]}."
        )
    names = tuple(path.stem for path in pictures)
    poses = _matched(camera_files.read_cameras(sources[0]), names)
    if poses.world_from_cam is None:
        raise UserError(f"'{sources[0]}' holds no poses.")
    lens = poses
    if lens.intrinsics is None:
        given = [folder / name for name in INTRINSICS if (folder / name).is_file()]
        if not given:
            raise UserError(f"'{sources[0]}' holds no intrinsics, and there is no {INTRINSICS[0]}.")
        lens = _matched(camera_files.read_cameras(given[0]), names)
        if lens.intrinsics is None:
            raise UserError(f"'{given[0]}' holds no intrinsics.")
    known = np.isfinite(lens.intrinsics).all((1, 2))
    check_pinhole(lens.intrinsics[known], str(folder))
    unknown = np.full((len(names), 2), np.nan)
    sizes = unknown if lens.image_sizes is None else lens.image_sizes
    notes = dict.fromkeys(poses.notes + lens.notes)
    return Cameras(lens.intrinsics, sizes, poses.world_from_cam, tuple(notes))


def of_picture(
    intrinsics: np.ndarray, size: np.ndarray, picture: tuple[int, int], where: str
) -> np.ndarray:
    """Returns (3, 3) intrinsics of images of `size` (NaN: of the picture) for the picture's size.

    fx s, (c + 1/2) s - 1/2 with s of either side. Raises UserError for other proportions.
    """
    if not np.isfinite(size).all():
        return intrinsics
    height, width = np.asarray(picture) / size
    if abs(height / width - 1) > _PROPORTIONS:
        raise UserError(
            f"{where}: the intrinsics are of images of {size[1]:.0f} x {size[0]:.0f} pixels, the "
            f"picture has {picture[1]} x {picture[0]}: other proportions."
        )
    scaled = intrinsics.copy()
    scaled[:2, 2] += 0.5
    scaled[0] *= width
    scaled[1] *= height
    scaled[:2, 2] -= 0.5
    return scaled


def rigid(pose: np.ndarray, where: str) -> np.ndarray:
    """Returns the nearest rigid motion. Raises UserError if the pose is far from one."""
    turn = pose[:3, :3]
    error = np.abs(turn.T @ turn - np.eye(3)).max()
    if not error < NEARLY_RIGID or np.linalg.det(turn) < 0:
        lengths = ", ".join(f"{value:.3g}" for value in np.linalg.norm(turn, axis=0))
        mirrored = " and mirrors" if np.linalg.det(turn) < 0 else ""
        raise UserError(
            f"{where}: the pose is no rigid motion: its columns have the lengths {lengths}"
            f"{mirrored}; a rotation has 1, 1, 1 and a positive determinant."
        )
    left, _, right = np.linalg.svd(turn)
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = left @ right, pose[:3, 3]
    return result


def picture_size(path: Path) -> tuple[int, int]:
    """Returns (H, W) of a picture as it is loaded, turned upright. Raises UserError."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except (OSError, ValueError, SyntaxError, EOFError, TypeError) as error:
        raise UserError(f"The picture '{path}' cannot be read ({error}).") from error
    return (width, height) if turned else (height, width)


def _matched(file: CameraFile, names: tuple[str, ...]) -> camera_files.FrameCameras:
    frames = _Names(names, np.arange(len(names), dtype=np.float64))
    stamped = all(name.count(".") == 1 and name.replace(".", "").isdecimal() for name in names)
    if file.times is not None and not stamped:
        file = dataclasses.replace(file, times=None)  # pictures without a clock: in their order
    matched = camera_files.match(file, frames)
    # Frames without a camera are told one by one elsewhere, and nothing estimates them here.
    return matched._replace(notes=tuple(n for n in matched.notes if "are estimated" not in n))


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)
