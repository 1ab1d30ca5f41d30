"""Similarities between point sets and between sets of cameras."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def weighted_procrustes(
    source: jax.Array, target: jax.Array, weights: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """argmin over s, R, T of sum_p w_p |s R x_p + T - y_p|^2, with R a proper rotation.

    With weights that sum to 1, centroids x', y' and M = sum w (y - y') (x - x')^T = U S V^T:
    R = U diag(1, 1, det(U V^T)) V^T, s = tr(R^T M) / sum w |x - x'|^2, T = y' - s R x'
    (Umeyama 1991). A mirrored target still gets a rotation. The scale is that of source -> target
    alone, not symmetric in the two.

    Args:
        source: (..., N, 3) x.
        target: (..., N, 3) y.
        weights: (..., N) >= 0, any sum; None = all equal.

    Returns:
        scale (...,), rotation (..., 3, 3), translation (..., 3).
    """
    source, target = jnp.asarray(source), jnp.asarray(target)
    if weights is None:
        weights = jnp.ones(source.shape[:-1], source.dtype)
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    source_centre = _weighted_mean(source, weights)
    target_centre = _weighted_mean(target, weights)
    centred = source - source_centre[..., None, :]
    moments = jnp.einsum(
        "...n,...ni,...nj->...ij",
        weights,
        target - target_centre[..., None, :],
        centred,
        precision="highest",
    )
    spread = jnp.sum(weights * jnp.sum(centred**2, axis=-1), axis=-1)
    rotation = nearest_rotation(moments)
    scale = jnp.sum(rotation * moments, axis=(-2, -1)) / spread
    rotated = jnp.einsum("...ij,...j->...i", rotation, source_centre, precision="highest")
    return scale, rotation, target_centre - scale[..., None] * rotated


def nearest_rotation(matrix: jax.Array) -> jax.Array:
    """argmax over rotations R of tr(R^T M), for M (..., 3, 3).

    If det(U V^T) < 0 the direction of the smallest singular value is flipped.
    """
    left, _, right = jnp.linalg.svd(matrix)
    product = jnp.einsum("...ij,...jk->...ik", left, right, precision="highest")
    sign = jnp.sign(jnp.linalg.det(product))
    left = left.at[..., :, 2].multiply(sign[..., None])
    return jnp.einsum("...ij,...jk->...ik", left, right, precision="highest")


@jax.jit
def align_poses(
    source_poses: jax.Array, target_poses: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The similarity that carries one set of cameras onto another, orientations included.

    Procrustes between all centres together with all points (centre + epsilon * z axis), where
    epsilon is 1/100 of the median distance between two centres of the same set.

    Args:
        source_poses: (T, 4, 4) world_from_cam, T >= 2.
        target_poses: (T, 4, 4) in another world.

    Returns:
        scale (), rotation (3, 3), translation (3,): x_target = scale rotation x_source
        + translation.
    """
    return weighted_procrustes(_pose_points(source_poses), _pose_points(target_poses))


def _pose_points(world_from_cam: jax.Array) -> jax.Array:
    world_from_cam = jnp.asarray(world_from_cam)
    centres = world_from_cam[:, :3, 3]
    first, second = jnp.triu_indices(centres.shape[0], 1)
    distances = jnp.sort(jnp.linalg.norm(centres[first] - centres[second], axis=-1))
    epsilon = distances[(distances.shape[0] - 1) // 2] / 100
    return jnp.concatenate([centres, centres + epsilon * world_from_cam[:, :3, 2]])


def _weighted_mean(points: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.einsum("...n,...ni->...i", weights, points, precision="highest")
