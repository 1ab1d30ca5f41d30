"""Every numbered example runs and reaches what it shows."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_align_your_own_point_maps(capsys):
    errors = importlib.import_module("experiments.examples.01_align_your_own_point_maps").main()
    assert errors["ate"] < 0.1 * errors["standing_ate"]
    assert errors["abs_rel"] < 0.1 * errors["constant_abs_rel"]
    assert "ATE" in capsys.readouterr().out


@pytest.mark.slow
def test_learn_confidence_through_alignment(tmp_path):
    """In a process of its own: two scripts with flags do not share one."""
    module = "experiments.examples.02_learn_confidence_through_alignment"
    done = subprocess.run(
        [sys.executable, "-m", module, f"--output={tmp_path}", "--steps=15"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    errors = [
        tuple(map(float, re.findall(r"([\d.]+) m", line))) for line in done.stdout.splitlines()
    ]
    assert len(errors) == 2
    for before, after in errors:
        assert after < before
    assert (tmp_path / "learned_confidence.png").stat().st_size < 200_000
