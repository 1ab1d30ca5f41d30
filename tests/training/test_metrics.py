"""Means, the monitor, the record on disk: exact, once per step, whatever was interrupted."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.training import meter, metrics, monitor


def test_means_skip_what_is_not_finite_and_survive_json():
    values = [0.1, np.nan, 0.7, 0.3]
    whole, cut = metrics.Means(), metrics.Means()
    for number, value in enumerate(values):
        whole.add({"loss": jnp.float32(value), "other": jnp.float32(number)})
        cut.add({"loss": jnp.float32(value), "other": jnp.float32(number)})
        cut = metrics.Means.from_json(json.loads(json.dumps(cut.to_json())))
    assert whole.broken() == 1
    means, broken = whole.take()
    assert (means, broken) == cut.take()
    np.testing.assert_allclose(means["loss"], np.mean([0.1, 0.7, 0.3]), rtol=1e-7)
    assert means["other"] == 1.5 and broken == 1
    assert whole.take() == ({}, 0)


def test_lines_behind_the_step_of_resumption_go(tmp_path):
    with metrics.MetricsLog(tmp_path, 0, tensorboard=False) as log:
        log.write(1, {"loss": 1.0})
        log.write(2, {"loss": 0.5, "eval/a/loss": math.nan})
        log.write(3, {"loss": 0.25})
    assert (tmp_path / "metrics.csv").read_text().splitlines()[2] == "2,0.5,"
    with metrics.MetricsLog(tmp_path, 2, tensorboard=False) as log:
        log.write(3, {"loss": 0.125})
    lines = metrics.read(tmp_path / metrics.RECORD)
    assert lines == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5, "eval/a/loss": None},
        {"step": 3, "loss": 0.125},
    ]


def test_the_monitor_is_a_mean_of_lower_medians_or_what_it_is_called():
    batches = {"a": [1.0, 9.0, 2.0, 3.0], "b": [4.0, 8.0, 0.0]}
    results = monitor.evaluate(lambda params, x: {"loss": params * x}, 2.0, batches)
    assert results["a"] == {"loss": 7.5, "loss_med": 4.0}, "2 and 3 are in the middle: the lower"
    assert results["b"] == {"loss": 8.0, "loss_med": 8.0}
    assert monitor.value(results, "mean_of_medians") == 6.0
    assert monitor.value(results, "min_over_sets") == 4.0
    assert monitor.value(results, "b") == 8.0
    assert monitor.lines(results)["eval/b/loss_med"] == 8.0
    monitor.check("b", batches)
    with pytest.raises(UserError, match="known are mean_of_medians, min_over_sets, a, b"):
        monitor.check("c", batches)
    with pytest.raises(UserError, match="set 'empty' gives no batch"):
        monitor.evaluate(lambda params, x: {}, 0, {"empty": []})


def test_the_peak_of_an_unknown_device_is_measured():
    peak, source = meter.peak_flops("float32")
    assert 1e9 < peak < 1e15 and source.startswith("measured float32")
    assert all(half >= single > 0 for half, single in meter.PUBLISHED_PEAKS.values())
