"""Loss functions of the two trainings: pairwise point maps and monocular log depth.

Batches are dictionaries of arrays with two views of B scenes:
images (B, 2, H, W, 3) float32 in [-1, 1]; depth (B, 2, H, W), 0 or not finite where unknown;
focal (B,) pixels, shared by the views; cam1_from_cam2 (B, 4, 4); for the pairwise network also
prior_depth (B, 2, H, W), prior_focal (B,) and has_prior (B,) bool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from align3r_jax.config import NetworkConfig
from align3r_jax.geometry import camera, rigid
from align3r_jax.networks import align3r
from align3r_jax.networks.small_depth import SmallDepth, SmallDepthConfig
from align3r_jax.structs import Array
from align3r_jax.training import losses

MAX_DEPTH = 400.0  # Align3R: farther points are not trained on


def true_pointmaps(batch: dict[str, Array]) -> losses.PointmapBatch:
    """Returns the true points of both views in camera 1, with their validity."""
    depth = batch["depth"]
    height, width = depth.shape[-2:]
    centre = jnp.array([width / 2, height / 2], jnp.float32)
    intrinsics = camera.intrinsics_matrix(batch["focal"], centre)
    valid = (depth > 0) & (depth < MAX_DEPTH) & jnp.isfinite(depth)
    depth = jnp.where(valid, depth, 1.0)
    points1 = camera.unproject(depth[:, 0], intrinsics)
    points2 = camera.unproject(depth[:, 1], intrinsics)
    points2 = rigid.apply(batch["cam1_from_cam2"][:, None, None], points2)
    return losses.PointmapBatch(points1, points2, valid[:, 0], valid[:, 1])


def prior_points(batch: dict[str, Array], view: int) -> Array:
    """Returns the prior point map (B, H, W, 3) of a view, by the focal that came with the prior.

    prior_depth is NaN where the prior is missing; prior_focal (B,) is a guess, as in use.
    """
    depth = batch["prior_depth"][:, view]
    height, width = depth.shape[-2:]
    centre = jnp.array([width / 2, height / 2], jnp.float32)
    return camera.unproject(depth, camera.intrinsics_matrix(batch["prior_focal"], centre))


def pairwise_loss(
    config: NetworkConfig, alpha: float = 0.2, dtype: Any = jnp.float32
) -> Callable[[Any, dict[str, Array], Array], tuple[Array, dict[str, Array]]]:
    """Returns loss_fn(params, batch, key) of the pairwise network (confidence regression)."""
    network = align3r.Align3R(config, dtype=dtype)

    def loss_fn(params: Any, batch: dict[str, Array], key: Array) -> tuple[Array, dict]:
        del key
        images, priors, has_prior = batch["images"], (None, None), None
        if config.prior_branch:
            priors = tuple(prior_points(batch, view) for view in (0, 1))
            has_prior = batch["has_prior"]
        output: Any = network.apply(
            {"params": params},
            images[:, 0],
            images[:, 1],
            *priors,
            has_prior1=has_prior,
            has_prior2=has_prior,
        )
        true = true_pointmaps(batch)
        predicted = losses.PointmapBatch(
            output.pointmap1, output.pointmap2, true.valid1, true.valid2
        )
        return losses.confidence_regression(
            predicted, output.confidence1, output.confidence2, true, alpha
        )

    return loss_fn


def log_depth_errors(predicted: Array, depth: Array) -> tuple[Array, Array, Array]:
    """Returns (error, valid, gradient error) of log depth (N, H, W), scale removed per frame.

    error = (p - log d) minus its mean over valid pixels of the frame.
    """
    valid = (depth > 0) & (depth < MAX_DEPTH) & jnp.isfinite(depth)
    difference = jnp.where(valid, predicted - jnp.log(jnp.where(valid, depth, 1.0)), 0.0)
    count = jnp.maximum(jnp.sum(valid, axis=(1, 2), keepdims=True), 1)
    mean = jnp.sum(difference, axis=(1, 2), keepdims=True) / count
    error = jnp.where(valid, difference - mean, 0.0)
    gradient = 0.0
    for stride in (1, 2, 4):
        e, v = error[:, ::stride, ::stride], valid[:, ::stride, ::stride]
        dx, vx = e[:, :, 1:] - e[:, :, :-1], v[:, :, 1:] & v[:, :, :-1]
        dy, vy = e[:, 1:] - e[:, :-1], v[:, 1:] & v[:, :-1]
        gradient += losses.masked_mean(jnp.abs(dx), vx) + losses.masked_mean(jnp.abs(dy), vy)
    return error, valid, gradient


def mono_loss(
    config: SmallDepthConfig, gradient_weight: float = 0.3, dtype: Any = jnp.float32
) -> Callable[[Any, dict[str, Array], Array], tuple[Array, dict[str, Array]]]:
    """Returns loss_fn of the monocular network: mean |error| + weight * gradient error.

    Scale-invariant in log depth (Eigen et al. 2014) with gradient matching (MegaDepth, eq. 3).
    """
    network = SmallDepth(config)

    def loss_fn(params: Any, batch: dict[str, Array], key: Array) -> tuple[Array, dict]:
        del key
        images = batch["images"].reshape(-1, *batch["images"].shape[2:]).astype(dtype)
        depth = batch["depth"].reshape(-1, *batch["depth"].shape[2:])
        predicted = network.apply({"params": params}, images)
        error, valid, gradient = log_depth_errors(predicted, depth)
        data = losses.masked_mean(jnp.abs(error), valid)
        return data + gradient_weight * gradient, {"abs_log": data, "gradient": gradient}

    return loss_fn
