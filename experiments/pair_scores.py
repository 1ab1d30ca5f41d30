"""What a pairwise network is worth on pairs with truth, no aligner: depth, points, rotation.

Depth of a view is the z of the point map that its own order of the pair predicts, one median scale
per frame. The relative rotation is that of the similarity that brings view 2's own points onto
those that view 1 sees there (`geometry.registration.weighted_procrustes`), weighted by both
confidences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.config import NetworkConfig
from align3r_jax.evaluation import depth as depth_metrics
from align3r_jax.evaluation import summary, trajectory
from align3r_jax.geometry import registration
from align3r_jax.networks import align3r
from align3r_jax.structs import Array
from align3r_jax.training import pair_batch, tasks

Batch = dict[str, Array]
Predict = Callable[[Any, Batch], dict[str, Array]]


def make_predict(config: NetworkConfig) -> Predict:
    """Returns jitted (params, batch of B pairs) -> {depth (2B, H, W), rotation (B, 3, 3) of
    cam1_from_cam2, point_error () as `tasks.pairwise_error`}."""
    network = align3r.Align3R(config)
    error_of = tasks.pairwise_error(config, symmetrise=True)

    def predict(params: Any, batch: Batch) -> dict[str, Array]:
        views = pair_batch.read(batch, config)
        output = tasks.predict(network, params, views, symmetrise=True)
        # Row 2k is the pair (a, b), row 2k + 1 the pair (b, a).
        flat = (len(views.depth) // 2, -1)
        points_b = output.pointmap1[1::2].reshape(*flat, 3)
        points_b_in_a = output.pointmap2[::2].reshape(*flat, 3)
        weights = (output.confidence1[1::2] * output.confidence2[::2]).reshape(flat)
        _, rotation, _ = registration.weighted_procrustes(points_b, points_b_in_a, weights)
        error, _ = error_of(params, batch, jax.random.key(0))
        return {
            "depth": output.pointmap1[..., 2],
            "rotation": rotation,
            "point_error": error,
        }

    return jax.jit(predict)


def scores(predict: Predict, params: Any, batches: Sequence[Batch]) -> dict[str, float]:
    """Returns {abs_rel, delta_1.25, rotation_deg, point_error}, means over frames and pairs."""
    depth, turns, points = [], [], []
    for batch in batches:
        found = jax.device_get(predict(params, batch))
        depth += depth_scores(found["depth"], _frames(batch["depth"]))
        turns.append(_rotation_errors(found["rotation"], batch))
        points.append(float(found["point_error"]))
    return _means(depth) | {
        "rotation_deg": float(np.mean(np.concatenate(turns))),
        "point_error": float(np.mean(points)),
    }


def baselines(batches: Sequence[Batch]) -> dict[str, dict[str, float]]:
    """Returns the same of the depth prior, and of a constant depth with no rotation."""
    prior, constant, turns = [], [], []
    for batch in batches:
        truth = _frames(batch["depth"])
        prior += depth_scores(_frames(batch["prior_depth"]), truth)
        constant += depth_scores(np.ones_like(truth), truth)
        still = np.broadcast_to(np.eye(3), (len(batch["depth"]), 3, 3))
        turns.append(_rotation_errors(still, batch))
    return {
        "prior": _means(prior),
        "constant": _means(constant) | {"rotation_deg": float(np.mean(np.concatenate(turns)))},
    }


def without_prior(batches: Sequence[Batch]) -> list[Batch]:
    """Returns the batches with every prior missing."""
    return [batch | {"has_prior": jnp.zeros_like(batch["has_prior"])} for batch in batches]


def depth_scores(predicted: np.ndarray, truth: np.ndarray) -> list[dict[str, float]]:
    """Returns the metrics of every frame (N, H, W) that has any true depth."""
    return [
        depth_metrics.evaluate(p[None], t[None], summary.ONE_SCALE).metrics
        for p, t in zip(predicted, truth)
        if (t > 0).any()
    ]


def _frames(depth: Array) -> np.ndarray:
    return np.asarray(depth).reshape(-1, *depth.shape[-2:])


def _rotation_errors(rotation: np.ndarray, batch: Batch) -> np.ndarray:
    true = np.asarray(batch["cam1_from_cam2"])[:, :3, :3]
    return trajectory.rotation_angle_deg(np.swapaxes(true, -1, -2) @ rotation)


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {
        "abs_rel": float(np.mean([row["Abs Rel"] for row in rows])),
        "delta_1.25": float(np.mean([row["delta < 1.25"] for row in rows])),
    }
