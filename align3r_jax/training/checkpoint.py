"""Training checkpoints with Orbax: asynchronous, newest and best kept, resumable on other devices.

A checkpoint holds the whole `TrainState` and `meta` (JSON): everything that the rest of the run
depends on. The position in the data is the step; batches are a function of its number and the seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from align3r_jax.errors import UserError
from align3r_jax.training.state import TrainState
from align3r_jax.weights import training_folder


class Checkpoints:
    """A folder of training states; use as a context manager so that pending writes finish.

    Every process calls every method; all see the same folder.
    """

    def __init__(
        self, folder: Path, keep: int = 2, keep_best: int = 1, monitor: str = "mean_of_medians"
    ):
        """`folder` is created. The newest `keep` states stay, and of those saved with a value of
        `monitor` the `keep_best` with the smallest. What an interrupted writer left is removed.
        """
        if keep < 1 or keep_best < 0:
            raise UserError(
                f"config.keep={keep}, config.keep_best={keep_best}: expected at least 1 and 0."
            )
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics.get(monitor, math.inf),
            reverse=True,  # Orbax keeps the last after sorting
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        self._monitor = monitor
        self._checkpointer = ocp.training.Checkpointer(
            Path(folder).absolute(),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The newest complete step, None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else int(latest.step)

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, value) of the smallest monitor on disk, the earlier of equals; None if none."""
        found = [
            (float(entry.metrics[self._monitor]), int(entry.step))
            for entry in self._checkpointer.checkpoints
            if entry.metrics and self._monitor in entry.metrics
        ]
        return min(found)[::-1] if found else None

    def save(self, state: TrainState, meta: Mapping[str, Any], value: float | None = None) -> None:
        """Starts writing `state` unless its step is on disk already; waits for an earlier writing.

        meta: JSON types. value: of the monitor at this step, smaller is better.
        """
        step = int(state.step)
        if any(int(entry.step) == step for entry in self._checkpointer.checkpoints):
            return
        self._checkpointer.save_checkpointables_async(
            step,
            {training_folder.STATE: state},
            force=True,  # Orbax's default policy drops a save while another one is being written
            metrics=None if value is None else {self._monitor: float(value)},
            custom_metadata={"format": training_folder.FORMAT, "jax": jax.__version__, **meta},
        )

    def read_meta(self) -> dict[str, Any]:
        """Returns what was saved with the newest state. UserError if another version wrote it."""
        folder = self._folder_of_latest()
        metadata = self._checkpointer.checkpointables_metadata(None)
        return training_folder.check_meta(metadata.custom_metadata, folder)

    def restore(self, abstract: TrainState, shardings: Any) -> TrainState:
        """Returns the newest state on the devices that `shardings` (a tree like it) says.

        The devices may be others than those of the writer. Raises UserError if the state is of
        another network or optimiser.
        """
        target = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            abstract,
            shardings,
        )
        folder = self._folder_of_latest()
        try:
            return self._checkpointer.load_checkpointables(None, {training_folder.STATE: target})[
                training_folder.STATE
            ]
        except (ValueError, KeyError, OSError) as error:
            raise UserError(
                f"The checkpoint {folder} does not fit the configuration "
                f"({str(error).splitlines()[0][:200]}): network, trained parameters and "
                "accumulation of a run stay as they are. Name another --workdir; "
                "--config.init_from takes weights from this one."
            ) from error

    def _folder_of_latest(self) -> Path:
        return Path(self._checkpointer.directory) / str(self.latest_step)


def check_continues(meta: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Raises UserError if a run that saved `meta` cannot go on as `run`.

    Both map names of settings to JSON values; every name of `run` must have the same value.
    """
    saved = meta.get("position", {})
    wrong = [
        f"{name} was {saved.get(name)!r} and is now {value!r}"
        for name, value in run.items()
        if saved.get(name) != value
    ]
    if wrong:
        raise UserError(
            f"This folder holds a run with other data: {'; '.join(wrong)}. Batches are a function "
            "of these and the step, so the run cannot go on exactly. Set them back, or name "
            "another --workdir and start it with --config.init_from=(this folder)."
        )
