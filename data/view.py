"""One frame of a scene -> one training view: prior point map, crop, colours, landscape."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from align3r_jax.io import preprocess, train_crop
from data import augment
from data.readers.training import TrainingFrame


class TrainingView(NamedTuple):
    """Arrays at the target size (H, W), H <= W; a portrait view is stored transposed.

    image: (H, W, 3) uint8. depth: (H, W) float32, 0 is unknown. intrinsics: (3, 3) float64 such
    that intrinsics @ point ~ (column, row, 1) of the stored arrays: of a portrait view the first
    two rows are swapped, while points keep the axes of its camera. prior_points: (H, W, 3)
    float32 in [0, 1], or None. portrait: whether it was transposed.
    """

    image: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    prior_points: np.ndarray | None
    portrait: bool


def training_view(
    frame: TrainingFrame,
    target: tuple[int, int],
    options: augment.Augmentation,
    crop_generator: np.random.Generator,
    colour_generator: np.random.Generator,
) -> TrainingView:
    """Returns the frame as the network trains on it. target: (height, width), height <= width.

    The prior point map is that of the whole picture, each axis scaled to [0, 1] over it, then
    cropped with the picture by nearest neighbour and not scaled again (Align3R).
    Raises UserError if the principal point is too far off the centre.
    """
    draw = augment.draw_crop(
        crop_generator, frame.image.shape[:2], frame.intrinsics, target, options
    )
    maps = {"depth": frame.depth}
    if frame.prior_depth is not None:
        height, width = frame.prior_depth.shape
        maps["prior"] = frame.prior_depth
        # Which pixel of the picture a pixel of the view shows; broadcast, so these cost nothing.
        maps["row"] = np.broadcast_to(np.arange(height)[:, None], (height, width))
        maps["column"] = np.broadcast_to(np.arange(width), (height, width))
    view = train_crop.crop_view(train_crop.View(frame.image, maps, frame.intrinsics), target, draw)
    image = view.image
    if options.colours is not None:
        drawn = augment.draw_colours(colour_generator, options.colours)
        image = augment.apply_colours(image, drawn)
    prior_points = None
    if frame.prior_depth is not None:
        prior_points = preprocess.pixels_of_pointmap(
            view.maps["prior"],
            view.maps["row"][:, 0],
            view.maps["column"][0],
            frame.prior_depth.shape,
            *preprocess.pointmap_bounds(frame.prior_depth),
        )
    stored = TrainingView(image, view.maps["depth"], view.intrinsics, prior_points, portrait=False)
    return stored if view.shape == tuple(target) else _landscape(stored)


def cam1_from_cam2(first: TrainingFrame, second: TrainingFrame) -> np.ndarray:
    """Returns (4, 4) float64, the second camera's points in the first camera."""
    return np.linalg.inv(first.world_from_cam) @ second.world_from_cam


def _landscape(view: TrainingView) -> TrainingView:
    prior = view.prior_points
    return TrainingView(
        view.image.swapaxes(0, 1),
        view.depth.T,
        view.intrinsics[[1, 0, 2]],
        None if prior is None else prior.swapaxes(0, 1),
        portrait=True,
    )
