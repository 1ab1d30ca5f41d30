"""The few numbers that say how good a reconstruction is, with the trivial baselines beside them."""

from __future__ import annotations

import numpy as np

from align3r_jax.evaluation import depth as depth_metrics
from align3r_jax.evaluation import motion, trajectory

ONE_SCALE = depth_metrics.DepthProtocol(
    fit="median", min_depth=1e-3, max_depth=None, clip=(None, None)
)


def evaluate_scene(
    depth: np.ndarray,
    world_from_cam: np.ndarray,
    truth_depth: np.ndarray,
    truth_world_from_cam: np.ndarray,
    *,
    dynamic_mask: np.ndarray | None = None,
    truth_dynamic_mask: np.ndarray | None = None,
    prior_depth: np.ndarray | None = None,
    intrinsics: np.ndarray | None = None,
    truth_intrinsics: np.ndarray | None = None,
) -> dict[str, float]:
    """Compares a scene with the truth; lower is better except for mask_iou.

    depth, truth_depth, prior_depth: (T, H, W), one size; truth <= 0 or not finite = not measured.
    Poses (T, 4, 4). Masks (T, H, W) bool. intrinsics (T, 3, 3) pixels of one and the same size.

    Returns: ate, standing_ate (a camera that never moves), path_length, ate_over_path;
    rotation_error_deg and standing_rotation_error_deg (means over consecutive frames); rpe_trans,
    rpe_rot_deg; abs_rel, delta_1.25 with one median scale for the whole sequence,
    constant_abs_rel (every pixel at one depth) and prior_abs_rel likewise; mask_iou; focal_ratio
    (mean of predicted / true); degenerate = 1 if the two paths fix no similarity. Keys whose
    inputs are missing are left out.
    """
    path = trajectory.evaluate(world_from_cam, truth_world_from_cam, strict=False)
    standing = trajectory.standing_camera(truth_world_from_cam)
    length = trajectory.path_length(truth_world_from_cam)
    result = {
        "ate": path.ate,
        "standing_ate": standing.ate,
        "path_length": length,
        "ate_over_path": path.ate / length if length > 0 else float("nan"),
        "rotation_error_deg": _mean_rotation_error(world_from_cam, truth_world_from_cam),
        "standing_rotation_error_deg": _mean_rotation_error(
            np.tile(np.eye(4), (len(truth_world_from_cam), 1, 1)), truth_world_from_cam
        ),
        "rpe_trans": path.rpe_trans,
        "rpe_rot_deg": path.rpe_rot_deg,
        "degenerate": float(path.similarity.degenerate),
    }
    scored = depth_metrics.evaluate(np.asarray(depth), truth_depth, ONE_SCALE).metrics
    result["abs_rel"] = scored["Abs Rel"]
    result["delta_1.25"] = scored["delta < 1.25"]
    result["constant_abs_rel"] = _abs_rel(np.ones_like(truth_depth), truth_depth)
    if prior_depth is not None:
        result["prior_abs_rel"] = _abs_rel(prior_depth, truth_depth)
    if dynamic_mask is not None and truth_dynamic_mask is not None:
        result["mask_iou"] = motion.evaluate(dynamic_mask, truth_dynamic_mask).iou
    if intrinsics is not None and truth_intrinsics is not None:
        ratio = np.asarray(intrinsics)[:, 0, 0] / np.asarray(truth_intrinsics)[:, 0, 0]
        result["focal_ratio"] = float(ratio.mean())
    return result


def _abs_rel(prediction, truth):
    return depth_metrics.evaluate(np.asarray(prediction), truth, ONE_SCALE).metrics["Abs Rel"]


def _mean_rotation_error(prediction, truth):
    prediction, truth = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    return float(trajectory.relative_errors(prediction, truth)[1].mean())
