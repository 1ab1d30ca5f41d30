"""Fits against brute force."""

import jax
import numpy as np
import pytest
from scipy.optimize import linprog

from align3r_jax.geometry import depth_fit


def _data(seed, count=80):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.5, 4, count).astype(np.float32)
    y = (2.3 * x + 0.7 + 0.2 * rng.standard_t(1.5, count)).astype(np.float32)
    return x, y


@pytest.mark.parametrize("seed", range(5))
def test_least_absolute_reaches_the_linear_program(seed):
    x, y = _data(seed)
    count = len(x)
    # Minimise sum e subject to -e <= s x + t - y <= e.
    cost = np.r_[0, 0, np.ones(count)]
    line = np.c_[x, np.ones(count)]
    upper = np.block([[line, -np.eye(count)], [-line, -np.eye(count)]])
    best = linprog(cost, upper, np.r_[y, -y], bounds=[(None, None)] * 2 + [(0, None)] * count)
    scale, shift = depth_fit.least_absolute(x, y)
    ours = np.abs(float(scale) * x.astype(np.float64) + float(shift) - y).sum()
    assert ours <= best.fun * 1.0001


def test_each_fit_minimises_what_it_says():
    x, y = _data(9)
    scale, shift = depth_fit.least_squares(x, y)
    np.testing.assert_allclose([scale, shift], np.polyfit(x, y, 1), rtol=1e-4)
    scale, shift = depth_fit.median(x, y)
    ordered = np.sort(y)[(len(y) - 1) // 2] / np.sort(x)[(len(x) - 1) // 2]
    assert float(scale) == pytest.approx(ordered) and float(shift) == 0
    scale, _ = depth_fit.least_absolute_scale(x, y)
    candidates = y / x  # the optimum passes through a point
    costs = np.abs(candidates[:, None] * x - y).sum(1)
    assert np.abs(float(scale) * x - y).sum() <= costs.min() * 1.00001
    start, _ = depth_fit.median(x, y)
    scale, shift = depth_fit.adam_absolute(x, y)
    assert abs(float(scale) - float(start)) < 0.11 and abs(float(shift)) < 0.11
    assert np.abs(scale * x + shift - y).sum() < np.abs(start * x - y).sum()


@pytest.mark.parametrize(
    "name", ["median", "least_absolute_scale", "least_squares", "least_absolute"]
)
def test_masked_values_do_not_matter(name):
    x, y = _data(3)
    mask = np.arange(len(x)) % 3 != 0
    bad_x, bad_y = np.where(mask, x, np.nan), np.where(mask, y, np.inf)
    fit = jax.jit(getattr(depth_fit, name))
    np.testing.assert_allclose(fit(bad_x, bad_y, mask), fit(x[mask], y[mask]), rtol=1e-4)
    nothing = fit(x, y, np.zeros_like(mask))
    assert [float(v) for v in nothing] == [1.0, 0.0]
