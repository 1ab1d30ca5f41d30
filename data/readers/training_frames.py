"""From the files of a raw data set to training frames; what all training readers share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import depth_files, images, prior_files
from data.readers import files
from data.readers.training import SkippedScene, TrainingFrame, TrainingOptions, TrainingScene

FAR = 400.0  # units of the set; depth from here on is the sky to Align3R's preparation
_INVERSE = prior_files.name_of("depth_anything", metric=False)
_MAX_STRETCH = 1.1  # rounding to whole patches changes the shape of a network's map by less

_Item = TypeVar("_Item")
ReadDepth = Callable[[Path, np.ndarray], np.ndarray]  # file, intrinsics -> (H, W)


def gather(
    items: Iterable[tuple[str, _Item]], make: Callable[[str, _Item], TrainingScene]
) -> tuple[list[TrainingScene], list[SkippedScene]]:
    """Returns make(name, item) of all; where it raises UserError, the name and the sentence."""
    scenes: list[TrainingScene] = []
    skipped: list[SkippedScene] = []
    for name, item in items:
        try:
            scenes.append(make(name, item))
        except UserError as error:
            skipped.append(SkippedScene(name, str(error)))
    return scenes, skipped


def of_split(
    items: Sequence[_Item], options: TrainingOptions, held_out: Callable[[_Item], bool]
) -> list[_Item]:
    """Returns the items of the split, where a set has none of its own and we hold scenes out.

    # parity: the published loaders have no such split; train and test both take every scene.
    """
    if options.parity:
        return list(items)
    return [item for item in items if held_out(item) == (options.split == "test")]


def usable(depth: np.ndarray, far: float = FAR) -> np.ndarray:
    """Returns z where it is finite and 0 < z < far, else 0; (H, W) float32."""
    depth = np.asarray(depth, np.float32)
    with np.errstate(invalid="ignore"):
        return np.where((depth > 0) & (depth < far), depth, np.float32(0))


def read_prior(
    picture: Path, name: str, shape: tuple[int, int], fx: float
) -> tuple[np.ndarray, float | None]:
    """Returns the depth prior `name` of a picture, (H, W) float32, and its focal in pixels.

    NaN where the file knows nothing. Depth Anything's maps of the network's size, (h, w) or
    (1, h, w), are resized to the picture (bilinear), and their focal is `fx`, the true one; other
    priors must be of the picture's `shape` and bring their focal.
    Raises UserError if the file is missing, damaged or of another size.
    """
    path = prior_files.prior_path(picture, name)
    depth, focal = depth_files.read_depth(path)
    inverse = name == _INVERSE
    if depth.shape != shape:
        stretch = (depth.shape[0] / depth.shape[1]) / (shape[0] / shape[1])
        if not inverse or not 1 / _MAX_STRETCH < stretch < _MAX_STRETCH:
            raise UserError(
                f"The prior '{path}' is {depth.shape} (height, width), its picture {shape}. "
                "Estimate it again from this picture."
            )
        depth = cv2.resize(depth, shape[::-1], interpolation=cv2.INTER_LINEAR)
    return depth, fx if inverse else focal


def check_priors(pictures: Sequence[Path], prior: str | None) -> None:
    """Raises UserError that names the first missing file of the prior; None: nothing to check."""
    if prior is not None:
        what = (
            f"prior '{prior}' (experiments.estimate_priors --layout=beside writes it, prior=None "
            "trains without)"
        )
        files.partners(pictures, functools.partial(prior_files.prior_path, name=prior), what)


def file_scene(
    dataset: str,
    name: str,
    pictures: Sequence[Path],
    depths: Sequence[Path],
    read_depth: ReadDepth,
    intrinsics: np.ndarray,
    world_from_cam: np.ndarray,
    options: TrainingOptions,
    *,
    far: float = FAR,
) -> TrainingScene:
    """Returns the scene of one folder of pictures and one of depth files, T of each.

    read_depth: module-level function (workers load it), (file, intrinsics of the frame) -> z, the
    unknown as 0, NaN or far away; z from `far` on becomes 0. intrinsics: (3, 3) or (T, 3, 3);
    world_from_cam: (T, 4, 4).
    Raises UserError if the lengths differ, a camera is not finite or a prior is missing.
    """
    count = len(pictures)
    intrinsics = np.broadcast_to(np.asarray(intrinsics, np.float64), (count, 3, 3))
    world_from_cam = np.asarray(world_from_cam, np.float64)
    if count == 0:
        raise UserError(f"'{name}' of {dataset} has no frames.")
    if not len(depths) == len(world_from_cam) == count:
        raise UserError(
            f"'{pictures[0].parent}' holds {count} pictures, but there are {len(depths)} depth "
            f"files and {len(world_from_cam)} cameras."
        )
    if not (np.isfinite(intrinsics).all() and np.isfinite(world_from_cam).all()):
        raise UserError(f"A camera of '{pictures[0].parent}' is not finite.")
    check_priors(pictures, options.prior)
    names = tuple(path.name for path in pictures)
    load = functools.partial(
        _load, pictures[0].parent, names, depths[0].parent, tuple(path.name for path in depths),
        read_depth, intrinsics, world_from_cam, options.prior, far,
    )  # fmt: skip
    return TrainingScene(dataset, name, tuple(path.stem for path in pictures), load)


def _load(
    folder: Path,
    pictures: tuple[str, ...],
    depth_folder: Path,
    depths: tuple[str, ...],
    read_depth: ReadDepth,
    intrinsics: np.ndarray,
    world_from_cam: np.ndarray,
    prior: str | None,
    far: float,
    index: int,
) -> TrainingFrame:
    picture = folder / pictures[index]
    image = images.load_image(picture)
    shape = (image.shape[0], image.shape[1])
    camera = np.array(intrinsics[index])
    cx, cy = camera[:2, 2]
    if not (0 <= cx <= shape[1] - 1 and 0 <= cy <= shape[0] - 1):
        raise UserError(
            f"'{picture}' is {shape} (height, width), but the principal point of its camera is "
            f"({cx:g}, {cy:g}): this is not the picture as it was published."
        )
    depth = usable(read_depth(depth_folder / depths[index], camera), far)
    prior_depth = prior_focal = None
    if prior is not None:
        prior_depth, prior_focal = read_prior(picture, prior, shape, float(camera[0, 0]))
    return TrainingFrame(
        image, depth, camera, np.array(world_from_cam[index]), prior_depth, prior_focal
    ).check(str(picture))
