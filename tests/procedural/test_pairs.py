"""Training pairs: consistent truth, variety, rejection, determinism."""

import jax
import numpy as np

from data.procedural import pairs


def test_pose_depth_and_flow_agree(batch):
    count, _, height, width = batch.depth.shape
    y, x = np.mgrid[:height, :width].astype(np.float64)
    worst = 0.0
    for k in range(count):
        depth, focal = batch.depth[k, 0].astype(np.float64), float(batch.focal[k])
        points = np.stack(
            [(x - width / 2) / focal * depth, (y - height / 2) / focal * depth, depth], -1
        )
        cam2_from_cam1 = np.linalg.inv(batch.cam1_from_cam2[k].astype(np.float64))
        moved = points @ cam2_from_cam1[:3, :3].T + cam2_from_cam1[:3, 3]
        still = ~batch.dynamic_mask[k, 0] & (moved[..., 2] > 0.1)
        flow = np.stack(
            [
                moved[..., 0] / moved[..., 2] * focal + width / 2 - x,
                moved[..., 1] / moved[..., 2] * focal + height / 2 - y,
            ],
            -1,
        )
        error = np.abs(flow - batch.flow[k])[still]
        near = np.abs(batch.flow[k])[still] < 4 * width
        worst = max(worst, error[near].max())
    assert worst < 2e-3


def test_ranges_and_rejection(batch):
    assert batch.rgb.dtype == np.float32
    assert batch.rgb.min() >= 0 and batch.rgb.max() <= 1
    assert batch.valid.mean() > 0.9
    nearest = batch.depth[batch.valid].min((1, 2, 3))
    assert (nearest > 0.1).all()  # judged on a coarse grid, so not 0.15 exactly
    brightness = batch.rgb.mean((2, 3, 4))
    assert (brightness > 0.08).all() and (brightness < 0.9).all()
    assert (batch.rgb.std((2, 3)) > 0.01).all()
    flat = np.full((8, 8), 2.0)
    relief = np.exp(np.linspace(0, 1, 64)).reshape(8, 8)
    assert bool(pairs.acceptable(relief, relief))
    assert not bool(pairs.acceptable(relief, flat))
    assert not bool(pairs.acceptable(relief, relief * 5))
    assert not bool(pairs.acceptable(relief * 0.1, relief * 0.1))


def test_pitch_and_roll_vary(scenes):
    """Views look down on things as well as across; some are rolled."""
    rotation, _ = scenes
    down = np.degrees(np.arcsin(-rotation[:, 2, 2]))
    assert np.percentile(down, 10) < 8 and np.percentile(down, 90) > 45
    roll = np.degrees(np.arcsin(rotation[:, 2, 0]))
    assert (np.abs(roll) > 10).mean() > 0.02


def test_deterministic(batch, bank):
    again = jax.device_get(pairs.render_pairs(jax.random.key(0), bank, 12, 48, 64))
    np.testing.assert_array_equal(again.rgb, batch.rgb)
    np.testing.assert_array_equal(again.depth, batch.depth)
