"""The stages of the main flow, measured inside one run of it: `pipeline.reconstruct` on a video.

Predictor and flow source are wrapped, stages report by `stages.Run`, and starts of alignments are
caught where they are made, so that every length runs as the main command would run it.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from align3r_jax import pipeline, stages
from align3r_jax.alignment import align as align_lib
from align3r_jax.config import ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.io import scene_folder, video
from align3r_jax.predictors.flow import FlowPredictor
from align3r_jax.predictors.protocol import Predictor
from align3r_jax.priors import sources
from align3r_jax.priors.optical_flow import FlowSource
from align3r_jax.structs import DepthPrior, Frames, OpticalFlow, PairGraph, PairPredictions
from align3r_jax.viewer import report
from data.procedural import oracle
from experiments import benchmark_rows
from experiments import truth as truth_lib
from experiments.benchmark_measure import Sections, Spent
from experiments.benchmark_rows import Row

_FLOAT = 4
_OF_RUN = {"depth prior": "prior", "frame features": "encode", "pair prediction": "decode pairs",
           "optical flow": "flow", "scene": "scene"}  # fmt: skip
_ALIGNING = "align"  # whatever else `pipeline.reconstruct` calls a stage
STAND_IN = " of the stand-in"


@dataclasses.dataclass
class Flow:
    """What one run of the main flow gave: rows of its stages, and what others are measured on.

    graphs: of every prediction that it asked for. first: predictions of the first of them. mode:
    "flat" or "hierarchical".
    """

    rows: list[Row]
    frames: Frames
    originals: np.ndarray
    prior: DepthPrior | None
    graphs: list[PairGraph]
    first: PairPredictions | None
    mode: str


def run(
    path: Path, num_frames: int, size: int, config: ReconstructConfig, folder: Path,
    is_flow_predictor: bool,
) -> Flow:  # fmt: skip
    """Reconstructs the first frames of a video and writes the result, stage by stage measured.

    The flow predictor runs itself; for networks, whose weights may be random, the truth with noise
    stands in (without a truth the flow predictor), so that the alignment has a scene to find; what
    it takes is not counted. folder: for the result, removed again. Raises UserError if the video
    is shorter.
    """
    with Sections() as sections:
        read = sections.measured("decode video", video.read_frames)
        frames, originals = read(path, max_frames=num_frames, size=size)
        if frames.num_frames < num_frames:
            raise UserError(
                f"{path} has {frames.num_frames} frames, --frames asks for {num_frames}."
            )
        truth = truth_lib.load(None, str(path), frames)
        inner: Predictor = FlowPredictor()
        if truth is not None and not is_flow_predictor:
            inner = oracle.OraclePredictor(truth)  # type: ignore[arg-type]
        predictor = _Predictor(inner, sections, "" if is_flow_predictor else STAND_IN)
        source = sources.flow_source(config.flow, frames, None, lambda sentence: None)
        measured = None if source is None else _Flow(source, sections)
        starts = _Starts(align_lib.prepare)
        caught = sections.measured("initialise", starts)
        watched = _Run(sections, predictor.suffix)
        with mock.patch.object(align_lib, "prepare", caught):
            scene = pipeline.reconstruct(
                frames,
                predictor=predictor,
                flow_source=measured,
                originals=originals,
                config=config,
                run=watched,
            )
        prior = watched.products["prior"]
        facts = {"frames": frames.num_frames, "stages": watched.records, "losses": {},
                 "limits": watched.limits, "settings": {}, **watched.facts}  # fmt: skip
        sections.measured("write", scene_folder.save_scene)(
            scene,
            folder,
            facts,
            overwrite=True,
            prior_depth=None if prior is None else np.asarray(prior.depth),
            flow=watched.products["flow"],
            finish=report.write_report,
        )
    written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    shutil.rmtree(folder)
    mode = watched.facts["plan"]["mode"]
    found = Flow([], frames, originals, prior, predictor.graphs, predictor.first, mode)
    found.rows += _rows(sections.found, found, starts, measured, written)
    return found


def first_frames(
    frames: Frames, prior: DepthPrior | None, count: int
) -> tuple[Frames, DepthPrior | None]:
    """Returns the first `count` frames and their prior."""
    images, times, names = (part[:count] for part in (frames.images, frames.times, frames.names))
    part = dataclasses.replace(frames, images=images, times=times, names=names)
    if prior is None:
        return part, None
    focal = None if prior.focal is None else prior.focal[:count]
    return part, dataclasses.replace(
        prior, native=prior.native[:count], depth=prior.depth[:count], focal=focal
    )


def _rows(
    spent: dict[str, Spent], flow: Flow, starts: _Starts, source: _Flow | None, written: int
) -> list[Row]:
    count = flow.frames.num_frames
    original, working = (np.prod(flow.frames.size.original), np.prod(flow.frames.images.shape[1:3]))
    pairs = sum(graph.num_pairs for graph in flow.graphs)
    items: dict[str, tuple[int, str]] = {
        "decode pairs": (pairs, "pair"),
        "flow": (0 if source is None else sum(source.counts), "field"),
    }
    # 1.5 bytes a pixel decoded, 3 written as RGB, 3 read again to be resized.
    models: dict[str, tuple[float | None, str]] = {
        "decode video": (count * (7.5 * original + 3 * working), "frames in, RGB out and resized"),
        "initialise": (starts.read, "points and confidence of every pair, once"),
        "align": (starts.read_again, "points, weights and flow of every pair, once a round"),
        "write": (written, "the files"),
    }
    rows = []
    for stage in benchmark_rows.STAGES:
        if stage not in spent or (stage == "prior" and flow.prior is None):
            continue
        number, item = items.get(stage, (count, "frame"))
        moved, counted = models.get(stage, (None, ""))
        more = {"bytes": None if moved is None else float(moved), "counted": counted}
        rows.append(benchmark_rows.of_spent(stage, number, item, spent[stage], **more))
    return rows


class _Run(stages.Run):
    """Turns stages of a run into sections."""

    def __init__(self, sections: Sections, suffix: str) -> None:
        super().__init__()
        self._sections, self._suffix = sections, suffix

    def stage(self, name: str, compute: Callable[[], Any], keep: bool = True) -> Any:
        section = _OF_RUN.get(name, _ALIGNING)
        if section in ("encode", "decode pairs"):
            section += self._suffix
        with self._sections.section(section):
            return super().stage(name, compute, keep)


class _Predictor:
    """A predictor whose calls are sections; remembers what it was asked for."""

    def __init__(self, inner: Predictor, sections: Sections, suffix: str) -> None:
        self.name, self.suffix = inner.name, suffix
        self.graphs: list[PairGraph] = []
        self.first: PairPredictions | None = None
        self._inner = inner
        self.prepare = sections.measured(f"encode{suffix}", inner.prepare)
        self._predict = sections.measured(f"decode pairs{suffix}", inner.predict)
        self.limits = inner.limits

    def predict(self, state: Any, graph: PairGraph) -> PairPredictions:
        self.graphs.append(graph)
        found = self._predict(state, graph)
        if self.first is None:
            self.first = found
        return found


class _Flow:
    """A flow source whose calls are a section; `counts` holds how many fields each returned."""

    def __init__(
        self, inner: FlowSource, sections: Sections, counts: list[int] | None = None
    ) -> None:
        self.name = inner.name
        self.counts: list[int] = [] if counts is None else counts
        self._inner, self._sections = inner, sections

    def directed(self, frames: Frames, pairs: np.ndarray) -> OpticalFlow:
        self.counts.append(len(pairs))
        return self._sections.measured("flow", self._inner.directed)(frames, pairs)

    def sharpest(self) -> FlowSource:
        return _Flow(self._inner.sharpest(), self._sections, self.counts)


class _Starts:
    """`align.prepare`, counting the bytes that a start, and the solver after it, must read.

    The solver: points (3) and weight (1) of both views of a pair, flow and its weight (3), once an
    iteration of Adam or a round of the depth of every pixel; lattices are too small to count.
    """

    def __init__(self, prepare: Callable[..., align_lib.Task]) -> None:
        self._prepare = prepare
        self.read, self.read_again = 0.0, 0.0

    def __call__(self, *arguments: Any, **options: Any) -> align_lib.Task:
        task = self._prepare(*arguments, **options)
        pixels = _FLOAT * 2 * np.asarray(task.predictions.confidence1.shape).prod()
        config = task.config
        rounds = config.iterations
        if config.solver == "gauss_newton" and rounds:
            rounds = config.depth_rounds * (1 + task.updates)
        frames = 6 * _FLOAT * np.asarray(task.mask.shape).prod()
        self.read += float(4 * pixels)
        self.read_again += float(rounds * ((4 + 3 * (task.flow is not None)) * pixels + frames))
        return task
