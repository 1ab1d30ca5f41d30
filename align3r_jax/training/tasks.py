"""Loss functions of the trainings on pairs of views: pairwise point maps, monocular log depth.

Every task gives loss_fn(params, batch, key) -> (loss, details), all in float32. Batches are
described in `training.pair_batch`; masked pre-training is in `training.croco_task`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from align3r_jax.config import NetworkConfig
from align3r_jax.networks import align3r
from align3r_jax.networks.align3r import PairOutput
from align3r_jax.networks.small_depth import SmallDepth, SmallDepthConfig
from align3r_jax.structs import Array
from align3r_jax.training import losses, pair_batch
from align3r_jax.training.pair_batch import MAX_DEPTH, Views
from align3r_jax.training.step import LossFn


def pairwise_loss(
    config: NetworkConfig,
    alpha: float = 0.2,
    dtype: Any = jnp.float32,
    *,
    remat: bool = False,
    symmetrise: bool = False,
    norm_mode: losses.NormMode = "avg_dis",
    gt_scale: bool = False,
    metric_weight: float = 0.0,
    max_depth: float = MAX_DEPTH["align3r"],
    rescue_empty_views: bool = False,
    max_distance: float | None = None,
    prior_dropout: float = 0.0,
) -> LossFn:
    """Returns loss_fn of the pairwise network: confidence-weighted regression.

    dtype: what encoder and decoders compute in; heads and loss are float32. remat: compute
    activations again in the backward pass. symmetrise: both orders of every pair are trained, each
    view is encoded once. metric_weight: adds so much of the plain regression in the unit of the
    truth. max_depth, rescue_empty_views: which truth counts (`pair_batch.valid_depth`);
    max_distance: only points so near to camera 1. prior_dropout: this share of the pairs is
    trained without its priors, anew in every step.
    """
    network = align3r.Align3R(config, dtype=dtype, remat=remat)

    def loss_fn(params: Any, batch: dict[str, Array], key: Array) -> tuple[Array, dict]:
        views = pair_batch.drop_priors(pair_batch.read(batch, config), prior_dropout, key)
        output = predict(network, params, views, symmetrise)
        true = _truth(views, symmetrise, max_depth, rescue_empty_views, max_distance)
        predicted = losses.PointmapBatch(
            output.pointmap1, output.pointmap2, true.valid1, true.valid2
        )
        loss, details = losses.confidence_regression(
            predicted, output.confidence1, output.confidence2, true, alpha, norm_mode, gt_scale
        )
        if metric_weight:
            metric, _ = losses.pointmap_regression(predicted, true, norm_mode, gt_scale=True)
            loss, details = loss + metric_weight * metric, details | {"metric": metric}
        return loss, details

    return loss_fn


def pairwise_error(
    config: NetworkConfig,
    dtype: Any = jnp.float32,
    *,
    symmetrise: bool = False,
    max_depth: float = MAX_DEPTH["align3r"],
    invariance: losses.Invariance = "shift_scale",
    gt_scale: bool = True,
) -> LossFn:
    """Returns error_fn like a loss_fn: what Align3R monitors on its test sets.

    The mean distance of points in the unit of the truth, shift of z and scale taken out by
    medians, view 1 plus view 2; details per view.
    """
    network = align3r.Align3R(config, dtype=dtype)

    def error_fn(params: Any, batch: dict[str, Array], key: Array) -> tuple[Array, dict]:
        del key
        views = pair_batch.read(batch, config)
        output = predict(network, params, views, symmetrise)
        true = _truth(views, symmetrise, max_depth)
        predicted = losses.PointmapBatch(
            output.pointmap1, output.pointmap2, true.valid1, true.valid2
        )
        error, details = losses.pointmap_regression(
            predicted, true, gt_scale=gt_scale, invariance=invariance
        )
        return error, {name.replace("regression", "error"): v for name, v in details.items()}

    return error_fn


def predict(network: align3r.Align3R, params: Any, views: Views, symmetrise: bool) -> PairOutput:
    """Returns the network's output of every pair; every view is encoded once.

    symmetrise: of both orders, interleaved: (a1, b1), (b1, a1), (a2, b2), ...
    """
    true_shape = None
    if views.portrait is not None:
        height, width = views.depth.shape[1:]
        upright = jnp.array([height, width])
        true_shape = jnp.where(views.portrait[:, None], upright[::-1], upright)
    features: Any = network.apply(
        {"params": params},
        views.images,
        views.prior,
        views.has_prior,
        true_shape,
        landscape_only=true_shape is not None,
        method="encode_frames",
    )
    first, second = features, pair_batch.partner(features)
    if not symmetrise:
        first, second = pair_batch.first_of_pairs((first, second))
    output: Any = network.apply({"params": params}, first, second, method="decode_pairs")
    return output


def _truth(
    views: Views,
    symmetrise: bool,
    max_depth: float,
    rescue_empty_views: bool = False,
    max_distance: float | None = None,
) -> losses.PointmapBatch:
    true = pair_batch.true_points(views, max_depth, rescue_empty_views)
    true = true if symmetrise else pair_batch.first_of_pairs(true)
    return true if max_distance is None else losses.within_distance(true, max_distance)


def log_depth_errors(predicted: Array, depth: Array) -> tuple[Array, Array, Array]:
    """Returns (error, valid, gradient error) of log depth (N, H, W), scale removed per frame.

    error = (p - log d) minus its mean over valid pixels of the frame.
    """
    valid = pair_batch.valid_depth(depth, MAX_DEPTH["align3r"])
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
) -> LossFn:
    """Returns loss_fn of the monocular network: mean |error| + weight * gradient error.

    Scale-invariant in log depth (Eigen et al. 2014) with gradient matching (MegaDepth, eq. 3).
    """
    network = SmallDepth(config)

    def loss_fn(params: Any, batch: dict[str, Array], key: Array) -> tuple[Array, dict]:
        del key
        images = pair_batch.images_of(batch)
        images = images.reshape(-1, *images.shape[2:]).astype(dtype)
        depth = batch["depth"].reshape(-1, *batch["depth"].shape[2:])
        predicted = network.apply({"params": params}, images)
        error, valid, gradient = log_depth_errors(predicted, depth)
        data = losses.masked_mean(jnp.abs(error), valid)
        return data + gradient_weight * gradient, {"abs_log": data, "gradient": gradient}

    return loss_fn
