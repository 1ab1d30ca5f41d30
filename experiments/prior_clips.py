"""Clips of `estimate_priors`: finding them, working through their frames, recording what is done.

The record of a clip, OUTPUT/records/CLIP.json, lists every file with the key of what it was made
from (pixels, weights, settings). A file is computed if it is missing or its key differs; a clip
whose sources, settings and files are all as recorded is not even decoded.
"""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import atomic, exif, images, preprocess, prior_files, video
from align3r_jax.priors import cache
from align3r_jax.priors.mono_depth import DepthMaps, DepthModel
from align3r_jax.priors.optical_flow import FlowSource
from align3r_jax.structs import Frames, WorkingSize
from experiments import clip_sources

FRAMES_AT_ONCE = 16  # frames in memory, for each device
_FORMAT = "priors 1"  # a change of what is computed changes this


@dataclasses.dataclass
class Clip:
    """One video or folder of images. name: unique among the clips of a run."""

    source: Path
    name: str
    output: Path
    selection: dict[str, Any]

    @property
    def record_path(self) -> Path:
        return self.output / "records" / f"{self.name}.json"

    def image_paths(self) -> list[Path] | None:
        """The images of a folder in order, None for a video."""
        return images.list_images(self.source) if self.source.is_dir() else None

    def signature(self) -> str:
        """What the sources are, without reading them: names, sizes, times of change."""
        files = self.image_paths() or [self.source]
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return cache.content_key(json.dumps([stats, self.selection]))


@dataclasses.dataclass(frozen=True)
class Done:
    """total: frames or fields of the clip; computed: how many of them just now."""

    total: int
    computed: int


class Record:
    """What is done of a clip in one stage; saved after every batch."""

    def __init__(self, clip: Clip, stage: str):
        self._path, self._stage = clip.record_path, stage
        self._all: dict[str, Any] = {}
        try:
            self._all = json.loads(self._path.read_text())
            self._mine: dict[str, Any] = dict(self._all.get(stage, {}))
        except (OSError, ValueError, AttributeError, TypeError):
            self._all, self._mine = {}, {}  # none yet, or damaged: everything is computed
        self.files: dict[str, str] = dict(self._mine.get("files", {}))

    def is_complete(self, signature: str) -> bool:
        """Whether all is there that sources and settings of this signature give."""
        whole = self._mine.get("complete") is True and self._mine.get("signature") == signature
        return whole and all(Path(file).is_file() for file in self.files)

    def has(self, path: Path, key: str) -> bool:
        """Whether a file is there and was made from what `key` stands for."""
        return self.files.get(str(path)) == key and path.is_file()

    def save(self, signature: str, complete: bool) -> None:
        """Writes the record, whole or not at all."""
        self._all[self._stage] = {
            "signature": signature, "complete": complete, "files": self.files,
        }  # fmt: skip
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace_file(self._path, json.dumps(self._all, indent=1).encode())


class Job(abc.ABC):
    """One stage of the work. stage: its name; key: of weights and settings."""

    stage: str
    key: str

    @abc.abstractmethod
    def run(self, clip: Clip, record: Record, save: Callable[[], None]) -> tuple[list[Path], int]:
        """Makes the files of a clip that `record` lacks; returns all of them, and how many anew.

        `save` is to be called after every batch.
        """


def find_clips(patterns: list[str], output: Path, selection: dict[str, Any]) -> list[Clip]:
    """Returns the clips that paths and globs name; see `clip_sources.find`."""
    found = clip_sources.find(patterns, "input")
    return [Clip(path, name, output, selection) for path, name in found]


def process(clip: Clip, job: Job) -> Done:
    """Brings a clip up to date with a job. Raises what reading, computing or writing raises."""
    record = Record(clip, job.stage)
    signature = cache.content_key(_FORMAT, job.key, clip.signature())
    if record.is_complete(signature):
        return Done(len(record.files), 0)
    paths, computed = job.run(clip, record, lambda: record.save(signature, complete=False))
    _sweep(paths)
    record.files = {str(path): record.files[str(path)] for path in paths}
    record.save(signature, complete=True)
    return Done(len(paths), computed)


def _sweep(paths: list[Path]) -> None:
    """Removes what a killed run left half-written beside its files (`io.atomic`)."""
    ours = {path.name for path in paths}
    for folder in {path.parent for path in paths}:
        for hidden in folder.glob(".*.npz.*"):
            if hidden.name[1:].rpartition(".")[0] in ours:
                hidden.unlink(missing_ok=True)


class _Item(NamedTuple):
    """One frame: the file to write, its picture, where that lies, the key, the focal if known."""

    path: Path
    picture: np.ndarray
    image: Path | None
    key: str
    focal: float | None


@dataclasses.dataclass
class DepthJob(Job):
    """Depth priors by a monocular network.

    make_model: returns the network for frames of these focals in pixels (T,), None: unknown.
    name: what files call it. layout: see `io.prior_files`, or "clip". focal: of all images; None:
    what their EXIF data says, if anything. Where neither they nor the network know a focal, that
    of the metadata of a training set is written.
    """

    make_model: Callable[[np.ndarray | None], DepthModel]
    name: str
    key: str
    layout: str
    focal: float | None
    frames_at_once: int = FRAMES_AT_ONCE
    stage = "depth"

    def __post_init__(self) -> None:
        self.key = f"{self.key} {self.layout} {self.focal}"
        self._without_focal: DepthModel | None = None

    def run(self, clip: Clip, record: Record, save: Callable[[], None]) -> tuple[list[Path], int]:
        paths: list[Path] = []
        computed = 0
        for batch in self._batches(clip):
            paths += [item.path for item in batch]
            missing = [item for item in batch if not record.has(item.path, item.key)]
            if not missing:
                continue
            model = self._model([item.focal for item in missing])
            maps = DepthMaps(*model(np.stack([item.picture for item in missing])))
            estimated = np.asarray(np.nan if maps.focal is None else maps.focal, np.float64)
            for item, depth, focal in zip(
                missing, np.asarray(maps.depth), np.broadcast_to(estimated, (len(missing),))
            ):
                known = float(focal) if np.isfinite(focal) else item.focal
                if known is None and item.image is not None:
                    known = prior_files.focal_of_training_image(item.image)
                # Bicubic resizing dips below 0, and readers take negative depth for missing.
                prior_files.write_prior(item.path, np.maximum(depth, 0), known)
                record.files[str(item.path)] = item.key
            computed += len(missing)
            save()
        return paths, computed

    def _model(self, focals: list[float | None]) -> DepthModel:
        if None not in focals:
            return self.make_model(np.array(focals, np.float32))
        if self._without_focal is None:
            self._without_focal = self.make_model(None)
        return self._without_focal

    def _batches(self, clip: Clip) -> Iterator[list[_Item]]:
        """Frames of one size together, and those of known focal apart from the others."""
        listed = clip.image_paths()
        if listed is None and self.layout != "clip":
            raise UserError(
                f"'{clip.source}' is a video; --layout={self.layout} is for folders of images."
            )
        batch: list[_Item] = []
        for frame in video.each_frame(clip.source, **clip.selection):
            image = None if listed is None else listed[frame.index]
            picture = frame.load()
            focal = self._focal(image)
            key = cache.content_key(self.key, picture, focal)
            item = _Item(self._path(clip, image, frame.name), picture, image, key, focal)
            if batch and (
                batch[0].picture.shape != picture.shape
                or (batch[0].focal is None) != (focal is None)
                or len(batch) == self.frames_at_once
            ):
                yield batch
                batch = []
            batch.append(item)
        if batch:
            yield batch

    def _focal(self, image: Path | None) -> float | None:
        if self.focal is not None or image is None:
            return self.focal
        return exif.read_focal(image)

    def _path(self, clip: Clip, image: Path | None, frame: str) -> Path:
        if self.layout == "clip" or image is None:
            return clip.output / clip.name / f"{frame}_pred_depth_{self.name}.npz"
        return prior_files.prior_path(image, self.name, self.layout)


@dataclasses.dataclass
class FlowJob(Job):
    """Flow between frames `offsets` apart, in both directions, at a long side of `size` pixels.

    make_source: returns the flow source for frames.
    """

    make_source: Callable[[Frames], FlowSource | None]
    key: str
    offsets: tuple[int, ...]
    size: int
    stage = "flow"

    def __post_init__(self) -> None:
        self.key = f"{self.key} {self.offsets} {self.size}"

    def run(self, clip: Clip, record: Record, save: Callable[[], None]) -> tuple[list[Path], int]:
        paths: list[Path] = []
        computed = 0
        for frames, owned in self._windows(clip):
            keys = [cache.content_key(self.key, image) for image in frames.images]
            pairs = {
                pair: (self._path(clip, frames, pair), keys[pair[0]] + keys[pair[1]])
                for i in range(owned)
                for j in (i + offset for offset in self.offsets)
                if j < frames.num_frames
                for pair in ((i, j), (j, i))
            }
            paths += [path for path, _ in pairs.values()]
            missing = [pair for pair, item in pairs.items() if not record.has(*item)]
            if not missing:
                continue
            source = self.make_source(frames)
            assert source is not None
            flow = source.directed(frames, np.array(missing, np.int32))
            for pair, field in zip(missing, np.asarray(flow.flow)):
                path, key = pairs[pair]
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic.new_file(path) as file:
                    np.savez_compressed(file, flow=field.astype(np.float32))
                record.files[str(path)] = key
            computed += len(missing)
            save()
        return paths, computed

    def _path(self, clip: Clip, frames: Frames, pair: tuple[int, int]) -> Path:
        first, second = (frames.names[k] for k in pair)
        return clip.output / clip.name / "flow" / f"{first}_{second}.npz"

    def _windows(self, clip: Clip) -> Iterator[tuple[Frames, int]]:
        """Runs of frames, and how many of them, from the first, begin pairs of that run."""
        reach = max(self.offsets)
        kept: list[tuple[str, float, np.ndarray]] = []
        size: WorkingSize | None = None
        for frame in video.each_frame(clip.source, **clip.selection):
            picture = frame.load()
            if size is None:
                # The whole frame at its own proportions: fits any working size later.
                plan = preprocess.plan_working_size(picture.shape[:2], self.size)
                size = WorkingSize(plan.original, plan.resized, (0, 0), plan.resized)
            elif picture.shape[:2] != size.original:
                raise UserError(
                    f"Frames of '{clip.source}' differ in size: '{frame.name}' is "
                    f"{picture.shape[1]} x {picture.shape[0]}; flow needs equal ones."
                )
            kept.append((frame.name, frame.time, preprocess.to_working_size(picture, size)))
            if len(kept) == FRAMES_AT_ONCE + reach:
                yield _frames(kept, size), FRAMES_AT_ONCE
                kept = kept[FRAMES_AT_ONCE:]
        if size is not None and len(kept) > 1:
            yield _frames(kept, size), len(kept)


def _frames(kept: list[tuple[str, float, np.ndarray]], size: WorkingSize) -> Frames:
    names, times, pictures = zip(*kept)
    return Frames(np.stack(pictures), np.array(times), size, names)
