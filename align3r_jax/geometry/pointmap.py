"""Point maps: which points mean anything, changes of frame, and their scale."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from align3r_jax.geometry import camera, rigid


def validity(
    pointmap: jax.Array, confidence: jax.Array | None = None, min_confidence: float = 1.0
) -> jax.Array:
    """Returns (..., H, W) bool: finite points, and confidence above `min_confidence` if given."""
    valid = jnp.all(jnp.isfinite(pointmap), axis=-1)
    return valid if confidence is None else valid & (confidence > min_confidence)


def change_frame(
    pointmap: jax.Array,
    rotation: jax.Array,
    translation: jax.Array,
    scale: jax.Array | float = 1.0,
) -> jax.Array:
    """s R x + T for every point.

    Args:
        pointmap: (..., H, W, 3).
        rotation: (..., 3, 3). translation: (..., 3). scale: (...,).

    Returns:
        (..., H, W, 3).
    """
    matrix = jnp.asarray(scale)[..., None, None] * jnp.asarray(rotation)
    moved = jnp.einsum("...ij,...hwj->...hwi", matrix, pointmap, precision="highest")
    return moved + jnp.asarray(translation)[..., None, None, :]


@jax.jit
def in_world(depth: jax.Array, intrinsics: jax.Array, world_from_cam: jax.Array) -> jax.Array:
    """X = world_from_cam . (D(u, v) K^-1 (u, v, 1)), one program also on the host.

    Args:
        depth: (..., H, W). intrinsics: (..., 3, 3). world_from_cam: (..., 4, 4).

    Returns:
        (..., H, W, 3).
    """
    return rigid.apply(world_from_cam, camera.unproject(depth, intrinsics))


def mean_distance(*pointmaps: jax.Array, valid: tuple[jax.Array, ...] | None = None) -> jax.Array:
    """The mean of |x| over the valid points of all maps together; at least 1e-8.

    Args:
        pointmaps: each (..., H, W, 3).
        valid: for each map (..., H, W) bool; None = all points.

    Returns:
        (...,) the scale that pairs of point maps are divided by to compare them.
    """
    if valid is None:
        valid = tuple(jnp.ones(points.shape[:-1], bool) for points in pointmaps)
    total = count = jnp.zeros(())
    for points, mask in zip(pointmaps, valid, strict=True):
        # Masked before the norm: a NaN outside the mask must not reach the gradient.
        points = jnp.where(mask[..., None], points, 0)
        total = total + jnp.sum(rigid.safe_norm(points), axis=(-2, -1))
        count = count + jnp.sum(mask, axis=(-2, -1))
    return jnp.maximum(total / jnp.maximum(count, 1), 1e-8)
