"""Rotations, rigid poses and their codings. Everything broadcasts over leading axes.

Quaternions are (x, y, z, w). Poses are (..., 4, 4) matrices named `target_from_source`.
Matrix products run at full float32 precision on every backend.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def matrix_from_quaternion(quaternion: Array) -> Array:
    """Returns the rotation of q / |q|, (..., 3, 3), for q (..., 4) of any length but zero."""
    norm = jnp.sqrt(jnp.sum(quaternion * quaternion, axis=-1, keepdims=True))
    x, y, z, w = jnp.moveaxis(quaternion / norm, -1, 0)
    entries = [
        x * x - y * y - z * z + w * w,
        2 * (x * y - z * w),
        2 * (x * z + y * w),
        2 * (x * y + z * w),
        -x * x + y * y - z * z + w * w,
        2 * (y * z - x * w),
        2 * (x * z - y * w),
        2 * (y * z + x * w),
        -x * x - y * y + z * z + w * w,
    ]
    return jnp.stack(entries, axis=-1).reshape(*quaternion.shape[:-1], 3, 3)


def quaternion_from_matrix(rotation: Array) -> Array:
    """Returns unit quaternions (..., 4) of rotations (..., 3, 3), largest component positive.

    4 q_k q is computed for k = x, y, z, w from sums and differences of matrix entries; the
    candidate with the largest 4 q_k^2 is normalised, so nothing is ever divided by a small number.
    """
    m = [[rotation[..., i, j] for j in range(3)] for i in range(3)]
    trace = m[0][0] + m[1][1] + m[2][2]
    squares = [1 - trace + 2 * m[k][k] for k in range(3)] + [1 + trace]
    xy, xz, yz = m[1][0] + m[0][1], m[2][0] + m[0][2], m[2][1] + m[1][2]
    xw, yw, zw = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
    rows = [
        [squares[0], xy, xz, xw],
        [xy, squares[1], yz, yw],
        [xz, yz, squares[2], zw],
        [xw, yw, zw, squares[3]],
    ]
    candidates = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    largest = jnp.argmax(jnp.stack(squares, axis=-1), axis=-1)
    chosen = jnp.take_along_axis(candidates, largest[..., None, None], axis=-2)[..., 0, :]
    return chosen / jnp.sqrt(jnp.sum(chosen * chosen, axis=-1, keepdims=True))


def encode_translation(translation: Array) -> Array:
    """Returns sign(t) ln(1 + |t|) per component: near zero the identity, far away a logarithm."""
    return jnp.sign(translation) * jnp.log1p(jnp.abs(translation))


def decode_translation(code: Array) -> Array:
    """Returns sign(c) (exp|c| - 1) per component, the inverse of `encode_translation`.

    parity: the gradient at exactly 0 is 0 (that of sign and abs), so a camera that starts at the
    world's origin stays there; this holds the translation gauge during alignment.
    """
    return jnp.sign(code) * jnp.expm1(jnp.abs(code))


def pose(rotation: Array, translation: Array) -> Array:
    """Returns [R t; 0 1], (..., 4, 4), from rotations (..., 3, 3) and translations (..., 3)."""
    rotation, translation = jnp.asarray(rotation), jnp.asarray(translation)
    batch = jnp.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    dtype = jnp.result_type(rotation, translation)
    top = jnp.concatenate(
        [
            jnp.broadcast_to(rotation, (*batch, 3, 3)).astype(dtype),
            jnp.broadcast_to(translation, (*batch, 3)).astype(dtype)[..., None],
        ],
        axis=-1,
    )
    bottom = jnp.broadcast_to(jnp.array([[0, 0, 0, 1]], dtype), (*batch, 1, 4))
    return jnp.concatenate([top, bottom], axis=-2)


def invert(target_from_source: Array) -> Array:
    """Returns the inverse [R^T, -R^T t; 0 1] of rigid poses (..., 4, 4) (no scale)."""
    rotation = jnp.swapaxes(target_from_source[..., :3, :3], -1, -2)
    return pose(rotation, -rotate(rotation, target_from_source[..., :3, 3]))


def rotate(matrix: Array, points: Array) -> Array:
    """Returns M p for matrices (..., 3, 3) and points (..., 3) with broadcasting batch axes."""
    return jnp.einsum("...ij,...j->...i", matrix, points, precision="highest")


def compose(first: Array, second: Array) -> Array:
    """Returns the product of (..., 4, 4) or (..., 3, 3) matrices at full precision."""
    return jnp.matmul(first, second, precision="highest")


def apply(target_from_source: Array, points: Array) -> Array:
    """Returns the points in the target frame: poses (B..., 4, 4), points (B..., ..., 3).

    The batch axes B of the poses are the leading axes of the points; any further axes of the
    points (pixels, say) share the pose.
    """
    extra = points.ndim - 1 - (target_from_source.ndim - 2)
    lead = target_from_source.shape[:-2]
    shaped = target_from_source.reshape(*lead, *([1] * max(extra, 0)), 4, 4)
    return rotate(shaped[..., :3, :3], points) + shaped[..., :3, 3]


def safe_norm(values: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """Returns the Euclidean norm over `axis`; its gradient at 0 is 0 instead of NaN."""
    square = jnp.sum(values * values, axis=axis)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def hat(vector: Array) -> Array:
    """Returns the cross-product matrices [v]x, (..., 3, 3), with [v]x u = v x u."""
    x, y, z = jnp.moveaxis(vector, -1, 0)
    zero = jnp.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return jnp.stack(rows, axis=-1).reshape(*vector.shape[:-1], 3, 3)


def exp_so3(rotation_vector: Array) -> Array:
    """Returns exp([v]x) = I + sin(a)/a [v]x + (1 - cos a)/a^2 [v]x^2, a = |v| radians (Rodrigues).

    rotation_vector: (..., 3). Series below a = 1e-4, so value and gradient are exact at zero.
    """
    square = jnp.sum(rotation_vector * rotation_vector, axis=-1)[..., None, None]
    small = square < 1e-8
    angle = jnp.sqrt(jnp.where(small, 1.0, square))
    first = jnp.where(small, 1 - square / 6, jnp.sin(angle) / angle)
    half = jnp.sin(angle / 2) / angle
    second = jnp.where(small, 0.5 - square / 24, 2 * half * half)
    cross = hat(rotation_vector)
    return jnp.eye(3, dtype=cross.dtype) + first * cross + second * compose(cross, cross)


def log_so3(rotation: Array) -> Array:
    """Returns the rotation vector (..., 3), length in [0, pi] radians, of rotations (..., 3, 3).

    Through the quaternion, 2 atan2(|v|, w) v / |v|, which is accurate at 0 and at pi.
    """
    quaternion = quaternion_from_matrix(rotation)
    quaternion = jnp.where(quaternion[..., 3:] < 0, -quaternion, quaternion)
    vector, scalar = quaternion[..., :3], quaternion[..., 3:]
    square = jnp.sum(vector * vector, axis=-1, keepdims=True)
    small = square < 1e-12
    length = jnp.sqrt(jnp.where(small, 1.0, square))
    return vector * jnp.where(small, 2 / scalar, 2 * jnp.arctan2(length, scalar) / length)
