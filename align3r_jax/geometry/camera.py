"""Pinhole cameras: intrinsics, projection, and the rules that move them between image sizes.

Cameras look along +z, x right, y down; pixel centres lie at integers. This is the only place
that rescales intrinsics.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from align3r_jax.structs import WorkingSize

DEFAULT_FOCAL = 0.85  # of the long side, 61 degrees: where nothing is known of the camera


def intrinsics_matrix(
    focal: jax.Array, principal_point: jax.Array, focal_y: jax.Array | None = None
) -> jax.Array:
    """Returns K = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]].

    Args:
        focal: (...,) pixels along x, and along y unless `focal_y` is given.
        principal_point: (..., 2) pixels.
        focal_y: (...,) pixels, for anisotropic resizing.

    Returns:
        (..., 3, 3).
    """
    focal, principal_point = jnp.asarray(focal), jnp.asarray(principal_point)
    focal_y = focal if focal_y is None else jnp.asarray(focal_y)
    batch = jnp.broadcast_shapes(focal.shape, focal_y.shape, principal_point.shape[:-1])
    matrix = jnp.zeros((*batch, 3, 3), jnp.result_type(focal, principal_point, jnp.float32))
    matrix = matrix.at[..., 0, 0].set(focal).at[..., 1, 1].set(focal_y)
    matrix = matrix.at[..., :2, 2].set(principal_point)
    return matrix.at[..., 2, 2].set(1)


def image_centre(height: int, width: int) -> jax.Array:
    """Returns (2,) float32 (W / 2, H / 2), the default principal point.

    parity: pixel centres lie at integers, so the middle of the image is really half a pixel less.
    """
    return jnp.array([width / 2, height / 2], jnp.float32)


def unproject(depth: jax.Array, intrinsics: jax.Array) -> jax.Array:
    """X(u, v) = D(u, v) ((u - cx) / fx, (v - cy) / fy, 1).

    Args:
        depth: (..., H, W) z depth.
        intrinsics: (..., 3, 3).

    Returns:
        (..., H, W, 3) points in the camera, unit of depth.
    """
    depth, intrinsics = jnp.asarray(depth), jnp.asarray(intrinsics)
    chex.assert_axis_dimension(intrinsics, -1, 3)
    height, width = depth.shape[-2:]
    x = jnp.arange(width, dtype=depth.dtype)
    y = jnp.arange(height, dtype=depth.dtype)[:, None]
    fx, fy, cx, cy = (value[..., None, None] for value in _components(intrinsics))
    return jnp.stack(jnp.broadcast_arrays(depth * (x - cx) / fx, depth * (y - cy) / fy, depth), -1)


def project(points: jax.Array, intrinsics: jax.Array) -> jax.Array:
    """(fx X / Z + cx, fy Y / Z + cy).

    Args:
        points: (..., [pixels,] 3) in the camera; not guarded against Z <= 0.
        intrinsics: (..., 3, 3); its batch axes are the first axes of `points`.

    Returns:
        (..., [pixels,] 2) pixels.
    """
    points, intrinsics = jnp.asarray(points), jnp.asarray(intrinsics)
    extra = (1,) * (points.ndim - 1 - (intrinsics.ndim - 2))
    fx, fy, cx, cy = (value.reshape(value.shape + extra) for value in _components(intrinsics))
    z = points[..., 2]
    return jnp.stack([fx * points[..., 0] / z + cx, fy * points[..., 1] / z + cy], -1)


def field_of_view(intrinsics: jax.Array, height: int, width: int) -> jax.Array:
    """Returns (..., 2) the horizontal and vertical angle in radians, 2 atan(size / (2 f)).

    The principal point is taken to be central.
    """
    focal = jnp.stack(_components(jnp.asarray(intrinsics))[:2], -1)
    return 2 * jnp.arctan(jnp.array([width, height], focal.dtype) / (2 * focal))


def focal_from_field_of_view(angle: jax.Array, size: int) -> jax.Array:
    """Returns the focal in pixels of an image that spans `angle` radians over `size` pixels."""
    return size / (2 * jnp.tan(jnp.asarray(angle) / 2))


@functools.partial(jax.jit, static_argnames="size")
def to_working(intrinsics: jax.Array, size: WorkingSize) -> jax.Array:
    """Moves intrinsics (..., 3, 3) of the original image to the working size.

    Per axis with r = resized / original: f <- r f, c <- r (c + 1/2) - 1/2 - crop, so that a point
    at original pixel x lies where `WorkingSize` says.
    """
    scale, crop = _axes(size, jnp.asarray(intrinsics).dtype)
    return _move(intrinsics, scale, lambda c: scale * (c + 0.5) - 0.5 - crop)


@functools.partial(jax.jit, static_argnames="size")
def to_original(intrinsics: jax.Array, size: WorkingSize) -> jax.Array:
    """Moves intrinsics (..., 3, 3) of the working size to the original image (inverse of above)."""
    scale, crop = _axes(size, jnp.asarray(intrinsics).dtype)
    return _move(intrinsics, 1 / scale, lambda c: (c + crop + 0.5) / scale - 0.5)


def _axes(size: WorkingSize, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Returns scale and crop as (x, y)."""
    scale = [size.resized[1] / size.original[1], size.resized[0] / size.original[0]]
    return jnp.array(scale, dtype), jnp.array([size.crop[1], size.crop[0]], dtype)


def _move(
    intrinsics: jax.Array, scale: jax.Array, move_point: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    fx, fy, cx, cy = _components(jnp.asarray(intrinsics))
    principal_point = move_point(jnp.stack([cx, cy], -1))
    return intrinsics_matrix(fx * scale[0], principal_point, fy * scale[1])


def _components(intrinsics: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    return (
        intrinsics[..., 0, 0],
        intrinsics[..., 1, 1],
        intrinsics[..., 0, 2],
        intrinsics[..., 1, 2],
    )
