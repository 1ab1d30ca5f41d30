"""Killed with SIGKILL at random moments, a run ends with the bits and the log of one that was not.

Cost: 1.5 CPU seconds once and about 0.5 a kill.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from tests.training import test_loop

# The states are read as they lie on disk.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
ROOT = Path(__file__).parents[2]


def _check(folder, kills, total):
    command = [sys.executable, "-m", "tests.training.killed_runs", folder, kills, total]
    result = subprocess.run(
        [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    logs = "".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
    assert result.returncode == 0, result.stderr[-2000:] + logs
    report = json.loads(result.stdout.splitlines()[-1])

    states = [
        ocp.load_checkpointables(folder / name / "checkpoints" / str(total))["state"]
        for name in ("through", "broken")
    ]
    _assert_same(*states)
    expected, found = (test_loop._unmeasured(folder / name) for name in ("through", "broken"))
    assert found == expected
    steps = [line["step"] for line in found]
    assert steps == sorted(set(steps)) and steps[-1] == total
    for name in ("through", "broken"):  # the newest two and the best one; nothing half-written
        kept = {entry.name for entry in (folder / name / "checkpoints").iterdir()}
        assert str(total) in kept and len(kept) <= 3 and all(name.isdigit() for name in kept)
    return report


def _assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            _assert_same(x, y)
    elif a is not None:
        np.testing.assert_array_equal(a, b)


def test_a_few_kills(tmp_path):
    assert len(_check(tmp_path, 3, 10)["done"]) == 3


@pytest.mark.slow
def test_twenty_four_kills(tmp_path):
    report = _check(tmp_path, 24, 80)
    assert len(report["done"]) == 24 and len(set(report["done"])) >= 4
    assert report["torn"] >= 1, "no kill met a checkpoint being written"
