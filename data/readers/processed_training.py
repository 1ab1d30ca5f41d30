"""Training frames of the folders that Align3R's preparation writes; the layout: `processed.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from align3r_jax.errors import UserError
from align3r_jax.io import depth_files, images
from data.readers import processed, training_frames
from data.readers.training import TrainingFrame, TrainingOptions, TrainingScene

_PICTURE = "_rgb.jpg"
_PARTS = ("_depth.pfm", "_mask.png", "_metadata.npz")
_USABLE = 128  # mask values from here on; files hold 0 and 255


def as_stored(pose: np.ndarray) -> np.ndarray:
    """world_from_cam of the sets whose `camera_pose` is it: all but PointOdyssey and Spring."""
    return pose


def processed_scene(
    folder: Path,
    name: str,
    dataset: str,
    options: TrainingOptions,
    world_from_cam: Callable[[np.ndarray], np.ndarray] = as_stored,
    *,
    depth_scale: float = 1.0,
) -> TrainingScene:
    """Returns the scene of one processed folder: depth times its mask, cameras as stored.

    world_from_cam: module-level function, `camera_pose` (4, 4) -> OpenCV pose. depth_scale: the
    unit of the poses per unit of the stored depth. The folder is listed once, nothing is opened.
    Raises UserError if it holds no frames, or a frame lacks a file or the prior asked for.
    """
    there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    ids = sorted(
        (file.removesuffix(_PICTURE) for file in there if file.endswith(_PICTURE)),
        key=images.natural_key,
    )
    if not ids:
        raise UserError(f"The folder '{folder}' holds no processed frames (ID{_PICTURE}).")
    missing = [one + part for one in ids for part in _PARTS if one + part not in there]
    if missing:
        raise UserError(
            f"{len(missing)} files of the {len(ids)} frames in '{folder}' are missing; the first "
            f"is '{missing[0]}'."
        )
    training_frames.check_priors([folder / (one + _PICTURE) for one in ids], options.prior)
    load = functools.partial(_load, folder, tuple(ids), world_from_cam, depth_scale, options.prior)
    return TrainingScene(dataset, name, tuple(ids), load)


def _load(
    folder: Path,
    ids: tuple[str, ...],
    world_from_cam: Callable[[np.ndarray], np.ndarray],
    depth_scale: float,
    prior: str | None,
    index: int,
) -> TrainingFrame:
    picture = folder / (ids[index] + _PICTURE)
    image = images.load_image(picture)
    shape = (image.shape[0], image.shape[1])
    camera = processed.read_metadata(processed.frame_file(picture, "_metadata.npz"))
    depth_file = processed.frame_file(picture, "_depth.pfm")
    depth = depth_files.read_depth(depth_file).depth * np.float32(depth_scale)
    mask_file = processed.frame_file(picture, "_mask.png")
    mask = _read_mask(mask_file)
    if not mask.shape == depth.shape == shape:
        raise UserError(
            f"'{picture}' is {shape} (height, width), '{depth_file.name}' {depth.shape} and "
            f"'{mask_file.name}' {mask.shape}: all three must be of one size."
        )
    prior_depth = prior_focal = None
    if prior is not None:
        fx = float(camera.intrinsics[0, 0])
        prior_depth, prior_focal = training_frames.read_prior(picture, prior, shape, fx)
    return TrainingFrame(
        image,
        np.where(mask & (depth > 0), depth, np.float32(0)),
        camera.intrinsics,
        np.asarray(world_from_cam(camera.pose), np.float64),
        prior_depth,
        prior_focal,
    ).check(str(picture))


def _read_mask(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("L")) >= _USABLE
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UserError(f"The mask '{path}' cannot be read ({error}).") from error
