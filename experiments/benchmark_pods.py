"""What more devices would bring: operations and exchanged bytes of each, from compiled programs.

    python -m experiments.benchmark_pods --output=outputs/pods

Compiles encoding and decoding of the pairwise network (batch divided, parameters whole or split)
and the alignment of one clip (pairs divided) for 1 to 8 virtual devices and reads the compiler's
counts: nothing is run, so any machine can do it. --processes also measures 1 and 2 processes on
the clips of a folder. Prints a table, which docs/pods.md has; writes pods.json.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from align3r_jax import config
from align3r_jax.errors import UserError
from experiments import cli

PRESET = flags.DEFINE_enum(
    "preset", "align3r_vitl_512_dpt", list(config.NETWORK_PRESETS), "Settings of the network."
)
SIZE = flags.DEFINE_list(
    "size", ["288", "512"], "Height and width of a frame in pixels, multiples of 16."
)
BATCH = flags.DEFINE_integer("batch", 8, "Frames, and pairs, of a batch.", lower_bound=1)
DEVICES = flags.DEFINE_list(
    "devices", ["1", "2", "4", "8"],
    "How many virtual devices. Empty: nothing is compiled (to run --processes alone).",
)  # fmt: skip
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Network compute type.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for pods.json; default: none is written.")
PROCESSES = flags.DEFINE_string(
    "processes", None, "Also measure: glob of clips that 1 and then 2 processes work on, a core "
    "each, default settings with 64 pixels; needs --output. Default: nothing is run.",
)  # fmt: skip


def main(argv: Sequence[str]) -> None:
    del argv
    import jax

    counts = [int(count) for count in DEVICES.value]
    if PROCESSES.value is not None and OUTPUT.value is None:
        raise UserError("--processes writes results of the clips; say where with --output=DIR.")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(counts, default=1))
    from experiments import pod_programs

    height, width = (int(side) for side in SIZE.value)
    rows = []
    for count in counts:
        devices = jax.devices()[:count]
        for fsdp in sorted({1, count}):
            rows += pod_programs.network_rows(
                PRESET.value, DTYPE.value, (height, width), BATCH.value, devices, fsdp
            )
        rows.append(pod_programs.alignment_row(devices))
    report: dict[str, Any] = {"preset": PRESET.value, "size": [height, width], "rows": rows}
    if PROCESSES.value is not None:
        report["measured"] = measure(PROCESSES.value, Path(OUTPUT.value))
    if rows:
        print(pod_programs.table(rows))
    for row in report.get("measured", []):
        print(
            f"measured: {row['clips']} clips, {row['processes']} processes: {row['seconds']:.1f} s"
        )
    if OUTPUT.value:
        Path(OUTPUT.value).mkdir(parents=True, exist_ok=True)
        (Path(OUTPUT.value) / "pods.json").write_text(json.dumps(report, indent=1) + "\n")


def measure(clips: str, output: Path) -> list[dict[str, Any]]:
    """Returns the seconds that 1 and 2 processes take for all clips, programs compiled before.

    Each process has one core, so that two of them have twice the hardware of one.
    """
    command = [
        sys.executable, "-m", "experiments.reconstruct", f"--videos={clips}", "--size=64",
        "--prior=plane", "--devices=1",
    ]  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for processes in (1, 1, 2):  # the first run fills the cache of compiled programs
        folder = output / "measured"
        shutil.rmtree(folder, ignore_errors=True)
        started = time.perf_counter()
        logs = [output / f"process_{k}.log" for k in range(processes)]
        running = []
        for k, log in enumerate(logs):
            core = ["taskset", "-c", str(k % (os.cpu_count() or 1))]
            with log.open("w") as file:
                running.append(
                    subprocess.Popen(
                        [*core, *command, f"--output={folder}"], stdout=file, stderr=file
                    )
                )
        for process, log in zip(running, logs):
            if process.wait():
                raise UserError(
                    f"A process on {clips} ended with {process.returncode}; {log} says why: "
                    f"{log.read_text()[-300:]}"
                )
        seconds = time.perf_counter() - started
        done = len(list(folder.glob("*/summary.json")))
        rows.append({"clips": done, "processes": processes, "seconds": seconds})
    return rows[1:]


if __name__ == "__main__":
    cli.run(main)
