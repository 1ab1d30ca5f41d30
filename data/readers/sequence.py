"""What evaluation gets of a data set: one sequence with its truth, or why it cannot be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import images as image_files

TASKS = ("video_depth", "single_depth", "camera_pose", "motion")
ASSOCIATIONS = ("stamps", "position", "reference_rows")
_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class EvaluationSequence:
    """T frames of one sequence and what is known of them. Everything heavy is a function.

    images: pictures for `load_image`, which returns (H, W, 3) uint8. image_size: (H, W).
    times: (T,) float64 seconds on the clock of the data set, or None.
    depth: () -> (T, Ht, Wt) float32 metres along z (SceneFlow: units of its poses), 0 where
    nothing is known; its size may differ from that of the images. world_from_cam: (T, 4, 4)
    float64, OpenCV axes. intrinsics: (T, 3, 3) pixels of the images.
    dynamic_mask: () -> (T, H, W) bool, what moves by itself; mask_frames: the frames where that is
    known, None for all. flow: () -> (T - 1, H, W, 2) float32 pixels from each frame to the next,
    NaN where unknown. prior_files: name of a prior (`depthpro`, ...) -> its file for every frame,
    whether there or not. notes: sentences for the reader of the numbers.
    """

    name: str
    dataset: str
    images: tuple[Path, ...]
    image_size: tuple[int, int] | None = None
    times: np.ndarray | None = None
    depth: Callable[[], np.ndarray] | None = None
    world_from_cam: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    dynamic_mask: Callable[[], np.ndarray] | None = None
    mask_frames: tuple[int, ...] | None = None
    flow: Callable[[], np.ndarray] | None = None
    prior_files: Callable[[str], tuple[Path, ...]] | None = None
    notes: tuple[str, ...] = ()
    load_image: Callable[[Path], np.ndarray] = image_files.load_image

    @property
    def num_frames(self) -> int:
        return len(self.images)

    @property
    def frame_names(self) -> tuple[str, ...]:
        """The stems of the pictures."""
        return tuple(path.stem for path in self.images)

    def check(self) -> EvaluationSequence:
        """Returns self. Raises UserError if an array has another length than `images`."""
        for field in ("times", "world_from_cam", "intrinsics"):
            value = getattr(self, field)
            if value is not None and len(value) != len(self.images):
                raise UserError(
                    f"The sequence '{self.name}' has {len(self.images)} pictures but "
                    f"{len(value)} {field}."
                )
        if self.world_from_cam is not None and not np.isfinite(self.world_from_cam).all():
            bad = int(np.argmax(~np.isfinite(self.world_from_cam).all((1, 2))))
            raise UserError(f"The pose of '{self.images[bad]}' is not finite.")
        return self


class FailedSequence(NamedTuple):
    """A sequence that cannot be evaluated, and the sentence that says why."""

    name: str
    reason: str


class FrameSlice(NamedTuple):
    """Every `stride`-th frame from `start` on, the first `limit` of them (None: all)."""

    start: int = 0
    stride: int = 1
    limit: int | None = None

    def of(self, items: Sequence[_Item]) -> list[_Item]:
        return list(items[self.start :: self.stride][: self.limit])


@dataclasses.dataclass(frozen=True)
class ReaderOptions:
    """Which sequences and frames are read, and how what was recorded apart is brought together.

    sequences: "default" (what the papers evaluate the task on), "found" (all that the folder
    holds), the name of a list of the data set, or a tuple of names. start, stride, max_frames:
    None takes the data set's own for the task; max_frames=0 is all frames.
    render_pass: "final" or "clean" of Sintel and SceneFlow.
    association, for Bonn and TUM (and SceneFlow's cameras): "stamps" (nearest in time, each once,
    within max_time_difference seconds; SceneFlow: frame numbers), "position" (the k-th file of
    each folder), "reference_rows" (as "position", and the poses are rows of groundtruth.txt with
    the slice of the frames).
    # parity: "reference_rows" is no association: motion capture runs at 100 Hz, video at 30.
    bonn_poses: "file" (groundtruth.txt as it is, which published numbers use) or "camera" (the
    camera's own axes, by the calibration on the page of the data set).
    motion_threshold: pixels between true flow and that of a static world, above which a pixel of
    Sintel moves by itself, if the folder has no masks.
    """

    sequences: str | tuple[str, ...] = "default"
    start: int | None = None
    stride: int | None = None
    max_frames: int | None = None
    render_pass: str = "final"
    association: str = "stamps"
    max_time_difference: float = 0.02
    bonn_poses: str = "file"
    motion_threshold: float = 0.1

    def check(self) -> ReaderOptions:
        """Returns self. Raises UserError for settings that make no sense."""
        for field, allowed in (
            ("render_pass", ("final", "clean")),
            ("association", ASSOCIATIONS),
            ("bonn_poses", ("file", "camera")),
        ):
            if getattr(self, field) not in allowed:
                raise UserError(
                    f"{field}='{getattr(self, field)}' is unknown; known are {', '.join(allowed)}."
                )
        for field, least in (("start", 0), ("stride", 1), ("max_frames", 0)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise UserError(f"{field}={value}: it must be {least} or more.")
        for field in ("max_time_difference", "motion_threshold"):
            if not getattr(self, field) > 0:
                raise UserError(f"{field}={getattr(self, field)}: it must be positive.")
        return self

    def frames(self, default: FrameSlice) -> FrameSlice:
        """The slice asked for; what is None comes from `default`."""
        limit = default.limit if self.max_frames is None else self.max_frames or None
        return FrameSlice(
            default.start if self.start is None else self.start,
            default.stride if self.stride is None else self.stride,
            limit,
        )


@dataclasses.dataclass(frozen=True)
class DatasetReader:
    """How one data set is read.

    lists: named lists of sequences, or functions that choose from those found. default_list,
    default_frames: by task, else under ""; the frames are those of the default list, of other
    sequences all are taken. layout: what is expected below the root, for messages.
    found: (root, options) -> names of the sequences that are there. read: (root, name, task,
    options, frames) -> the sequence; raises UserError.
    """

    name: str
    tasks: tuple[str, ...]
    layout: str
    found: Callable[[Path, ReaderOptions], list[str]]
    read: Callable[[Path, str, str, ReaderOptions, FrameSlice], EvaluationSequence]
    lists: Mapping[str, tuple[str, ...] | Callable[[list[str]], list[str]]] = dataclasses.field(
        default_factory=dict
    )
    default_list: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_frames: Mapping[str, FrameSlice] = dataclasses.field(default_factory=dict)

    def list_name(self, task: str) -> str:
        """The name of the list that "default" stands for."""
        return self.default_list.get(task, self.default_list.get("", "found"))

    def frames(self, name: str, task: str, options: ReaderOptions) -> FrameSlice:
        """The frames to take of a sequence."""
        default = self.default_frames.get(task, self.default_frames.get("", FrameSlice()))
        listed = self.lists.get(self.list_name(task))
        if isinstance(listed, tuple) and not any(
            item == name or item.endswith(f"_{name}") for item in listed
        ):
            default = FrameSlice()
        return options.frames(default)
