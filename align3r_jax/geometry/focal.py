"""Focal length from a point map in its own camera."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from align3r_jax.geometry import camera

_MIN_DISTANCE = 1e-8


def weiszfeld_focal(
    pointmap: jax.Array, principal_point: jax.Array | None = None, iterations: int = 10
) -> jax.Array:
    """argmin over f of sum_p |p - f q|, by iterated reweighting (Weiszfeld).

    p: pixel minus principal point; q = (X / Z, Y / Z), 0 where not finite. Starts at the least
    squares f0 = mean(q.p) / mean(q.q); each round weights by 1 / max(|p - f q|, 1e-8).

    Args:
        pointmap: (..., H, W, 3), in the camera that sees it.
        principal_point: (..., 2) pixels; None = (W / 2, H / 2).
        iterations: rounds of reweighting.

    Returns:
        (...,) focal in pixels; negative if the points lie behind the camera.
    """
    pointmap = jnp.asarray(pointmap)
    pixels = _centred_pixels(pointmap, principal_point)
    slopes = _finite(pointmap[..., :2] / pointmap[..., 2:])
    qp = jnp.sum(slopes * pixels, axis=-1)
    qq = jnp.sum(slopes * slopes, axis=-1)

    def reweight(_, focal):
        residual = pixels - focal[..., None, None, None] * slopes
        distance = jnp.sqrt(jnp.sum(residual * residual, axis=-1))
        weight = 1 / jnp.maximum(distance, _MIN_DISTANCE)
        return _mean(weight * qp) / _mean(weight * qq)

    return jax.lax.fori_loop(0, iterations, reweight, _mean(qp) / _mean(qq))


def median_focal(pointmap: jax.Array, principal_point: jax.Array | None = None) -> jax.Array:
    """The median of the votes u Z / X and v Z / Y of all pixels; the lower of two middle values.

    (u, v): pixel minus principal point. Votes 0 / 0 are left out.

    Args:
        pointmap: (..., H, W, 3), in the camera that sees it.
        principal_point: (..., 2) pixels; None = (W / 2, H / 2).

    Returns:
        (...,) focal in pixels.
    """
    pointmap = jnp.asarray(pointmap)
    pixels = _centred_pixels(pointmap, principal_point)
    votes = pixels * pointmap[..., 2:] / pointmap[..., :2]
    votes = jnp.sort(votes.reshape(*votes.shape[:-3], -1), axis=-1)  # NaN last
    middle = (jnp.sum(~jnp.isnan(votes), axis=-1, keepdims=True) - 1) // 2
    return jnp.take_along_axis(votes, jnp.maximum(middle, 0), axis=-1)[..., 0]


def _centred_pixels(pointmap: jax.Array, principal_point: jax.Array | None) -> jax.Array:
    """Returns (..., H, W, 2) pixel coordinates minus the principal point."""
    height, width = pointmap.shape[-3:-1]
    if principal_point is None:
        principal_point = camera.image_centre(height, width)
    x, y = jnp.meshgrid(jnp.arange(width), jnp.arange(height))
    pixels = jnp.stack([x, y], -1).astype(pointmap.dtype)
    return pixels - jnp.asarray(principal_point, pointmap.dtype)[..., None, None, :]


def _finite(values: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(values), values, 0)


def _mean(values: jax.Array) -> jax.Array:
    return jnp.mean(values, axis=(-2, -1))
