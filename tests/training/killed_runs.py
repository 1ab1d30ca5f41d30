"""Runs of `tiny_run` that are killed with SIGKILL and started again, each in a process of its own.

    python -m tests.training.killed_runs FOLDER KILLS STEPS

Everything is imported once; each run is a fork from before JAX has any device. Prints JSON: the
steps at which runs were killed, and how often a half-written checkpoint was left behind.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

from tests.training import tiny_run


def start(folder: Path, total: int, tell: int | None = None) -> int:
    """Forks a run; it writes one byte into `tell` before each step. Returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        quiet = os.open(
            folder.parent / f"{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND
        )
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)

        def batch_of(number):
            if tell is not None:
                os.write(tell, b".")
            return tiny_run.batch_of(number)

        tiny_run.train(
            folder, total, batch_of=batch_of, save_every=2, evaluate_every=3, log_every=4
        )
        code = 0
    finally:
        os._exit(code)


def killed(folder: Path, total: int, steps: int, delay: float) -> int:
    """Starts a run, kills it `delay` seconds after it began `steps` steps; returns those it did."""
    listen, tell = os.pipe()
    pid = start(folder, total, tell)
    os.close(tell)
    begun = 0
    while begun < steps and os.read(listen, 1):
        begun += 1
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(listen)
    return begun


def main(folder: Path, kills: int, total: int) -> None:
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    rng = np.random.default_rng()
    through, broken = folder / "through", folder / "broken"
    assert os.waitpid(start(through, total), 0)[1] == 0
    done, torn = [], 0
    for _ in range(kills):
        # At times so early that the run is still being restored.
        steps, delay = int(rng.integers(0, 8)), float(rng.uniform(0, 0.06))
        done.append(killed(broken, total, steps, delay if steps else 5 * delay))
        with contextlib.suppress(FileNotFoundError):
            torn += any("tmp" in entry for entry in os.listdir(broken / "checkpoints"))
    assert os.waitpid(start(broken, total), 0)[1] == 0
    print(json.dumps({"done": done, "torn": torn}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
