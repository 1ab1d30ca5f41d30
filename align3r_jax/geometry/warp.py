"""Where pixels go: grids, bilinear sampling, and the image motion that the camera alone causes."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from align3r_jax.geometry import rigid

Array = jax.Array

DISPARITY_EPSILON = 1e-6  # disparity = 1 / (depth + epsilon)
PROJECTION_EPSILON = 1e-6  # parity: added to z without a sign; points behind are not masked


def pixel_grid(height: int, width: int, dtype: jnp.dtype = jnp.float32) -> Array:
    """Returns (H, W, 2), the (x, y) of every pixel; centres at integers."""
    x, y = jnp.meshgrid(jnp.arange(width, dtype=dtype), jnp.arange(height, dtype=dtype))
    return jnp.stack([x, y], axis=-1)


def sample_bilinear(
    image: Array, xy: Array, outside: Literal["zero", "replicate"] = "zero"
) -> Array:
    """Returns the image at real positions, (..., C).

    image: (H, W, C). xy: (..., 2) pixels, centres at integers. "zero": pixels beyond the border
    count as 0 (a position half a pixel outside gets half the border value); "replicate": the
    border continues for ever.
    """
    height, width, channels = image.shape
    x, y = xy[..., 0], xy[..., 1]
    if outside == "replicate":
        x, y = jnp.clip(x, min=0, max=width - 1), jnp.clip(y, min=0, max=height - 1)
    left, top = jnp.floor(x), jnp.floor(y)
    right_share, bottom_share = x - left, y - top
    flat = image.reshape(height * width, channels)

    def corner(column, row, share):
        inside = (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
        column = jnp.clip(column, min=0, max=width - 1).astype(jnp.int32)
        row = jnp.clip(row, min=0, max=height - 1).astype(jnp.int32)
        return flat[row * width + column] * jnp.where(inside, share, 0)[..., None]

    return (
        corner(left, top, (1 - right_share) * (1 - bottom_share))
        + corner(left + 1, top, right_share * (1 - bottom_share))
        + corner(left, top + 1, (1 - right_share) * bottom_share)
        + corner(left + 1, top + 1, right_share * bottom_share)
    )


def invert_intrinsics(intrinsics: Array) -> Array:
    """Returns K^-1 in closed form for K = [fx s cx; 0 fy cy; 0 0 1], (..., 3, 3)."""
    fx, skew, cx = (intrinsics[..., 0, k] for k in range(3))
    fy, cy = intrinsics[..., 1, 1], intrinsics[..., 1, 2]
    zero, one = jnp.zeros_like(fx), jnp.ones_like(fx)
    rows = [1 / fx, -skew / (fx * fy), (skew * cy / fy - cx) / fx]
    rows += [zero, 1 / fy, -cy / fy, zero, zero, one]
    return jnp.stack(rows, axis=-1).reshape(*intrinsics.shape[:-2], 3, 3)


def transfer(
    intrinsics1: Array, intrinsics2: Array, world_from_cam1: Array, world_from_cam2: Array
) -> tuple[Array, Array]:
    """Returns (M, b), (..., 3, 3) and (..., 3): camera-1 pixel x at depth d is M (x, 1) + b / d.

    M = K2 R K1^-1, b = K2 t with (R, t) = cam2_from_cam1; divide by the third row to get pixels.
    """
    rotation1, rotation2 = world_from_cam1[..., :3, :3], world_from_cam2[..., :3, :3]
    cam2_from_world = jnp.swapaxes(rotation2, -1, -2)
    baseline = world_from_cam1[..., :3, 3] - world_from_cam2[..., :3, 3]
    rotation = rigid.compose(cam2_from_world, rotation1)
    homography = rigid.compose(rigid.compose(intrinsics2, rotation), invert_intrinsics(intrinsics1))
    return homography, rigid.rotate(intrinsics2, rigid.rotate(cam2_from_world, baseline))


def ego_flow(
    depth1: Array,
    intrinsics1: Array,
    intrinsics2: Array,
    world_from_cam1: Array,
    world_from_cam2: Array,
) -> Array:
    """ego(x) = pi(K2 R K1^-1 (x, 1) + K2 t / (d + 1e-6)) - x, the flow of a static world.

    depth1: (..., H, W) of camera 1; intrinsics (..., 3, 3) pixels; poses (..., 4, 4); leading axes
    broadcast. Returns (..., H, W, 2) pixels (x, y). pi adds 1e-6 to z and divides by it.
    """
    height, width = depth1.shape[-2:]
    homography, epipole = transfer(intrinsics1, intrinsics2, world_from_cam1, world_from_cam2)
    grid = pixel_grid(height, width, depth1.dtype)
    disparity = 1 / (depth1 + DISPARITY_EPSILON)

    def row(k):
        m = homography[..., k, :, None, None]
        b = epipole[..., k, None, None]
        return (
            m[..., 0, :, :] * grid[..., 0]
            + m[..., 1, :, :] * grid[..., 1]
            + m[..., 2, :, :]
            + (disparity * b)
        )

    z = row(2) + PROJECTION_EPSILON
    return jnp.stack([row(0) / z, row(1) / z], axis=-1) - grid
