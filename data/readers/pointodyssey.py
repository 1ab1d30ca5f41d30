"""PointOdyssey, validation split: long synthetic videos; raw or processed layout.

Raw: `val/SCENE/rgbs/rgb_00000.jpg`, `depths/depth_00000.png`, `anno.npz`.
Processed: `PointOdyssey_proc/val/SCENE/00000_rgb.jpg` and so on (`processed.py`).
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from align3r_jax.errors import UserError
from data.readers import files, poses, processed
from data.readers.sequence import DatasetReader, EvaluationSequence, FrameSlice, ReaderOptions


def _scenes(root: Path) -> Path:
    candidates = (root / "PointOdyssey_proc" / "val", root / "val")
    return next((folder for folder in candidates if folder.is_dir()), root)


def found(root: Path, options: ReaderOptions) -> list[str]:
    """Names of the scenes, of either layout."""
    base = _scenes(root)
    return [
        name
        for name in files.subfolders(base)
        if (base / name / "rgbs").is_dir() or processed.is_sequence(base / name)
    ]


def read(
    root: Path, name: str, task: str, options: ReaderOptions, frames: FrameSlice
) -> EvaluationSequence:
    """Returns one scene. Raises UserError for missing or damaged files."""
    folder = files.first_folder([_scenes(root) / name], f"scene '{name}'")
    if processed.is_sequence(folder):
        return processed.read(
            folder, name, "pointodyssey", frames, poses.from_processed_pointodyssey
        )
    every = files.listed(folder / "rgbs", (".jpg",), "pictures")
    files.check_no_gaps(every)
    maps = files.listed(folder / "depths", (".png",), "depth maps")
    files.same_count(every, maps, "depth maps")
    pictures = files.chosen(every, frames)
    depth = files.partners(
        pictures,
        lambda path: folder / "depths" / f"{path.stem.replace('rgb', 'depth')}.png",
        "depth map",
    )
    intrinsics, extrinsics = read_cameras(folder / "anno.npz")
    if len(extrinsics) != len(every):
        raise UserError(
            f"'{folder / 'anno.npz'}' has {len(extrinsics)} cameras for {len(every)} pictures of "
            f"'{folder / 'rgbs'}': frames are missing in one of them."
        )
    rows = frames.of(range(len(every)))
    return EvaluationSequence(
        name, "pointodyssey", tuple(pictures), files.picture_size(pictures),
        # 255 values are 3.9 m here: small values are no sign of 8 bits.
        depth=files.depth_png16(depth, "pointodyssey", refuse_small=False),
        world_from_cam=poses.from_extrinsics(extrinsics[rows]), intrinsics=intrinsics[rows],
        prior_files=files.priors(pictures, "sibling"),
    ).check()  # fmt: skip


def read_cameras(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns intrinsics (T, 3, 3) and cam_from_world (T, 4, 4), float64. Raises UserError."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            intrinsics = np.asarray(stored["intrinsics"], np.float64)
            extrinsics = np.asarray(stored["extrinsics"], np.float64)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"'{path}' holds no cameras that can be read ({error}).") from error
    if intrinsics.shape[1:] != (3, 3) or extrinsics.shape != (len(intrinsics), 4, 4):
        raise UserError(
            f"'{path}': intrinsics {intrinsics.shape} and extrinsics {extrinsics.shape}; expected "
            "(T, 3, 3) and (T, 4, 4)."
        )
    return intrinsics, extrinsics


READER = DatasetReader(
    name="pointodyssey",
    tasks=("video_depth", "single_depth", "camera_pose"),
    layout="val/SCENE/rgbs/rgb_00000.jpg and so on, or PointOdyssey_proc/val/SCENE/00000_rgb.jpg",
    found=found,
    read=read,
    default_list={"": "found"},
    default_frames={"": FrameSlice(0, 1, 110)},
)
