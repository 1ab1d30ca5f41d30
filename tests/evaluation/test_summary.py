"""Mask scores and the summary with its baselines."""

import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.evaluation import motion, summary, trajectory


def test_mask_scores():
    truth = np.zeros((2, 4, 4), bool)
    truth[0, :2] = True
    guess = np.zeros_like(truth)
    guess[0, 1:3] = True
    scores = motion.evaluate(guess, truth)
    assert scores.iou == pytest.approx(4 / 12)
    assert scores.precision == scores.recall == pytest.approx(0.5)
    assert scores.mean_frame_iou == pytest.approx(4 / 12)
    assert motion.evaluate(truth * False, truth * False).iou == 1
    with pytest.raises(UserError, match="one"):
        motion.evaluate(truth, truth[:1])


def test_summary_of_the_truth_and_of_a_standing_camera():
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 5, (5, 6, 8))
    poses = trajectory.poses_from_quaternions(rng.normal(size=(5, 3)), rng.normal(size=(5, 4)))
    mask = rng.random((5, 6, 8)) < 0.3
    intrinsics = np.tile(np.diag([100.0, 100.0, 1.0]), (5, 1, 1))
    perfect = summary.evaluate_scene(
        3 * depth, poses, depth, poses, dynamic_mask=mask, truth_dynamic_mask=mask,
        prior_depth=depth**1.1, intrinsics=2 * intrinsics, truth_intrinsics=intrinsics,
    )  # fmt: skip
    assert perfect["abs_rel"] < 1e-6 and perfect["ate"] < 1e-9
    assert perfect["rotation_error_deg"] < 1e-6
    assert perfect["mask_iou"] == 1 and perfect["focal_ratio"] == 2
    assert 0 < perfect["prior_abs_rel"] < perfect["constant_abs_rel"]

    still = np.tile(np.eye(4), (5, 1, 1))
    trivial = summary.evaluate_scene(np.ones_like(depth), still, depth, poses)
    assert trivial["ate"] == pytest.approx(trivial["standing_ate"])
    assert trivial["rotation_error_deg"] == pytest.approx(trivial["standing_rotation_error_deg"])
    assert trivial["abs_rel"] == pytest.approx(trivial["constant_abs_rel"])
    assert "mask_iou" not in trivial and "prior_abs_rel" not in trivial
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    assert trivial["path_length"] == pytest.approx(steps.sum())
