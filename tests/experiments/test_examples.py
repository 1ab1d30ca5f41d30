"""Every numbered example runs and reaches what it shows."""

import importlib


def test_align_your_own_point_maps(capsys):
    errors = importlib.import_module("experiments.examples.01_align_your_own_point_maps").main()
    assert errors["ate"] < 0.1 * errors["standing_ate"]
    assert errors["abs_rel"] < 0.1 * errors["constant_abs_rel"]
    assert "ATE" in capsys.readouterr().out
