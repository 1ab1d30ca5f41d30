"""Every numbered example runs and reaches what it shows."""

import importlib
import re

import pytest
from absl.testing import flagsaver


@pytest.mark.slow
def test_align_your_own_point_maps(capsys):
    errors = importlib.import_module("experiments.examples.01_align_your_own_point_maps").main()
    assert errors["ate"] < 0.1 * errors["standing_ate"]
    assert errors["abs_rel"] < 0.1 * errors["constant_abs_rel"]
    assert "ATE" in capsys.readouterr().out


@pytest.mark.slow
def test_learn_confidence_through_alignment(tmp_path, capsys):
    example = importlib.import_module("experiments.examples.02_learn_confidence_through_alignment")
    with flagsaver.flagsaver(output=str(tmp_path), steps=15):
        example.main([])
    lines = capsys.readouterr().out.splitlines()
    errors = [tuple(map(float, re.findall(r"([\d.]+) m", line))) for line in lines]
    assert len(errors) == 2
    for before, after in errors:
        assert after < before
    assert (tmp_path / "learned_confidence.png").stat().st_size < 200_000
