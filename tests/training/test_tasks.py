"""Losses of the two trainings: truth scores zero, gradients reach what should learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.config import NETWORK_PRESETS
from align3r_jax.networks import align3r
from align3r_jax.training import losses, tasks

HEIGHT, WIDTH = 32, 48


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    depth = np.exp(0.3 * rng.normal(size=(2, 2, HEIGHT, WIDTH))).astype(np.float32)
    pose = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    pose[:, 0, 3] = 0.1
    return {
        "images": rng.uniform(-1, 1, (2, 2, HEIGHT, WIDTH, 3)).astype(np.float32),
        "depth": depth,
        "focal": np.full(2, 45.0, np.float32),
        "cam1_from_cam2": pose,
        "prior_depth": 1.2 * depth,
        "prior_focal": np.full(2, 45.0, np.float32),
        "has_prior": np.array([True, False]),
    }


def test_true_points_lie_in_camera_1(batch):
    true = tasks.true_pointmaps(batch)
    np.testing.assert_allclose(true.points1[..., 2], batch["depth"][:, 0], rtol=1e-6)
    np.testing.assert_allclose(true.points2[..., 2], batch["depth"][:, 1], rtol=1e-6)
    column, row = WIDTH // 2 + 9, HEIGHT // 2
    expected = 9 / 45.0 * batch["depth"][:, 1, row, column] + 0.1
    np.testing.assert_allclose(true.points2[:, row, column, 0], expected, rtol=1e-5)


def test_unknown_and_far_depth_is_not_trained_on(batch):
    depth = batch["depth"].copy()
    depth[0, 0, 0, :3] = [0.0, np.nan, 500.0]
    true = tasks.true_pointmaps(batch | {"depth": depth})
    assert not true.valid1[0, 0, :3].any() and true.valid1[0, 0, 3:].all()
    assert np.isfinite(true.points1).all()


def test_scale_does_not_count_in_log_depth(batch):
    depth = batch["depth"].reshape(-1, HEIGHT, WIDTH)
    error, valid, gradient = tasks.log_depth_errors(np.log(depth) + 0.7, depth)
    assert valid.all()
    np.testing.assert_allclose(error, 0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.slow
def test_the_small_network_starts_at_its_prior_and_learns(batch):
    config = dataclasses.replace(NETWORK_PRESETS["align3r_small"], enc_depth=1)
    params = align3r.init_params(config, jax.random.key(0))
    loss_fn = tasks.pairwise_loss(config)
    gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (_, details), grads = gradient(params, batch, jax.random.key(0))
    true = tasks.true_pointmaps(batch)
    both = dict(batch, has_prior=np.array([True, True]))
    prior = losses.PointmapBatch(
        tasks.prior_points(both, 0), tasks.prior_points(both, 1), true.valid1, true.valid2
    )
    _, at_prior = losses.pointmap_regression(prior, true)
    (_, with_prior), _ = gradient(params, both, jax.random.key(0))
    np.testing.assert_allclose(with_prior["regression_1"], at_prior["regression_1"], rtol=1e-3)
    assert details["regression_1"] > with_prior["regression_1"], "without a prior: a plane"
    norms = {k: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(v)) for k, v in grads.items()}
    assert norms["head1"] > 0 and norms["head2"] > 0
    assert all(np.isfinite(v) for v in norms.values())
