"""Confidence-weighted point-map regression (DUSt3R, eq. 2-4; the training loss of Align3R).

L = sum over views v of  mean over valid pixels ( c * l - alpha * log c ),
l = | P_v / f_P - G_v / f_G |_2,   P predicted and G true points, both in camera 1;
f_P, f_G one normalisation factor per sample for both views together; c predicted confidence.
Means run over the valid pixels of the whole batch, so samples with more of them weigh more.
For monitoring, what cannot be known can be taken out before (`Invariance`): the shift of z, the
scale, or both, by medians (Align3R's test error is "shift_scale" in the unit of the truth).
"""

from __future__ import annotations

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.geometry import depth_fit, pointmap, rigid
from align3r_jax.structs import Array

NormMode = Literal["avg_dis", "avg_log1p", "avg_warp-log1p", "median_dis", "sqrt_dis", "none"]
Invariance = Literal["none", "shift", "scale", "shift_scale"]


@struct.dataclass
class PointmapBatch:
    """Two views of B samples, points in the frame of camera 1.

    points1, points2: (B, H, W, 3); valid1, valid2: (B, H, W) bool.
    """

    points1: Array
    points2: Array
    valid1: Array
    valid2: Array


def masked_mean(values: Array, mask: Array, axis: tuple[int, ...] | None = None) -> Array:
    """Returns the mean of `values` where `mask`, 0 (and no gradient) where the mask is empty."""
    total = jnp.sum(jnp.where(mask, values, 0.0), axis=axis)
    return total / jnp.maximum(jnp.sum(mask, axis=axis), 1)


def normalisation_factor(
    points1: Array, points2: Array, valid1: Array, valid2: Array, mode: NormMode
) -> tuple[Array, Array, Array]:
    """Returns (points1, points2, factor): both views of each sample share one factor (B,).

    Only "avg_warp-log1p" changes the points. Gradients flow through the factor except for
    "median_dis". Points are not yet divided. Raises ValueError for an unknown mode.
    """
    batch = points1.shape[0]
    count = jnp.sum(valid1, axis=(1, 2)) + jnp.sum(valid2, axis=(1, 2)) + 1e-8
    distance1 = rigid.safe_norm(jnp.where(valid1[..., None], points1, 0.0))
    distance2 = rigid.safe_norm(jnp.where(valid2[..., None], points2, 0.0))

    def mean_of(values1: Array, values2: Array) -> Array:
        return (jnp.sum(values1, axis=(1, 2)) + jnp.sum(values2, axis=(1, 2))) / count

    if mode == "avg_dis":
        factor = pointmap.mean_distance(points1, points2, valid=(valid1, valid2))
    elif mode == "avg_log1p":
        factor = mean_of(jnp.log1p(distance1), jnp.log1p(distance2))
    elif mode == "avg_warp-log1p":
        log1, log2 = jnp.log1p(distance1), jnp.log1p(distance2)
        points1 = points1 * (log1 / jnp.maximum(distance1, 1e-8))[..., None]
        points2 = points2 * (log2 / jnp.maximum(distance2, 1e-8))[..., None]
        factor = mean_of(log1, log2)
    elif mode == "sqrt_dis":
        root1 = jnp.sqrt(jnp.where(valid1 & (distance1 > 0), distance1, 1.0))
        root2 = jnp.sqrt(jnp.where(valid2 & (distance2 > 0), distance2, 1.0))
        root1 = jnp.where(valid1 & (distance1 > 0), root1, 0.0)
        root2 = jnp.where(valid2 & (distance2 > 0), root2, 0.0)
        factor = mean_of(root1, root2) ** 2
    elif mode == "median_dis":
        joined = jnp.concatenate([distance1.reshape(batch, -1), distance2.reshape(batch, -1)], 1)
        mask = jnp.concatenate([valid1.reshape(batch, -1), valid2.reshape(batch, -1)], 1)
        factor = jax.lax.stop_gradient(jax.vmap(depth_fit.lower_median)(joined, mask))
    else:
        raise ValueError(f"Unknown norm_mode {mode!r}; known are {get_args(NormMode)}.")
    return points1, points2, jnp.maximum(factor, 1e-8)


def within_distance(true: PointmapBatch, limit: float) -> PointmapBatch:
    """Returns the truth without the points that are farther than `limit` from camera 1."""
    near1 = rigid.safe_norm(true.points1) <= limit
    near2 = rigid.safe_norm(true.points2) <= limit
    return PointmapBatch(true.points1, true.points2, true.valid1 & near1, true.valid2 & near2)


def regression_maps(
    predicted: PointmapBatch,
    true: PointmapBatch,
    norm_mode: NormMode,
    gt_scale: bool,
    invariance: Invariance = "none",
) -> tuple[Array, Array]:
    """Returns per-pixel distances (B, H, W) of both views after joint normalisation.

    With `gt_scale` the true points keep their scale while predictions are still normalised.
    Raises ValueError for an unknown `invariance`.
    """
    chex.assert_equal_shape([predicted.points1, true.points1])
    chex.assert_equal_shape([predicted.points2, true.points2])
    if invariance not in get_args(Invariance):
        raise ValueError(f"Unknown invariance {invariance!r}; known are {get_args(Invariance)}.")
    p1, p2, g1, g2 = predicted.points1, predicted.points2, true.points1, true.points2
    if norm_mode != "none":
        p1, p2, factor = normalisation_factor(p1, p2, true.valid1, true.valid2, norm_mode)
        p1, p2 = p1 / factor[:, None, None, None], p2 / factor[:, None, None, None]
        if not gt_scale:
            g1, g2, factor = normalisation_factor(g1, g2, true.valid1, true.valid2, norm_mode)
            g1, g2 = g1 / factor[:, None, None, None], g2 / factor[:, None, None, None]
    if invariance in ("shift", "shift_scale"):
        p1, p2 = _without_shift(p1, p2, true)
        g1, g2 = _without_shift(g1, g2, true)
    if invariance in ("scale", "shift_scale"):
        of_predicted = jnp.clip(_spread(p1, p2, true), min=1e-3, max=1e3)[:, None, None, None]
        of_true = _spread(g1, g2, true)[:, None, None, None]
        if gt_scale:
            p1, p2 = p1 * (of_true / of_predicted), p2 * (of_true / of_predicted)
        else:
            p1, p2, g1, g2 = p1 / of_predicted, p2 / of_predicted, g1 / of_true, g2 / of_true
    difference1 = jnp.where(true.valid1[..., None], p1 - g1, 0.0)
    difference2 = jnp.where(true.valid2[..., None], p2 - g2, 0.0)
    return rigid.safe_norm(difference1), rigid.safe_norm(difference2)


def _joint_median(values1: Array, values2: Array, true: PointmapBatch) -> Array:
    """Returns the lower median (B,) of both views (B, H, W) over the valid pixels, no gradient."""
    batch = values1.shape[0]
    values = jnp.concatenate([values1.reshape(batch, -1), values2.reshape(batch, -1)], 1)
    valid = jnp.concatenate([true.valid1.reshape(batch, -1), true.valid2.reshape(batch, -1)], 1)
    return jax.lax.stop_gradient(jax.vmap(depth_fit.lower_median)(values, valid))


def _without_shift(points1: Array, points2: Array, true: PointmapBatch) -> tuple[Array, Array]:
    """Returns both maps with the joint median of z taken from z."""
    middle = _joint_median(points1[..., 2], points2[..., 2], true)
    shift = jnp.stack([jnp.zeros_like(middle), jnp.zeros_like(middle), middle], -1)
    return points1 - shift[:, None, None], points2 - shift[:, None, None]


def _spread(points1: Array, points2: Array, true: PointmapBatch) -> Array:
    """Returns the joint median (B,) of the distance to the point of the medians of x, y, z."""
    centre = jnp.stack(
        [_joint_median(points1[..., k], points2[..., k], true) for k in range(3)], axis=-1
    )[:, None, None]
    return _joint_median(rigid.safe_norm(points1 - centre), rigid.safe_norm(points2 - centre), true)


def pointmap_regression(
    predicted: PointmapBatch,
    true: PointmapBatch,
    norm_mode: NormMode = "avg_dis",
    gt_scale: bool = False,
    invariance: Invariance = "none",
) -> tuple[Array, dict[str, Array]]:
    """Returns (loss, details): mean distance of view 1 plus that of view 2 over the batch."""
    map1, map2 = regression_maps(predicted, true, norm_mode, gt_scale, invariance)
    loss1, loss2 = masked_mean(map1, true.valid1), masked_mean(map2, true.valid2)
    return loss1 + loss2, {"regression_1": loss1, "regression_2": loss2}


def confidence_regression(
    predicted: PointmapBatch,
    confidence1: Array,
    confidence2: Array,
    true: PointmapBatch,
    alpha: float = 0.2,
    norm_mode: NormMode = "avg_dis",
    gt_scale: bool = False,
) -> tuple[Array, dict[str, Array]]:
    """Returns (loss, details) of the module's formula. confidence: (B, H, W) >= 1."""
    map1, map2 = regression_maps(predicted, true, norm_mode, gt_scale)
    conf1 = masked_mean(confidence1 * map1 - alpha * jnp.log(confidence1), true.valid1)
    conf2 = masked_mean(confidence2 * map2 - alpha * jnp.log(confidence2), true.valid2)
    details = {
        "confidence_1": conf1,
        "confidence_2": conf2,
        "regression_1": masked_mean(map1, true.valid1),
        "regression_2": masked_mean(map2, true.valid2),
    }
    return conf1 + conf2, details
