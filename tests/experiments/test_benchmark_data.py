"""The benchmark of the training pipeline on the sample clip, made small, in a process of its own
(scripts share names of flags).
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--height=16", "--width=32", "--batch_size=2", "--samples=4", "--steps=3",
          "--step_seconds=0.005", "--idle_step"], 0),
        (["--dataset=tartanair"], 2),
    ],
    ids=["figures", "refused"],
)  # fmt: skip
def test_figures_of_both_formats(tmp_path, arguments, code):
    output = tmp_path / "data.json"
    process = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark_data", f"--output={output}", *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == code, process.stderr
    if code:
        assert "--dataset and --root together" in process.stderr
        return
    report = json.loads(output.read_text())
    assert set(report["sets"]) == {"records", "processed"}
    for found in report["sets"].values():
        cost = {row["stage"]: row["cpu_ms_per_pair"] for row in found["stages"]}
        assert set(cost) == {"decode", "prior point map", "crop", "colours", "whole sample"}
        assert all(value > 0 for value in cost.values())
        (stream,), (waiting,) = found["streams"], found["waiting"]
        assert stream["pairs_per_second"] > 0 and 0 <= waiting["waiting"] <= 1
        assert waiting["step_seconds"] == 0.005
    assert "whole sample" in process.stdout
