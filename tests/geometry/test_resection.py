"""Resection without OpenCV: true cameras from points, with outliers, and with an unknown focal."""

import jax
import numpy as np
import pytest

from align3r_jax.geometry import resection, rigid

H, W = 12, 16
_resect = jax.jit(resection.resect)


def _view(seed, noise=0.0):
    """Points in the world, the pixels that see them, the true pose and focal, a start nearby."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(W), np.arange(H))
    pixels = np.stack([x, y], -1).reshape(-1, 2).astype(np.float32)
    focal, centre = 14.0, np.array([W / 2, H / 2], np.float32)
    depth = np.exp(0.3 * rng.normal(size=H * W))
    local = np.concatenate([(pixels - centre) / focal, np.ones((H * W, 1))], -1) * depth[:, None]
    turn = rigid.exp_so3(np.float32(0.2 * rng.normal(size=3)))
    pose = np.asarray(rigid.pose(turn, np.float32(3 * rng.normal(size=3))))
    points = np.asarray(rigid.apply(pose, local.astype(np.float32)))
    points = points + noise * rng.normal(size=points.shape)
    away = rigid.pose(
        rigid.exp_so3(np.float32(0.15 * rng.normal(size=3))), np.float32(0.2 * rng.normal(size=3))
    )
    return points.astype(np.float32), pixels, centre, focal, pose, rigid.compose(pose, away)


@pytest.mark.parametrize("seed", range(3))
def test_finds_the_camera(seed):
    points, pixels, centre, focal, pose, start = _view(seed)
    weight = np.ones(H * W, np.float32)
    broken = points.copy()
    broken[:20] += 0.5  # one in ten is an outlier
    broken[20:25] = np.nan
    found, same = _resect(broken, pixels, weight, focal, centre, start, False)
    np.testing.assert_allclose(found, pose, atol=2e-2)
    np.testing.assert_allclose(same, focal, rtol=1e-6)
    found, _ = _resect(points, pixels, weight, focal, centre, start, False)
    np.testing.assert_allclose(found, pose, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_finds_the_focal_too(seed):
    points, pixels, centre, focal, pose, start = _view(seed)
    weight = np.ones(H * W, np.float32)
    found, free = _resect(points, pixels, weight, 1.3 * focal, centre, start, True)
    np.testing.assert_allclose(free, focal, rtol=1e-3)
    np.testing.assert_allclose(found, pose, atol=2e-3)


def test_nothing_to_see_is_the_start():
    points, pixels, centre, focal, _, start = _view(0)
    found, same = _resect(points, pixels, np.zeros(H * W, np.float32), focal, centre, start, False)
    np.testing.assert_allclose(found, start, atol=1e-6)
    np.testing.assert_allclose(same, focal)
