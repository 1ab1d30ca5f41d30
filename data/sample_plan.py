"""Which pair of which scene every row of every step is, and how it is loaded.

A plan is made once from the settings and the folders; after that a sample is a function of the
step and the row of the global batch, whoever asks.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from align3r_jax.errors import UserError
from data import mixture, mixture_text, pairs, view
from data.pipeline_settings import PipelineSettings, SourceSettings, source_settings
from data.readers import training_sets
from data.readers.training import SkippedScene, TrainingOptions, TrainingScene

SceneFinder = Callable[
    [str, str | Path, TrainingOptions], tuple[Sequence[TrainingScene], Sequence[SkippedScene]]
]
Batch = dict[str, np.ndarray]

# What a generator is for; part of its seed. Crops have none, as in the reference.
_COLOURS, _DROPOUT, _REPLACEMENT, _RESOLUTION = 1, 2, 3, 4
_ATTEMPTS = 20  # samples tried for one row before training stops
# What tells cameras apart that look at one scene: stereo pairs, the five of Waymo.
_CAMERA = re.compile(r"(?:^|(?<=[_/-]))(?:left|right|camera\d+)(?=$|[_/-])")


class StepDraw(NamedTuple):
    """The rows of a step. resolution: (height, width). source, number: (K,) sets and their pairs.

    seeds: K tuples of integers, the sample's own. real: (K,) bool, False for rows that only fill.
    """

    resolution: tuple[int, int]
    source: np.ndarray
    number: np.ndarray
    seeds: list[tuple[int, ...]]
    real: np.ndarray


@dataclasses.dataclass(frozen=True)
class PlannedSource:
    """One set of the mixture: its scenes, and all their pairs by number."""

    name: str
    scenes: tuple[TrainingScene, ...]
    table: pairs.PairTable


@dataclasses.dataclass(frozen=True)
class SamplePlan:
    """Settings, the tree of the mixture and its sets. Picklable, for the processes that load.

    with_prior: whether batches have prior point maps.
    """

    settings: PipelineSettings
    tree: mixture.Mixture
    sources: tuple[PlannedSource, ...]
    with_prior: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(source.table) for source in self.sources)

    @property
    def samples_per_epoch(self) -> int:
        return mixture.size(self.tree, self.sizes)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch. In the order "walk" a batch may span two epochs."""
        return self.samples_per_epoch // self.settings.batch_size

    def training_draw(self, step: int, rows: np.ndarray) -> StepDraw:
        """Returns rows (K,) of the global batch of a step."""
        settings, size = self.settings, self.settings.batch_size
        choices = settings.resolutions
        if settings.order == "walk":
            items, _ = mixture.epoch_items(self.tree, self.sizes, step * size + rows, settings.seed)
            generator = np.random.default_rng((settings.seed, step, 0, _RESOLUTION))
            choice = int(generator.integers(len(choices)))
        else:
            epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
            order = mixture.sampler_order(self.samples_per_epoch, size, len(choices), epoch)
            drawn = order[step_of_epoch * size + rows]
            epochs = np.full(len(rows), epoch)
            items = mixture.lookup(self.tree, self.sizes, drawn[:, 0], epochs, "reference")
            choice = int(order[step_of_epoch * size, 1])
        seeds = [(settings.seed, step, int(row)) for row in rows]
        return StepDraw(choices[choice], *items, seeds, np.ones(len(rows), bool))

    def evaluation_draw(self, batch: int, rows: np.ndarray) -> StepDraw:
        """Returns rows (K,) of a batch of the fixed subset: that of epoch 0 of the reference.

        Rows after the end repeat the last sample and are not real.
        """
        numbers = batch * self.settings.batch_size + rows
        real = numbers < self.samples_per_epoch
        numbers = np.minimum(numbers, self.samples_per_epoch - 1)
        items = mixture.lookup(
            self.tree, self.sizes, numbers, np.zeros(len(rows), np.int64), "reference"
        )
        seeds = [(mixture.REFERENCE_SEED + int(number),) for number in numbers]
        return StepDraw(self.settings.resolutions[0], *items, seeds, real)


def make_plan(
    settings: PipelineSettings,
    find_scenes: SceneFinder = training_sets.scenes,
    held_out: bool = False,
) -> SamplePlan:
    """Lists the folders of all sets of the mixture.

    held_out: of sets of which scenes are held out, take those instead of the others.
    Raises UserError if a set is unknown, not there or without a single pair.
    """
    tree = mixture_text.parse(settings.check().mixture)
    resolved = [source_settings(settings, source) for source in mixture.sources(tree)]
    sources = tuple(_planned(own, settings.seed, find_scenes, held_out) for own in resolved)
    with_prior = any(own.options.prior is not None for own in resolved)
    plan = SamplePlan(settings, tree, sources, with_prior)
    if plan.steps_per_epoch == 0 and settings.order == "reference":
        raise UserError(
            f"An epoch of '{settings.mixture}' has {plan.samples_per_epoch} samples, fewer than "
            f"one batch of {settings.batch_size}."
        )
    return plan


class LoadedRows(NamedTuple):
    """batch: the arrays. replaced: a sentence per row whose first sample could not be read.
    failure: the sentence if a row found no readable sample, else empty; then batch is empty.
    rows: how many were asked for.
    """

    rows: int
    batch: Batch
    replaced: tuple[str, ...]
    failure: str


class RowLoader:
    """Loads some rows of the batch of a step. Picklable; a pure function of the step.

    draw: method of the plan, (step, rows) -> StepDraw. rows: (K,) of the global batch.
    """

    def __init__(
        self,
        plan: SamplePlan,
        draw: Callable[[int, np.ndarray], StepDraw],
        rows: np.ndarray,
    ):
        self._plan, self._draw, self._rows = plan, draw, rows

    def __call__(self, step: int) -> LoadedRows:
        """Returns the rows. Failures come as sentences: exceptions do not pass processes whole."""
        drawn = self._draw(int(step), self._rows)
        batch = _empty(len(self._rows), drawn.resolution, self._plan.with_prior)
        replaced: list[str] = []
        for row in range(len(self._rows)):
            source = self._plan.sources[int(drawn.source[row])]
            number, seeds = int(drawn.number[row]), drawn.seeds[row]
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    self._fill(batch, row, source, number, drawn.resolution, seeds)
                    break
                except (UserError, OSError) as error:
                    if attempt == 1:
                        replaced.append(f"{source.name}: {error}")
                    if attempt == _ATTEMPTS:
                        failure = (
                            f"{_ATTEMPTS} samples of '{source.name}' in a row cannot be read; "
                            f"the last one: {error}"
                        )
                        return LoadedRows(len(self._rows), {}, tuple(replaced), failure)
                generator = np.random.default_rng((*seeds, _REPLACEMENT, attempt))
                number = int(generator.integers(len(source.table)))
            if not drawn.real[row]:
                batch["depth"][row] = 0
        return LoadedRows(len(self._rows), batch, tuple(replaced), "")

    def _fill(
        self,
        batch: Batch,
        row: int,
        source: PlannedSource,
        number: int,
        resolution: tuple[int, int],
        seeds: tuple[int, ...],
    ) -> None:
        options = self._plan.settings.augmentation
        found = source.table.lookup(np.array([number]))
        scene = source.scenes[int(found.scene[0])]
        crops = np.random.default_rng(seeds)
        colours = np.random.default_rng((*seeds, _COLOURS))
        drop = options.prior_dropout > 0 and (
            np.random.default_rng((*seeds, _DROPOUT)).random() < options.prior_dropout
        )
        frames = []
        for place, index in enumerate((int(found.first[0]), int(found.second[0]))):
            frame = scene.load(index).check(f"{scene.name}, frame {scene.frames[index]}")
            if drop or not self._plan.with_prior:
                frame = dataclasses.replace(frame, prior_depth=None, prior_focal=None)
            seen = view.training_view(frame, resolution, options, crops, colours)
            batch["images"][row, place] = seen.image
            batch["depth"][row, place] = seen.depth
            batch["intrinsics"][row, place] = seen.intrinsics
            batch["portrait"][row, place] = seen.portrait
            batch["has_prior"][row, place] = seen.prior_points is not None
            if "prior_points" in batch:
                batch["prior_points"][row, place] = (
                    0 if seen.prior_points is None else seen.prior_points
                )
            frames.append(frame)
        batch["cam1_from_cam2"][row] = view.cam1_from_cam2(*frames)


def _empty(rows: int, resolution: tuple[int, int], with_prior: bool) -> dict[str, Any]:
    pictures = (rows, 2, *resolution)
    batch = {
        "images": np.empty((*pictures, 3), np.uint8),
        "depth": np.empty(pictures, np.float32),
        "intrinsics": np.empty((rows, 2, 3, 3), np.float32),
        "cam1_from_cam2": np.empty((rows, 4, 4), np.float32),
        "has_prior": np.zeros((rows, 2), bool),
        "portrait": np.zeros((rows, 2), bool),
    }
    if with_prior:
        batch["prior_points"] = np.empty((*pictures, 3), np.float32)
    return batch


def _planned(
    own: SourceSettings, seed: int, find_scenes: SceneFinder, held_out: bool
) -> PlannedSource:
    scenes, skipped = find_scenes(own.name, own.root, own.options)
    for scene in skipped[:3]:
        logging.warning("%s: scene %s is left out: %s", own.name, scene.name, scene.reason)
    if len(skipped) > 3:
        logging.warning("%s: %d more scenes are left out.", own.name, len(skipped) - 3)
    if own.hold_out and own.options.split == "train":
        kept = _held_out([scene.name for scene in scenes], own.hold_out) == held_out
        scenes = [scene for scene, keep in zip(scenes, kept) if keep]
    rule = own.rule
    if rule is None:
        prescribed = bool(scenes) and all(scene.pairs is not None for scene in scenes)
        rule = "prescribed" if prescribed else own.default_rule
    table = pairs.PairTable(
        [scene.num_frames for scene in scenes],
        pairs.parse_rule(rule),
        [scene.pairs for scene in scenes],
        seed,
    )
    if not len(table):
        which = "held-out " if held_out and own.hold_out else ""
        raise UserError(
            f"The set '{own.name}' below '{own.root}' has no pair to train on: {len(scenes)} "
            f"{which}scenes (split '{own.options.split}', hold_out={own.hold_out}), rule '{rule}'."
        )
    return PlannedSource(own.name, tuple(scenes), table)


def _held_out(names: Sequence[str], every: int) -> np.ndarray:
    """(S,) bool: every n-th scene in the order of names; cameras of one scene go together."""
    places = [_CAMERA.sub("", name) for name in names]
    number = {place: k for k, place in enumerate(sorted(set(places)))}
    return np.array([number[place] % every == every - 1 for place in places], bool)
