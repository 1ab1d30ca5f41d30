"""Temporal alignment error on surfaces whose depth is known in closed form."""

import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.evaluation import consistency

HEIGHT, WIDTH, FRAMES = 40, 56, 4
_K = np.array([[60.0, 0, WIDTH / 2], [0, 60.0, HEIGHT / 2], [0, 0, 1]])
INTRINSICS = np.tile(_K, (FRAMES, 1, 1))


def _poses():
    """Sideways and forwards, with a turn about the vertical."""
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    for k in range(FRAMES):
        angle = 0.02 * k
        poses[k, :3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0],
                            [-np.sin(angle), 0, np.cos(angle)]]  # fmt: skip
        poses[k, :3, 3] = [0.06 * k, 0.01 * k, 0.15 * k]
    return poses


def _plane_depth(poses, normal=(0.1, -0.15, 1.0), offset=4.0):
    """Depth of the world plane n X = c seen from every camera: z = (c - n t) / (n R ray)."""
    normal = np.array(normal)
    pixels = np.stack([*np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)),
                       np.ones((HEIGHT, WIDTH))], -1)  # fmt: skip
    rays = pixels @ np.linalg.inv(_K).T
    return np.stack([
        (offset - normal @ pose[:3, 3]) / (rays @ pose[:3, :3].T @ normal) for pose in poses
    ])  # fmt: skip


@pytest.fixture(scope="module")
def plane():
    poses = _poses()
    return _plane_depth(poses), poses


def test_the_truth_scores_its_rounding_only(plane):
    depth, poses = plane
    found = consistency.evaluate(depth, poses, INTRINSICS, truth=depth)
    assert found.tae == pytest.approx(found.floor)
    assert found.tae < 0.002 and found.share > 0.8 and found.directions == 2 * (FRAMES - 1)
    wrong = poses.copy()
    wrong[:, :3, 3] *= -1
    assert consistency.evaluate(depth, wrong, INTRINSICS).tae > 10 * found.tae


def test_flicker_is_measured_in_both_directions(plane):
    depth, poses = plane
    flicker = depth * np.array([1.0, 1.2, 1.0, 1.2])[:, None, None]
    found = consistency.evaluate(flicker, poses, INTRINSICS, truth=depth).tae
    # To the next frame |1 - 1.2| / 1.2, back |1.2 - 1| / 1; the landing points move a little.
    assert found == pytest.approx((0.2 / 1.2 + 0.2) / 2, rel=0.05)
    drift = depth * np.array([1.0, 1.05, 1.1, 1.15])[:, None, None]
    assert consistency.evaluate(drift, poses, INTRINSICS).tae < 0.4 * found


def test_hidden_and_moving_pixels_take_no_part(plane):
    depth, poses = plane
    # A near box that runs: true depth disagrees along its path.
    truth, moving = depth.copy(), np.zeros(depth.shape, bool)
    for k in range(FRAMES):
        moving[k, 10:25, 5 + 10 * k : 17 + 10 * k] = True
    truth[moving] = 1.5
    assert consistency.evaluate(truth, poses, INTRINSICS).tae > 0.05
    assert consistency.evaluate(truth, poses, INTRINSICS, dynamic_mask=moving).tae < 0.002
    seen = consistency.evaluate(truth, poses, INTRINSICS, truth=truth)
    assert seen.tae < 0.02 and seen.share < 0.9
    # Of two points in one pixel the nearer one is seen.
    pair = np.full((HEIGHT, WIDTH), 4.0)
    pair[:, :20] = 2.0
    shifted = np.eye(4)
    shifted[0, 3] = 0.2
    carried = consistency.carry(pair, _K, _K, shifted, np.ones_like(pair, bool))
    assert carried[20, 23] == 2.0 and np.isinf(carried[20, 0])


def test_bad_input_is_named(plane):
    depth, poses = plane
    with pytest.raises(UserError, match="intrinsics of shape"):
        consistency.evaluate(depth, poses, INTRINSICS[:2])
    with pytest.raises(UserError, match="at least 2"):
        consistency.evaluate(depth[:1], poses[:1], INTRINSICS[:1])
    with pytest.raises(UserError, match="share a pixel"):
        consistency.evaluate(depth, poses, INTRINSICS, dynamic_mask=np.ones(depth.shape, bool))
