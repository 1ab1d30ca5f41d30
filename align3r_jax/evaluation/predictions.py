"""Anybody's results as files: one folder per sequence, judged like our own.

| what | where, in DIR/SEQUENCE/ |
|---|---|
| depth | `depth/FRAME.{npz,npy,pfm,png}` (or the files beside), one per frame, by name or in order; or all frames in `depth.npy` / `depth.npz` (T, h, w) |
| inverse depth | the same, with `depth.json` {"inverse": true} beside the maps |
| camera path | `pred_traj.txt`, `trajectory.txt` or `traj.txt`: `t x y z qx qy qz qw`, world_from_cam |
| motion masks | `dynamic_mask/FRAME.png`, 0 static, 255 dynamic, one per frame |

A result folder of `experiments.reconstruct` is such a folder. Depth covers the whole picture,
whatever its size, in any unit; 0 and what is not finite is missing.
"""  # noqa: E501

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.evaluation import trajectory
from align3r_jax.evaluation.methods import Prediction
from align3r_jax.io import depth_files, mask_files
from align3r_jax.io import images as image_files
from align3r_jax.io import trajectory as trajectory_files

TRAJECTORIES = ("pred_traj.txt", "trajectory.txt", "traj.txt")
STACKS = ("depth.npy", "depth.npz")
_MAX_DIFFERENCE = 0.02  # seconds between a pose and the frame it belongs to


def read(
    folder: str | Path,
    names: Sequence[str],
    times: np.ndarray | None,
    *,
    want: str,
    scalar_first: bool = False,
) -> Prediction:
    """Returns what a folder holds for the frames of one sequence.

    names, times: of the frames (times may be None). want: "depth", "cameras" or "masks", the part
    that is read. scalar_first: quaternions `qw qx qy qz`, as the reference implementations write.
    Raises UserError if the part is missing or does not fit the frames.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There are no predictions in '{folder}': the folder does not exist.")
    facts = {"predictor": "files", "folder": str(folder)}
    if want == "cameras":
        poses = _poses(folder, names, times, scalar_first)
        return Prediction(world_from_cam=poses, facts=facts)
    if want == "masks":
        return Prediction(dynamic_mask=_masks(folder / "dynamic_mask", names), facts=facts)
    depth, inverse = _depth(folder, names)
    if not inverse:
        depth = np.where(depth > 0, depth, np.float32(np.nan))
    return Prediction(depth, inverse=inverse, facts=facts)


def _depth(folder: Path, names: Sequence[str]) -> tuple[np.ndarray, bool]:
    stack = next((folder / name for name in STACKS if (folder / name).is_file()), None)
    if stack is None:
        maps = folder / "depth" if (folder / "depth").is_dir() else folder
        found = depth_files.read_depth_folder(_preferred(maps), names)
        return found.depth, found.inverse
    try:
        loaded = np.load(stack, allow_pickle=False)
        values = loaded if isinstance(loaded, np.ndarray) else loaded["depth"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"'{stack}' cannot be read as depth of all frames ({error}).") from error
    if values.ndim != 3 or len(values) != len(names):
        raise UserError(
            f"'{stack}' holds an array {values.shape}; expected (T, h, w) of {len(names)} frames."
        )
    sidecar = folder / depth_files.SIDECAR
    settings = {}
    if sidecar.is_file():
        try:
            settings = json.loads(sidecar.read_text())
        except ValueError as error:
            raise UserError(f"'{sidecar}' is not valid JSON ({error}).") from error
    values = values.astype(np.float32)
    return np.where(np.isfinite(values), values, np.float32(np.nan)), bool(settings.get("inverse"))


def _preferred(folder: Path) -> str:
    """A folder that holds each map twice (our .npy beside its .png) is read by one suffix."""
    for suffix in depth_files.SUFFIXES:
        if any(folder.glob(f"*{suffix}")):
            return str(folder / f"*{suffix}")
    return str(folder)


def _poses(
    folder: Path, names: Sequence[str], times: np.ndarray | None, scalar_first: bool
) -> np.ndarray:
    path = next((folder / name for name in TRAJECTORIES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"'{folder}' holds no camera path ({', '.join(TRAJECTORIES)}).")
    stamps, poses = trajectory_files.read_tum(path, scalar_first=scalar_first)
    if len(poses) == len(names):
        return poses
    reason = "and the frames have no time stamps to find them by"
    if times is not None:
        matches = trajectory.associate(np.asarray(times), stamps, _MAX_DIFFERENCE)
        if len(matches) == len(names):
            return poses[[second for _, second in matches]]
        reason = f"and only {len(matches)} of them lie within {_MAX_DIFFERENCE} s of a frame"
    raise UserError(f"'{path}' holds {len(poses)} poses for {len(names)} frames, {reason}.")


def _masks(folder: Path, names: Sequence[str]) -> np.ndarray:
    paths = image_files.list_images(folder)
    by_name = {path.stem: path for path in paths}
    if all(name in by_name for name in names):
        paths = [by_name[name] for name in names]
    elif len(paths) != len(names):
        raise UserError(f"'{folder}' holds {len(paths)} masks for {len(names)} frames.")
    masks = [mask_files.read_labels(path) == mask_files.DYNAMIC for path in paths]
    for path, mask in zip(paths, masks):
        if mask.shape != masks[0].shape:
            raise UserError(f"'{path}' is {mask.shape}, '{paths[0].name}' {masks[0].shape}.")
    return np.stack(masks)
