"""The training loop: resume, batches by step number, log lines, checkpoints, evaluation, stopping.

A run is a function of (config, seed): the batch and the key of a step depend on its number alone,
so a run that was killed anywhere and started again ends with the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from align3r_jax.errors import UserError
from align3r_jax.io import atomic
from align3r_jax.structs import Array
from align3r_jax.training import checkpoint as checkpoint_lib
from align3r_jax.training import meter as meter_lib
from align3r_jax.training import metrics, monitor, stopping
from align3r_jax.training import optimizer as optimizer_lib
from align3r_jax.training.state import TrainState

Step = Callable[[TrainState, Any, Array], tuple[TrainState, dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """Counts are of steps; 0 turns a thing off.

    batch_size: samples of a step, of all processes. keep, keep_best: checkpoints that stay (see
    `Checkpoints`). monitor: of `training.monitor`. stop_on_non_finite: False skips and counts
    steps with a loss that is not finite. compute_dtype: whose peak MFU refers to.
    """

    steps: int
    batch_size: int
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    evaluate_every: int = 0
    images_every: int = 0
    keep: int = 2
    keep_best: int = 1
    monitor: str = monitor.MEAN_OF_MEDIANS
    max_seconds: float = math.inf
    stop_on_non_finite: bool = True
    compute_dtype: str = "float32"
    tensorboard: bool = True


def run(
    *,
    settings: LoopSettings,
    start: Callable[[], TrainState],
    abstract: TrainState,
    step: Step,
    batch_of: Callable[[int], Any],
    shardings: Any,
    folder: Path,
    config: dict[str, Any],
    meta: dict[str, Any] | None = None,
    position: dict[str, Any] | None = None,
    evaluate: Callable[[Any], monitor.Results] | None = None,
    pictures: Callable[[Any], dict[str, np.ndarray]] | None = None,
) -> TrainState:
    """Trains from the newest checkpoint of `folder` (or the start) to `settings.steps`.

    start: gives the state before the first step, placed; not called when a run goes on. abstract:
    its shapes. step: jitted, donates the state. shardings: tree like the state. evaluate: averaged
    parameters -> scores of named sets. pictures: averaged parameters -> name -> (H, W, 3) uint8.
    config, meta and position (JSON types) go into every checkpoint; position is what batches depend
    on beside step, seed and batch size, and must be the same in a run that resumes. Every process
    calls this; the first one writes `metrics.jsonl`, `metrics.csv`, `config.json`, `run.json`,
    `tensorboard/` and `images/`.

    Stops early, with a checkpoint, after `max_seconds`, on Ctrl-C and on SIGTERM. Raises UserError
    when the loss is not finite (the newest good checkpoint stays), and when `folder` holds a run
    that cannot go on with these settings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writer = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            checkpoint_lib.Checkpoints(
                folder / "checkpoints", settings.keep, settings.keep_best, settings.monitor
            )
        )
        depends = {"seed": settings.seed, "batch_size": settings.batch_size, **(position or {})}
        saved: dict[str, Any] = {}
        if checkpoints.latest_step is not None:
            saved = checkpoints.read_meta()
            checkpoint_lib.check_continues(saved, depends)
            state = checkpoints.restore(abstract, shardings)
        else:
            state = start()
        first = int(state.step)
        log = None
        if writer:
            _write_json(folder / "config.json", config)
            log = stack.enter_context(metrics.MetricsLog(folder, first, settings.tensorboard))
        session = _Session(
            settings, folder, {**(meta or {}), "position": depends, "config": config},
            checkpoints, log, metrics.Means.from_json(saved.get("means")),
            float(saved.get("seconds", 0.0)), evaluate, pictures,
        )  # fmt: skip
        return session.train(state, first, step, batch_of)


class _Session:
    """One process's part of a run, from its start or resumption to its end."""

    def __init__(
        self,
        settings: LoopSettings,
        folder: Path,
        meta: dict[str, Any],
        checkpoints: checkpoint_lib.Checkpoints,
        log: metrics.MetricsLog | None,
        means: metrics.Means,
        seconds: float,
        evaluate: Callable[[Any], monitor.Results] | None,
        pictures: Callable[[Any], dict[str, np.ndarray]] | None,
    ):
        self._settings, self._folder, self._meta = settings, folder, meta
        self._checkpoints, self._log, self._means = checkpoints, log, means
        self._evaluate, self._pictures = evaluate, pictures
        self._seconds, self._started = seconds, time.monotonic()  # seconds of earlier runs
        best = checkpoints.best
        self._best = best[1] if best else math.inf
        self._peak = self._peak_of_all()

    def train(
        self, state: TrainState, first: int, step: Step, batch_of: Callable[[int], Any]
    ) -> TrainState:
        """Returns the state after the last step, or after the one where the run was stopped."""
        settings = self._settings
        key = jax.random.key(settings.seed)
        meter = meter_lib.Meter(step, settings.batch_size)
        reason = None
        bar = tqdm(total=settings.steps, initial=first, disable=self._log is None, desc="train")
        with bar, stopping.Stopper(settings.max_seconds) as stopper:
            for number in range(first, settings.steps):
                batch = meter.batch(batch_of, number)
                state, details = meter.step(state, batch, jax.random.fold_in(key, number))
                self._means.add(details)
                bar.update()
                done = number + 1
                logged = _due(done, settings.log_every) or done == settings.steps
                line = self._account(state, done, meter) if logged else {}
                scores, value = self._scores(state, done, meter)
                if logged:
                    bar.set_postfix(loss=f"{line.get('loss', math.nan):.4f}")
                if self._log is not None and line | scores:
                    self._log.write(done, line | scores)
                if value is not None and value < self._best:
                    self._best = value
                    self._save(state, done, value)
                elif _due(done, settings.save_every):
                    self._save(state, done, value)
                reason = stopper.reason(done, together=logged)
                if reason:
                    break
            if reason:
                bar.write(
                    f"Stopped by {reason} at step {done}; the same command goes on from here."
                )
        self._save(state, int(state.step), None)
        return state

    def _account(self, state: TrainState, done: int, meter: meter_lib.Meter) -> dict[str, Any]:
        """Means and costs since the last line."""
        self._check_finite(done)
        line, broken = self._means.take()
        return {
            **line,
            "non_finite": broken,
            "skipped": optimizer_lib.skipped_updates(state.opt_state),
            **meter.take(self._peak),
            "seconds": self._seconds + time.monotonic() - self._started,
        }

    def _check_finite(self, done: int) -> None:
        broken = self._means.broken()
        if broken and self._settings.stop_on_non_finite:
            raise UserError(
                f"The loss was not finite in {broken} of the steps up to {done}; lower "
                "config.optimizer.lr or check the data, or set "
                "config.stop_on_non_finite=False to skip such steps. The newest good state is in "
                f"{self._folder / 'checkpoints'}."
            )

    def _peak_of_all(self) -> float:
        """Operations per second of all devices; where the number is from is told in `run.json`."""
        per_device, source = meter_lib.peak_flops(self._settings.compute_dtype)
        if self._log is not None:
            content = {
                "devices": f"{jax.device_count()} x {jax.local_devices()[0].device_kind}",
                "processes": jax.process_count(),
                "jax": jax.__version__,
                "peak_flops_per_device": per_device,
                "peak_source": source,
            }
            _write_json(self._folder / "run.json", content)
        return per_device * jax.device_count()

    def _scores(
        self, state: TrainState, done: int, meter: meter_lib.Meter
    ) -> tuple[dict[str, float], float | None]:
        """Evaluates and draws where it is due; returns the scores and the monitor."""
        settings = self._settings
        scores: dict[str, float] = {}
        value = None
        started = time.monotonic()
        if self._evaluate and _due(done, settings.evaluate_every):
            results = self._evaluate(state.average)
            value = monitor.value(results, settings.monitor)
            scores = monitor.lines(results) | {"eval/monitor": value}
        if self._pictures and _due(done, settings.images_every):
            drawn = self._pictures(state.average)
            if self._log is not None:
                for name, rgb in drawn.items():
                    self._log.picture(done, name, rgb)
        meter.elsewhere(time.monotonic() - started)
        return scores, value

    def _save(self, state: TrainState, done: int, value: float | None) -> None:
        self._check_finite(done)
        changing = {
            "step": done,
            "means": self._means.to_json(),
            "seconds": self._seconds + time.monotonic() - self._started,
        }
        self._checkpoints.save(state, self._meta | changing, value)


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _write_json(path: Path, content: dict[str, Any]) -> None:
    atomic.replace_file(path, (json.dumps(content, indent=1) + "\n").encode())
