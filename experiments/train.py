"""Training.

    python -m experiments.train --config=experiments/configs/smoke.py --workdir=outputs/smoke
    python -m experiments.train --config=... --workdir=... --config.steps=9000   # any setting

The same command continues an interrupted run, to the bit. `experiments.reconstruct
--weights=WORKDIR` uses what it has learned so far, `--export=DIR` writes the averaged weights as
float16 when done. Several processes: the same command in each, with --coordinator --num_processes
--process_id, or without them where JAX finds out by itself (TPU pods, Slurm). docs/training.md
says more.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import config_flags

from align3r_jax.config import NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.training import loop
from align3r_jax.training.state import TrainState
from align3r_jax.weights import settings as settings_lib
from align3r_jax.weights import store, training_folder
from experiments import cli, process_flags, train_settings, train_setup

CONFIG = config_flags.DEFINE_config_file(
    "config", "experiments/configs/align3r_small.py", "Settings, a Python file.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.", required=True)
EXPORT = flags.DEFINE_string("export", None, "Also write the averaged weights here when done.")
flags.adopt_module_key_flags(process_flags)  # --help lists them


def main(argv: Sequence[str]) -> None:
    del argv
    process_flags.start()
    values = CONFIG.value.to_dict()
    settings = train_settings.settings_from(values)
    if EXPORT.value and settings.task == "croco":
        raise UserError(
            "--export writes networks that predict point maps or depth; pre-training is used by "
            f"--config.init_from={WORKDIR.value}."
        )
    folder = train_setup.work_folder(WORKDIR.value)
    newest = training_folder.find(folder)
    trainer = train_setup.make_trainer(settings)
    sets = train_setup.evaluation_sets(trainer)
    with train_setup.open_batches(trainer, int(newest.name) if newest else 0) as batch_of:
        final = loop.run(
            settings=trainer.loop_settings(),
            start=trainer.start,
            abstract=trainer.abstract,
            step=trainer.step,
            batch_of=batch_of,
            shardings=trainer.shardings,
            folder=folder,
            config=values,
            meta={"network": describe(trainer)},
            position=settings.position,
            evaluate=train_setup.evaluator(trainer, sets),
            pictures=train_setup.painter(trainer, sets, batch_of),
        )
    if EXPORT.value:
        export(final, trainer)


def describe(trainer: train_setup.Trainer) -> dict[str, Any]:
    """Returns the kind and the settings of the network as JSON types."""
    network = trainer.task.network
    if not isinstance(network, NetworkConfig):
        return {"kind": "settings", "settings": dataclasses.asdict(network)}
    kind = "croco" if trainer.settings.task == "croco" else "pairwise"
    return {"kind": kind, "settings": settings_lib.encode_network(network)}


def export(final: TrainState, trainer: train_setup.Trainer) -> None:
    """Writes the averaged weights; the first process does, all hand over their parts."""
    everywhere = NamedSharding(trainer.mesh, PartitionSpec())
    average = jax.device_get(jax.jit(lambda x: x, out_shardings=everywhere)(final.average))
    if jax.process_index() == 0:
        network = trainer.task.network
        settings = network if isinstance(network, NetworkConfig) else dataclasses.asdict(network)
        store.save_shipped(EXPORT.value, average, settings)
        print(f"Weights of step {int(final.step)} written to {EXPORT.value}")


def run() -> None:
    """Runs the script; an unknown --config.NAME ends with a sentence as other bad flags do."""
    try:
        cli.run(main)
    except AttributeError as error:
        if flags.FLAGS.is_parsed():
            raise
        # What ml_collections raises while flags are read.
        text = str(error).replace("\\n", " is unknown. ").replace("\\", "").replace("'", "")
        print(f"Error: --config: {text}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run()
