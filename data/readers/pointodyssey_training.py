"""PointOdyssey for training: long synthetic videos; raw or processed layout.

Raw: `train/SCENE/rgbs/rgb_00000.jpg`, `depths/depth_00000.png`, `anno.npz`, `info.npz`.
Processed: `PointOdyssey_proc/train/SCENE/0000_rgb.jpg` and so on (`processed.py`). Depth is in
metres. The validation scenes are the test split; evaluation reads them by `pointodyssey.py`.
"""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import png16
from data.readers import files, pointodyssey, poses, processed, processed_training, training_frames
from data.readers.training import SkippedScene, TrainingOptions, TrainingReader, TrainingScene

_MONST3R = "monst3r"
_FEWEST_TRAJECTORIES = 16


def scenes(root: Path, options: TrainingOptions) -> tuple[list[TrainingScene], list[SkippedScene]]:
    """Returns the scenes of the folder of the split (`train`, or `val` for test).

    # parity: with `options.parity` the test split takes the training scenes, as the papers do.
    Variant "monst3r" skips raw scenes of at most 16 trajectories.
    """
    wanted = "train" if options.split == "train" or options.parity else "val"
    base = _base(root, wanted)
    if base is None:
        return [], []
    named = [(name, base / name) for name in files.subfolders(base) if _is_scene(base / name)]
    return training_frames.gather(named, functools.partial(_scene, options))


def _is_scene(folder: Path) -> bool:
    return (folder / "rgbs").is_dir() or processed.is_sequence(folder)


def _base(root: Path, split: str) -> Path | None:
    """The folder of the split; a root that holds scenes itself is one of the split of its name."""
    candidates = [root / "PointOdyssey_proc" / split, root / split]
    if root.name == split or (split == "train" and root.name not in ("val", "test")):
        candidates.append(root)
    for base in candidates:
        if any(_is_scene(base / name) for name in files.subfolders(base)):
            return base
    return None


def _scene(options: TrainingOptions, name: str, folder: Path) -> TrainingScene:
    if processed.is_sequence(folder):
        if options.variant == _MONST3R:
            raise UserError(
                f"'{folder}' is processed, so nothing tells how many trajectories it has; "
                f"variant='{_MONST3R}' needs the raw layout with its info.npz."
            )
        return processed_training.processed_scene(
            folder, name, "pointodyssey", options, poses.from_processed_pointodyssey
        )
    if options.variant == _MONST3R:
        count = _trajectories(folder / "info.npz")
        if count <= _FEWEST_TRAJECTORIES:
            raise UserError(
                f"'{folder}' has {count} trajectories; variant='{_MONST3R}' takes scenes of more "
                f"than {_FEWEST_TRAJECTORIES}."
            )
    pictures = files.listed(folder / "rgbs", (".jpg",), "pictures")
    files.check_no_gaps(pictures)
    depths = files.partners(
        pictures,
        lambda path: folder / "depths" / f"{path.stem.replace('rgb', 'depth')}.png",
        "depth map",
    )
    intrinsics, extrinsics = pointodyssey.read_cameras(folder / "anno.npz")
    if len(extrinsics) != len(pictures):
        raise UserError(
            f"'{folder / 'anno.npz'}' has {len(extrinsics)} cameras for {len(pictures)} pictures "
            f"of '{folder / 'rgbs'}': frames are missing in one of them."
        )
    return training_frames.file_scene(
        "pointodyssey", name, pictures, depths, _depth, intrinsics,
        poses.from_extrinsics(extrinsics), options,
    )  # fmt: skip


def _depth(path: Path, intrinsics: np.ndarray) -> np.ndarray:
    # 255 values are 3.9 m here: small values are no sign of 8 bits.
    scale = png16.VALUES_PER_METRE["pointodyssey"]
    return png16.read_depth_png16(path, scale, refuse_small=False)


def _trajectories(path: Path) -> int:
    """N of the shape (T, N, 3) that `info.npz` holds under the name of the trajectories."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            shape = np.ravel(stored["trajs_3d"])
            return int(shape[1]) if len(shape) > 1 else 0
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"'{path}' does not tell the number of trajectories ({error}).") from error


TRAINING = TrainingReader(
    name="pointodyssey",
    layout="train/SCENE/rgbs/rgb_00000.jpg with depths and anno.npz, or "
    "PointOdyssey_proc/train/SCENE/0000_rgb.jpg",
    scenes=scenes,
    variants={_MONST3R: "raw scenes whose info.npz tells of more than 16 trajectories"},
)
