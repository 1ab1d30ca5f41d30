"""The flags of runs that several processes share, and how a process joins such a run."""

from __future__ import annotations

import os

import jax
from absl import flags

from align3r_jax.errors import UserError

COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, if several run.")
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes run, if several do."
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this one is, from 0; if several run."
)
DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", ["auto", "on", "off"],
    "Several processes found by JAX itself (on: TPU pods, Slurm, Open MPI); auto: where the "
    "environment says so.",
)  # fmt: skip


def start(recoverable: bool = False) -> None:
    """Joins the other processes of this run, if there are any; before anything touches devices.

    recoverable: where nothing is exchanged between devices of different processes, so that the
    others can go on when one dies. Raises UserError if only some of the three flags are given.
    """
    jax.config.update("jax_enable_recoverability", recoverable)
    given = [flag.value is not None for flag in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)]
    if any(given):
        if not all(given):
            raise UserError("--coordinator, --num_processes and --process_id go together.")
        if NUM_PROCESSES.value > 1:
            jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    elif DISTRIBUTED.value == "on" or (DISTRIBUTED.value == "auto" and _is_one_of_several()):
        jax.distributed.initialize()


def _is_one_of_several() -> bool:
    slurm = "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return slurm or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
