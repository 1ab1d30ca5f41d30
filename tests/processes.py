"""Runs a module of the tests in processes of its own, with virtual devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(module, *arguments, devices, processes=1, timeout=1200):
    """`python -m module arguments [COORDINATOR COUNT INDEX]` in every process, until all are done.

    devices: of each process. The last three arguments only with more than one process.
    timeout: seconds; far more than an idle machine needs.
    """
    flag = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", module, *map(str, arguments)]
    running = [
        subprocess.Popen(
            command + ([address, str(processes), str(index)] if processes > 1 else []),
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for index in range(processes)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(process.returncode == 0 for process in running), "\n".join(outputs)
