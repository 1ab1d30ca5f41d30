"""Two processes train as one does, stop together when one gets SIGTERM, and one goes on alone."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def _run(folder, count, total, end=(-1, -1)):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    module = [sys.executable, "-m", "tests.training.two_processes"]
    processes = [
        subprocess.Popen(
            [*module, *map(str, (folder, port, count, rank, total, end[rank]))],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    said = [process.communicate(timeout=400)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(said)[-4000:]
    return [int((folder / f"done_{rank}").read_text()) for rank in range(count)]


def _losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        (line["step"], name): line[name]
        for line in lines
        for name in ("loss", "eval/monitor")
        if name in line
    }


def test_two_processes_are_one(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert _run(alone, 1, 12) == [12]
    stopped = _run(together, 2, 12, end=(-1, 5))
    assert stopped[0] == stopped[1] and 5 < stopped[0] < 12
    assert (together / "checkpoints" / str(stopped[0])).is_dir()
    assert _run(together, 1, 12) == [12]
    expected, found = _losses(alone), _losses(together)
    assert expected.keys() <= found.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5)
