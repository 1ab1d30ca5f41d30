"""What training gets of a data set: scenes of frames with depth and cameras, loaded one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from align3r_jax.errors import UserError

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class TrainingFrame:
    """One picture with its truth, before any crop.

    image: (H, W, 3) uint8 RGB. depth: (H, W) float32 along z in the unit of the poses (metres
    where the set has them), 0 where unknown, at the sky and where the mask of a processed folder
    says so. intrinsics: (3, 3) float64 pixels, centre of the first pixel at (0, 0).
    world_from_cam: (4, 4) float64, OpenCV axes; of one scene, up to one rigid motion of the world.
    prior_depth: (H, W) float32 at the size of the image, or None; prior_focal: pixels, or None.
    """

    image: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    world_from_cam: np.ndarray
    prior_depth: np.ndarray | None = None
    prior_focal: float | None = None

    def check(self, source: str) -> TrainingFrame:
        """Returns self. Raises UserError, naming `source`, for shapes or numbers that are wrong."""
        height, width = self.image.shape[:2]
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise UserError(
                f"'{source}': the picture is {self.image.shape} {self.image.dtype}, expected "
                "(H, W, 3) uint8."
            )
        for name in ("depth", "prior_depth"):
            array = getattr(self, name)
            if array is not None and array.shape != (height, width):
                raise UserError(
                    f"'{source}': {name} is {array.shape}, its picture {(height, width)}."
                )
        if not np.isfinite(self.depth).all():
            raise UserError(f"'{source}': the depth has values that are not finite; 0 is unknown.")
        if not (np.isfinite(self.intrinsics).all() and np.isfinite(self.world_from_cam).all()):
            raise UserError(f"'{source}': the camera is not finite.")
        if self.intrinsics[0, 0] <= 0 or self.intrinsics[1, 1] <= 0:
            raise UserError(f"'{source}': the focal length is not positive.")
        return self


@dataclasses.dataclass(frozen=True)
class TrainingScene:
    """The frames of one camera in the order of time. Picklable, so that workers can load it.

    name: unique within the data set. frames: names, unique within the scene. load: index ->
    TrainingFrame; raises UserError that names the file. pairs: (P, 2) indices of the frames to
    pair if the set prescribes them (Waymo), None: a strategy of `data.pairs` chooses.
    """

    dataset: str
    name: str
    frames: tuple[str, ...]
    load: Callable[[int], TrainingFrame]
    pairs: np.ndarray | None = None

    @property
    def num_frames(self) -> int:
        return len(self.frames)


class SkippedScene(NamedTuple):
    """A scene that cannot be trained on, and the sentence that says why."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How a set is read.

    split: "train" or "test", where the set knows both. prior: name of the depth prior whose files
    lie beside the pictures (`io.prior_files`), None: none is read; a missing file is an error.
    parity: decode as the published preparation does, mistakes included (each reader says which);
    False: as the data is meant. variant: a part of the set (TartanAir "easy" or "hard",
    SceneFlow "flyingthings", ...), None: all that the papers train on.
    """

    split: str = "train"
    prior: str | None = None
    parity: bool = False
    variant: str | None = None

    def check(self) -> TrainingOptions:
        """Returns self. Raises UserError for an unknown split."""
        if self.split not in SPLITS:
            raise UserError(f"split='{self.split}' is unknown; known are {', '.join(SPLITS)}.")
        return self


@dataclasses.dataclass(frozen=True)
class TrainingReader:
    """How one data set is read. layout: what is expected below the root, for messages.

    scenes: (root, options) -> scenes sorted by name, and those skipped with the reason. Lists
    folders only; nothing heavy is opened. Raises UserError if the root holds no such data at all.
    variants: names that `TrainingOptions.variant` may have, with what they mean.
    """

    name: str
    layout: str
    scenes: Callable[[Path, TrainingOptions], tuple[list[TrainingScene], list[SkippedScene]]]
    variants: Mapping[str, str] = dataclasses.field(default_factory=dict)
