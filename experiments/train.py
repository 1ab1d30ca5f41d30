"""Training.

    python -m experiments.train --config=experiments/configs/smoke.py --workdir=outputs/smoke
    python -m experiments.train --config=... --workdir=... --config.steps=9000   # any setting

The same command continues an interrupted run, to the bit. `experiments.reconstruct
--weights=WORKDIR` uses what it has learned so far, `--export=DIR` writes the averaged weights as
float16 when done; of pre-training that is --export=FILE.safetensors with the names of CroCo v2,
which --config.init_from of other trainings reads. Several processes: the same command in each, with
--coordinator --num_processes --process_id, or without them where JAX finds out by itself (TPU pods,
Slurm). docs/training.md says more.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import config_flags

from align3r_jax.config import NetworkConfig
from align3r_jax.training.state import TrainState
from align3r_jax.weights import croco_file, store
from experiments import cli, process_flags, train_run, train_settings, train_setup

CONFIG = config_flags.DEFINE_config_file(
    "config", "experiments/configs/align3r_small.py", "Settings, a Python file.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.", required=True)
EXPORT = flags.DEFINE_string(
    "export", None,
    "Also write the averaged weights here when done: a folder, of pre-training *.safetensors.",
)  # fmt: skip
flags.adopt_module_key_flags(process_flags)  # --help lists them


def main(argv: Sequence[str]) -> None:
    del argv
    process_flags.start()
    values = CONFIG.value.to_dict()
    settings = train_settings.settings_from(values)
    check_export(settings)
    trainer, final = train_run.train(settings, values, WORKDIR.value)
    if EXPORT.value:
        export(final, trainer)


def check_export(settings: train_settings.TrainSettings) -> None:
    """Raises UserError before anything is trained if --export cannot be written."""
    if EXPORT.value and settings.task == "croco":
        store.check_export(Path(EXPORT.value), overwrite=True)


def export(final: TrainState, trainer: train_setup.Trainer) -> None:
    """Writes the averaged weights; the first process does, all hand over their parts."""
    everywhere = NamedSharding(trainer.mesh, PartitionSpec())
    average = jax.device_get(jax.jit(lambda x: x, out_shardings=everywhere)(final.average))
    if jax.process_index() == 0:
        network = trainer.task.network
        if trainer.settings.task == "croco":
            croco_file.export(average, network, EXPORT.value, overwrite=True)
        elif isinstance(network, NetworkConfig):
            store.save_shipped(EXPORT.value, average, network)
        else:
            store.save_shipped(EXPORT.value, average, dataclasses.asdict(network))
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
