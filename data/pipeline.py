"""Batches of training from data sets, loaded ahead by Grain.

    settings = settings_from({"mixture": "10_000 @ pointodyssey", "roots": {...}})
    with training_batches(settings) as stream:
        for step in range(steps):
            batch = stream.batch_of(step)

A batch is a function of the settings and its step alone: any number of workers, threads and
processes gives the same, and a run resumes by asking for the step it stopped at. Arrays, with B
the rows of this process and H <= W one of the resolutions, the same in all processes:

| key | shape | content |
|---|---|---|
| `images` | (B, 2, H, W, 3) uint8 | the views of a pair; portrait ones transposed |
| `depth` | (B, 2, H, W) float32 | along z in the unit of the poses, 0: unknown |
| `intrinsics` | (B, 2, 3, 3) float32 | of the stored arrays (rows swapped where transposed) |
| `cam1_from_cam2` | (B, 4, 4) float32 | |
| `portrait`, `has_prior` | (B, 2) bool | |
| `prior_points` | (B, 2, H, W, 3) float32 | prior point map scaled to [0, 1] over the whole picture, zeros without a prior; only if a prior is configured |
"""  # noqa: E501

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from absl import flags, logging

from align3r_jax.errors import UserError
from data import augment, sample_plan
from data.pipeline_settings import PipelineSettings as PipelineSettings
from data.pipeline_settings import settings_from as settings_from
from data.readers import training_sets

_LAST_STEP = 2**40
_FEW = 1000  # samples before which the share of unreadable ones says little
EVALUATION_RESOLUTION = (224, 224)


class SampleCount:
    """Counts samples that could not be read and names each of them once in the log."""

    def __init__(self, allowed: float):
        self.replaced, self.seen = 0, 0
        self._allowed = allowed
        self._named: set[str] = set()

    def add(self, loaded: sample_plan.LoadedRows) -> None:
        """Raises UserError if a row found no readable sample, or too many are not readable."""
        self.seen += loaded.rows
        self.replaced += len(loaded.replaced)
        for sentence in loaded.replaced:
            if sentence not in self._named:
                self._named.add(sentence)
                logging.warning("Another sample is used instead: %s", sentence)
        if loaded.failure:
            raise UserError(loaded.failure)
        if self.replaced > self._allowed * max(self.seen, _FEW):
            raise UserError(
                f"{self.replaced} of {self.seen} samples cannot be read; "
                f"max_unreadable={self._allowed:g} allows {self._allowed:.2%} of them "
                f"({self._allowed * _FEW:g} of the first {_FEW}). The log names them."
            )


class PipelineStream:
    """`batch_of(step)`, quick for the step after the last one asked for. Use it in a `with`, or
    call `close()`.

    samples: those of this process that could not be read, and all of them, so far.
    """

    def __init__(self, plan: sample_plan.SamplePlan, rows: np.ndarray, start_step: int = 0):
        self.plan = plan
        self.samples = SampleCount(plan.settings.max_unreadable)
        self._loader = sample_plan.RowLoader(plan, plan.training_draw, rows)
        self._iterator: Any = None
        self._start(start_step)

    @property
    def samples_per_epoch(self) -> int:
        return self.plan.samples_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    def batch_of(self, step: int) -> sample_plan.Batch:
        """Returns the rows of this process of a step's batch; see the module.

        Raises UserError if more samples cannot be read than `max_unreadable` allows.
        """
        if step != self._next or self._iterator is None:
            self._start(step)
        loaded = next(self._iterator)
        self._next = step + 1
        self.samples.add(loaded)
        if not self.plan.settings.workers:
            return loaded.batch
        # Grain's arrays lie in memory of the worker that goes when they go.
        return {name: np.array(array) for name, array in loaded.batch.items()}

    def close(self) -> None:
        """Stops workers and threads. The stream can be used again and then starts them anew."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> PipelineStream:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _start(self, step: int) -> None:
        import grain

        if step < 0:
            raise ValueError(f"Steps count from 0, got {step}.")
        self.close()
        settings = self.plan.settings
        options = grain.ReadOptions(
            num_threads=settings.threads, prefetch_buffer_size=settings.prefetch
        )
        steps = grain.MapDataset.range(step, _LAST_STEP).map(self._loader).to_iter_dataset(options)
        if settings.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain reads flags of its own; defaults in notebooks
            workers = grain.MultiprocessingOptions(num_workers=settings.workers)
            steps = steps.mp_prefetch(workers, worker_init_fn=_start_worker)
        self._iterator = iter(steps)
        self._iterator.start_prefetch()
        self._next = step


class EvaluationBatches(Sequence):
    """The fixed batches of an evaluation, each loaded when it is asked for."""

    def __init__(self, plan: sample_plan.SamplePlan, rows: np.ndarray):
        self.plan = plan
        self.samples = SampleCount(plan.settings.max_unreadable)
        self._loader = sample_plan.RowLoader(plan, plan.evaluation_draw, rows)

    def __len__(self) -> int:
        return -(-self.plan.samples_per_epoch // self.plan.settings.batch_size)

    @overload
    def __getitem__(self, index: int) -> sample_plan.Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[sample_plan.Batch]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Raises UserError as `PipelineStream.batch_of`; what replaces a sample is fixed too."""
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)}.")
        loaded = self._loader(index % len(self))
        self.samples.add(loaded)
        return loaded.batch


def training_batches(
    settings: PipelineSettings,
    start_step: int = 0,
    process_index: int | None = None,
    process_count: int | None = None,
    *,
    find_scenes: sample_plan.SceneFinder = training_sets.scenes,
) -> PipelineStream:
    """Returns the stream of batches, loading from `start_step` on.

    Process p of P gets rows p B / P ... of the global batch of B; default: JAX's own p and P.
    find_scenes: where scenes of a set come from, as `training_sets.scenes`.
    Raises UserError for wrong settings, missing folders, or a batch that P does not divide.
    """
    rows = _rows(settings.batch_size, process_index, process_count)
    return PipelineStream(sample_plan.make_plan(settings, find_scenes), rows, start_step)


def evaluation_batches(
    settings: PipelineSettings,
    process_index: int | None = None,
    process_count: int | None = None,
    *,
    resolution: tuple[int, int] = EVALUATION_RESOLUTION,
    find_scenes: sample_plan.SceneFinder = training_sets.scenes,
) -> EvaluationBatches:
    """Returns the batches of a fixed subset, unaugmented: `N @ set` is always the same N.

    The subset is the reference's epoch 0 (seed 777). Of a set with `hold_out` and the split
    "train" the held-out scenes are taken. Rows that fill the last batch have depth 0 everywhere.
    """
    settings = dataclasses.replace(
        settings, augmentation=augment.NONE, resolutions=(tuple(resolution),)
    )
    rows = _rows(settings.batch_size, process_index, process_count)
    return EvaluationBatches(sample_plan.make_plan(settings, find_scenes, held_out=True), rows)


def _rows(batch_size: int, index: int | None, count: int | None) -> np.ndarray:
    if index is None or count is None:
        import jax

        index, count = jax.process_index(), jax.process_count()
    if batch_size % count or not 0 <= index < count:
        raise UserError(
            f"A batch of {batch_size} pairs cannot be split evenly over {count} processes "
            f"(this is number {index}); choose a multiple of {count}."
        )
    share = batch_size // count
    return np.arange(index * share, (index + 1) * share)


def _start_worker(index: int, count: int) -> None:
    """In a worker: no accelerator is touched, and OpenCV does not multiply the threads."""
    del index, count
    import cv2
    import jax

    jax.config.update("jax_platforms", "cpu")
    cv2.setNumThreads(0)
