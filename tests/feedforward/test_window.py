"""The bundle of the real-time mode on exact flow: focal found where it can be, held elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.feedforward import window
from align3r_jax.geometry import rigid

FOCAL = 200.0
RNG = np.random.default_rng(0)
XY = jnp.asarray(RNG.uniform([-128, -96], [128, 96], (200, 2)), jnp.float32)
LOG_RHO = jnp.asarray(0.4 * RNG.standard_normal(200), jnp.float32)


@functools.cache
def _seen(shift: float, turn: float) -> window.Window:
    """Exact flow of all slots: a camera that walks sideways and inwards and turns."""
    step = jnp.linspace(1 / window.SLOTS, 1, window.SLOTS)[:, None]
    ways = jnp.array([[1.0, 0.3, 0.5]]) * shift * step
    ways = ways.at[:, 1].multiply(jnp.cos(3 * step[:, 0]))
    turns = jnp.array([[0.3, 1.0, 0.2]]) * turn * step
    poses = rigid.pose(rigid.exp_so3(turns), ways)
    ray = jnp.concatenate([XY / FOCAL, jnp.ones_like(XY[:, :1])], axis=-1)
    y = jnp.einsum("kab,pb->kpa", poses[:, :3, :3], ray, precision="highest")
    y = y + jnp.exp(LOG_RHO)[:, None] * poses[:, None, :3, 3]
    weight = jnp.ones((window.SLOTS, len(XY)))
    kept = jnp.full((), window.SLOTS - 1, jnp.int32)
    targets = FOCAL * y[..., :2] / y[..., 2:]
    return window.Window(targets, weight, poses, kept, jnp.ones((), jnp.int32))


@pytest.fixture(scope="module")
def solve():
    return jax.jit(window.solve, static_argnames="scales")


@pytest.fixture(scope="module")
def information():
    return jax.jit(window.focal_information)


def _known(guess: float, pull: float) -> window.FocalPrior:
    log = jnp.log(jnp.float32(guess))
    return window.FocalPrior(log, jnp.float32(pull), log)


def test_focal_is_found_where_flow_says_it_and_bounded_about_its_guess(solve):
    relief = window.Relief(LOG_RHO, LOG_RHO, jnp.full(len(XY), 1e-3))
    seen = _seen(0.3, 0.2)
    for guess, expected in ((1.25 * FOCAL, FOCAL), (FOCAL / 3, 2.6 * FOCAL / 3)):
        known = _known(guess, 1e-3)
        found = known.mean
        for _ in range(3):
            _, seen, found = solve(relief, seen, XY, found, known)
        np.testing.assert_allclose(np.exp(found), expected, rtol=0.01)


def test_a_still_camera_says_nothing_of_the_focal(solve, information):
    relief = window.Relief(LOG_RHO, LOG_RHO, jnp.full(len(XY), 1e-3))
    still, moving = (
        float(information(relief, _seen(shift, turn), XY, jnp.log(FOCAL)))
        for shift, turn in ((1e-4, 1e-4), (0.3, 0.2))
    )
    assert still < 1e-3 and moving > 1
    _, _, found = solve(relief, _seen(1e-4, 1e-4), XY, jnp.log(1.3 * FOCAL), _known(1.3 * FOCAL, 1))
    np.testing.assert_allclose(np.exp(found), 1.3 * FOCAL, rtol=0.01)


@pytest.mark.slow
def test_information_is_the_curvature_of_the_cost_over_all_else(solve, information):
    relief = window.Relief(LOG_RHO, LOG_RHO, jnp.full(len(XY), 1e-3))
    seen, away = _seen(0.3, 0.2), 0.02
    expected = float(information(relief, seen, XY, jnp.log(FOCAL)))
    held = window.FocalPrior(jnp.log(FOCAL) + away, jnp.float32(1e9), jnp.log(FOCAL))
    blunt = ((1e3, 30),)  # c far above all residuals: plain least squares
    moved, poses, found = solve(relief, seen, XY, jnp.log(FOCAL), held, blunt)
    np.testing.assert_allclose(found, held.mean, atol=1e-5)
    landed, _ = window._project(jnp.exp(moved.log_rho), poses.cam_from_anchor, XY, jnp.exp(found))
    cost = float(jnp.sum((landed - seen.targets) ** 2))
    cost += float(jnp.sum(relief.pull * (moved.log_rho - LOG_RHO) ** 2))
    np.testing.assert_allclose(cost / away**2 / float(seen.weight.sum()), expected, rtol=0.1)
