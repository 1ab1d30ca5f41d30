"""The accuracy table of README.md is what the software gives today."""

import json
import re
from pathlib import Path

import pytest

from data.procedural import benchmark
from tests.experiments.test_convert_weights import run_cases

README = Path(__file__).parents[2] / "README.md"


def committed() -> dict[str, list[float]]:
    """clip -> ATE and rotation over a standing camera's, ATE / path in %, Abs Rel, plane, IoU."""
    text = README.read_text().split("| defaults |", 1)[1].split("| with a user's prior", 1)[0]
    rows = re.findall(r"^\| (\w+) \|(.*)\|$", text, re.MULTILINE)
    return {name: [float(cell.strip(" %")) for cell in rest.split("|")] for name, rest in rows}


def test_the_committed_table_names_every_clip():
    assert tuple(committed()) == benchmark.names()
    assert f"version {benchmark.VERSION}" in README.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmark.names())
def test_the_committed_table_is_reproduced(name, tmp_path):
    """Within what another CPU's rounding may do to a run that selects and iterates."""
    ((code, _, err),) = run_cases(
        "benchmark_accuracy",
        [[f"--output={tmp_path}/scores.json", f"--clips={name}", "--priors=none"]],
        timeout=3600,  # a minute of CPU time, on a machine that may be busy
    )
    assert code == 0, err
    found = json.loads((tmp_path / "scores.json").read_text())["scores"]["defaults"][name]
    ate, rotation, _, abs_rel, plane, iou = committed()[name]
    assert found["constant_abs_rel"] == pytest.approx(plane, abs=2e-3)  # of the truth alone
    assert found["ate"] / found["standing_ate"] == pytest.approx(ate, abs=4e-3, rel=0.25)
    ratio = found["rotation_error_deg"] / found["standing_rotation_error_deg"]
    assert ratio == pytest.approx(rotation, abs=4e-3, rel=0.25)
    assert found["abs_rel"] == pytest.approx(abs_rel, abs=0.01, rel=0.1)
    assert found["mask_iou"] == pytest.approx(iou, abs=0.05)
