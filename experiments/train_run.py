"""One training from its settings: set up, run or continued, and handed back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align3r_jax.config import NetworkConfig
from align3r_jax.training import loop
from align3r_jax.training.state import TrainState
from align3r_jax.weights import settings as settings_lib
from align3r_jax.weights import training_folder
from experiments import train_setup
from experiments.train_settings import TrainSettings


def train(
    settings: TrainSettings, values: Mapping[str, Any], workdir: str | Path
) -> tuple[train_setup.Trainer, TrainState]:
    """Trains in a work folder, from its newest checkpoint if there is one.

    values: the configuration that `settings` are of, as it is kept beside the weights. Returns the
    trainer and the state after the last step, or after the one where the run was stopped.
    Raises UserError as `train_setup.make_trainer` and `training.loop.run` do.
    """
    folder = train_setup.work_folder(str(workdir))
    newest = training_folder.find(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(train_setup.compiler(settings))
        trainer = train_setup.make_trainer(settings)
        sets = train_setup.evaluation_sets(trainer)
        batch_of = stack.enter_context(
            train_setup.open_batches(trainer, int(newest.name) if newest else 0)
        )
        final = loop.run(
            settings=trainer.loop_settings(),
            start=trainer.start,
            abstract=trainer.abstract,
            step=trainer.step,
            batch_of=batch_of,
            shardings=trainer.shardings,
            folder=folder,
            config=dict(values),
            meta={"network": describe(trainer)},
            position=settings.position,
            evaluate=train_setup.evaluator(trainer, sets),
            pictures=train_setup.painter(trainer, sets, batch_of),
        )
    return trainer, final


def describe(trainer: train_setup.Trainer) -> dict[str, Any]:
    """Returns the kind and the settings of the network as JSON types."""
    network = trainer.task.network
    if not isinstance(network, NetworkConfig):
        return {"kind": "settings", "settings": dataclasses.asdict(network)}
    kind = "croco" if trainer.settings.task == "croco" else "pairwise"
    return {"kind": kind, "settings": settings_lib.encode_network(network)}
