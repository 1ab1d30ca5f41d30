"""The loss of the aligner written the obvious way, differentiated by autodiff: slow and clear."""

from __future__ import annotations

import jax.numpy as jnp

from align3r_jax.alignment import variables as variables_module
from align3r_jax.alignment.terms import pointmap, smoothness
from align3r_jax.geometry import rigid, warp


def world_points(geometry):
    """(T, H, W, 3)."""
    height, width = geometry.depth.shape[1:]
    pixels = jnp.concatenate(
        [warp.pixel_grid(height, width, geometry.depth.dtype), jnp.ones((height, width, 1))], -1
    )
    rays = jnp.einsum("tij,hwj->thwi", jnp.linalg.inv(geometry.intrinsics), pixels)
    return rigid.apply(geometry.world_from_cam, rays * geometry.depth[..., None])


def alignment(geometry, predictions, pairs, distance="l1", kind="log", over_scale=False):
    """(L_i, L_j)."""
    world = world_points(geometry)
    losses = []
    sides = (
        (predictions.pointmap1, predictions.confidence1),
        (predictions.pointmap2, predictions.confidence2),
    )
    for side, (points, confidence) in enumerate(sides):
        local = jnp.einsum("eij,ehwj->ehwi", geometry.pair_matrix, points)
        residual = world[pairs[:, side]] - (local + geometry.pair_offset[:, None, None])
        if over_scale:
            residual = residual / geometry.pair_scale[:, None, None, None]
        rho = rigid.safe_norm(residual) if distance == "l1" else jnp.sum(residual**2, -1)
        losses.append(jnp.mean(pointmap.confidence_weight(confidence, kind) * rho))
    return losses


def flow(geometry, optical_flow, indices, static, pixel_cut, weighted):
    """(L_flow,i, L_flow,j)."""
    pairs = optical_flow.pairs
    i, j = pairs[:, 0], pairs[:, 1]
    ego = warp.ego_flow(
        geometry.depth[i],
        geometry.intrinsics[i],
        geometry.intrinsics[j],
        geometry.world_from_cam[i],
        geometry.world_from_cam[j],
    )
    residual = ego - optical_flow.flow
    size = jnp.abs(residual)
    cost = jnp.where(size < 1, residual**2 / 2, size - 0.5)
    mask = static[i][..., None] * jnp.ones_like(cost)
    if weighted:
        mask = mask * optical_flow.weight[..., None]
    if pixel_cut > 0:
        mask = jnp.where(cost < pixel_cut, mask, 0.0)
    losses = []
    for index in indices:
        index = index[index >= 0]
        count = jnp.sum(mask[index]) / (1 if pixel_cut > 0 else 2)
        losses.append(jnp.sum((mask * cost)[index]) / count)
    return losses


def total(variables, predictions, pairs, config, size, flow_arguments=None):
    """The total loss without the depth regulariser."""
    geometry = variables_module.decode(variables, config, size)
    loss = sum(
        alignment(
            geometry,
            predictions,
            pairs,
            config.distance,
            config.confidence_weight,
            config.residual_over_scale,
        )
    )
    loss += config.smoothness_weight * smoothness.smoothness(
        geometry.world_from_cam, config.smoothness_translation_weight
    )
    if flow_arguments is not None:
        loss += config.flow_weight * sum(
            flow(geometry, *flow_arguments, config.flow_pixel_cut, config.flow_use_weight)
        )
    return loss
