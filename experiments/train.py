"""Training on rendered scenes.

    python -m experiments.train --config=experiments/configs/small_depth.py --workdir=outputs/mono

The same command continues an interrupted run. `metrics.jsonl` in the work folder has one line per
interval; `--export=DIR` writes the averaged weights as float16 after training (the pairwise network
then loads with `align3r_jax.load(DIR)`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import config_flags

from align3r_jax import config as config_lib
from align3r_jax.errors import UserError
from align3r_jax.networks import align3r
from align3r_jax.networks.small_depth import SmallDepth, SmallDepthConfig
from align3r_jax.training import loop, optimizer, partitioning, state, step, tasks
from align3r_jax.weights import store
from data.procedural import stream
from experiments import cli

CONFIG = config_flags.DEFINE_config_file(
    "config", "experiments/configs/align3r_small.py", "Settings, a Python file.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.", required=True)
EXPORT = flags.DEFINE_string("export", None, "Write the averaged weights here when done.")


def main(argv: Sequence[str]) -> None:
    del argv
    settings = CONFIG.value.to_dict()
    compute_type = jnp.dtype(settings["compute_dtype"])

    # ---- model
    if settings["task"] == "pairwise":
        network = config_lib.NETWORK_PRESETS.get(settings["network"])
        if network is None:
            raise UserError(
                f"Unknown network {settings['network']!r}; known are "
                f"{sorted(config_lib.NETWORK_PRESETS)}."
            )
        loss_fn = tasks.pairwise_loss(network, settings["alpha"], compute_type)
        first = lambda key: align3r.init_params(network, key)  # noqa: E731
    elif settings["task"] == "mono":
        network = SmallDepthConfig()
        loss_fn = tasks.mono_loss(network, dtype=compute_type)
        image = jnp.zeros((1, settings["height"], settings["width"], 3))
        first = lambda key: SmallDepth(network).init(key, image)["params"]  # noqa: E731
    else:
        raise UserError(f"config.task is {settings['task']!r}; known are pairwise and mono.")

    # ---- optimiser, devices, data
    tx = optimizer.make_optimizer(
        optimizer.OptimizerConfig(total=settings["steps"], **settings["optimizer"])
    )
    mesh = partitioning.data_mesh()
    replicated, split = partitioning.shardings(mesh, settings["batch_size"])
    batch_of = stream.batches(
        batch_size=settings["batch_size"],
        height=settings["height"],
        width=settings["width"],
        seed=settings["seed"],
        prior_dropout=settings["prior_dropout"],
        sharding=split,
    )
    validation = stream.validation_batches(settings["height"], settings["width"])

    # ---- train
    final = loop.run(
        init_state=lambda: state.create(first(jax.random.key(settings["seed"])), tx),
        step=step.make_step(loss_fn, tx, settings["average_decay"], replicated, split),
        batch_of=batch_of,
        total_steps=settings["steps"],
        folder=Path(WORKDIR.value),
        config=settings,
        sharding=replicated,
        seed=settings["seed"],
        log_every=settings["log_every"],
        save_every=settings["save_every"],
        evaluate=stream.evaluator(loss_fn, validation),
        evaluate_every=settings["evaluate_every"],
        max_seconds=60 * settings["max_minutes"] or math.inf,
    )
    if EXPORT.value and jax.process_index() == 0:
        settings_of = network if settings["task"] == "pairwise" else dataclasses.asdict(network)
        store.save_shipped(EXPORT.value, jax.device_get(final.average), settings_of)
        print(f"Weights of step {int(final.step)} written to {EXPORT.value}")


if __name__ == "__main__":
    cli.run(main)
