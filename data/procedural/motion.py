"""Closed-form motion of primitives: drift, swing, spin, and a walking figure.

position(t) = p0 + v t + a (sin(w t + phi) - sin phi) + R(t) (q - S(t) q)
R(t) = exp(omega t) R0 S(t),  S(t) = rotation about the local y axis by A sin(w_limb t + phi_limb)

with q the pivot of a limb seen from its centre. Everything is differentiable in t, so speeds
and motion blur are exact too.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

_PREC = jax.lax.Precision.HIGHEST


@struct.dataclass
class Motion:
    """Motion of N primitives; all zero where `moving` is False.

    moving: (N,) bool. velocity: (N, 3) m/s. sway: (N, 3) m, at sway_rate (N,) rad/s and
    sway_phase (N,). spin: (N, 3) rad/s in world axes. limb_angle: (N,) rad, at limb_rate (N,)
    rad/s and limb_phase (N,). pivot: (N, 3) m in body axes.
    """

    moving: jax.Array
    velocity: jax.Array
    sway: jax.Array
    sway_rate: jax.Array
    sway_phase: jax.Array
    spin: jax.Array
    limb_angle: jax.Array
    limb_rate: jax.Array
    limb_phase: jax.Array
    pivot: jax.Array


def at_rest(count: int) -> Motion:
    """Returns the motion of `count` primitives that stand still."""
    vector, scalar = jnp.zeros((count, 3)), jnp.zeros(count)
    return Motion(
        moving=jnp.zeros(count, bool),
        velocity=vector,
        sway=vector,
        sway_rate=scalar,
        sway_phase=scalar,
        spin=vector,
        limb_angle=scalar,
        limb_rate=scalar,
        limb_phase=scalar,
        pivot=vector,
    )


def rotation_from_vector(vector: jax.Array) -> jax.Array:
    """exp of rotation vectors (..., 3) in radians -> (..., 3, 3)."""
    angle = jnp.sqrt((vector**2).sum(-1) + 1e-20)[..., None, None]
    x, y, z = (vector[..., i] for i in range(3))
    zero = jnp.zeros_like(x)
    cross = jnp.stack(
        [
            jnp.stack([zero, -z, y], -1),
            jnp.stack([z, zero, -x], -1),
            jnp.stack([-y, x, zero], -1),
        ],
        -2,
    )
    first = jnp.sin(angle) / angle
    second = 2.0 * (jnp.sin(angle / 2) / angle) ** 2
    return jnp.eye(3) + first * cross + second * jnp.matmul(cross, cross, precision=_PREC)


def pose_at(
    motion: Motion, position: jax.Array, rotation: jax.Array, time: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (rotation (N, 3, 3) world_from_body, position (N, 3)) at `time` in seconds.

    position, rotation: the poses at time 0 with limbs straight. Primitives that do not move keep
    theirs bit for bit.
    """
    swing = motion.limb_angle * jnp.sin(motion.limb_rate * time + motion.limb_phase)
    limb = rotation_from_vector(swing[:, None] * jnp.array([0.0, 1.0, 0.0]))
    spun = jnp.matmul(rotation_from_vector(motion.spin * time), rotation, precision=_PREC)
    phase = motion.sway_phase
    sway = jnp.sin(motion.sway_rate * time + phase) - jnp.sin(phase)
    drift = motion.velocity * time + motion.sway * sway[:, None]
    hinge = motion.pivot - jnp.einsum("nij,nj->ni", limb, motion.pivot, precision=_PREC)
    moved = position + drift + jnp.einsum("nij,nj->ni", spun, hinge, precision=_PREC)
    turned = jnp.matmul(spun, limb, precision=_PREC)
    still = ~motion.moving
    return (
        jnp.where(still[:, None, None], rotation, turned),
        jnp.where(still[:, None], position, moved),
    )


# Walking figure of height 1: torso, head, two legs, two arms; z up, facing +x.
_WALKER_CENTRE = np.array(
    [[0, 0, 0.66], [0, 0, 0.92], [0, 0.075, 0.25], [0, -0.075, 0.25], [0, 0.16, 0.60],
     [0, -0.16, 0.60]]
)  # fmt: skip
_WALKER_HALF = np.array(
    [[0.075, 0.13, 0.19], [0.06, 0.055, 0.08], [0.045, 0.045, 0.25], [0.045, 0.045, 0.25],
     [0.03, 0.03, 0.19], [0.03, 0.03, 0.19]]
)  # fmt: skip
_WALKER_PIVOT = np.array(
    [[0, 0, 0], [0, 0, 0], [0, 0, 0.25], [0, 0, 0.25], [0, 0, 0.18], [0, 0, 0.18]]
)
_WALKER_SWING = np.array([0.0, 0.0, 0.45, -0.45, -0.4, 0.4])
WALKER_KINDS = np.array([0, 0, 2, 2, 2, 2])  # two ellipsoids, four cylinders
WALKER_PARTS = 6


def walker(
    foot: jax.Array, heading: jax.Array, height: jax.Array, speed: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, Motion]:
    """A figure that walks from `foot` (3,) along `heading` (rad about z) at `speed` m/s.

    Returns (position (6, 3), rotation (6, 3, 3), scale (6, 3), Motion of 6 parts). Step rate
    follows the speed and the leg length.
    """
    turn = rotation_from_vector(heading * jnp.array([0.0, 0.0, 1.0]))
    position = foot + height * jnp.matmul(jnp.asarray(_WALKER_CENTRE), turn.T, precision=_PREC)
    forward = turn[:, 0]
    stride_rate = jnp.maximum(speed, 0.3) / (0.45 * height) * 1.5
    motion = dataclasses.replace(
        at_rest(WALKER_PARTS),
        moving=jnp.ones(WALKER_PARTS, bool),
        velocity=jnp.broadcast_to(forward * speed, (WALKER_PARTS, 3)),
        sway=jnp.broadcast_to(jnp.array([0.0, 0.0, 0.012]) * height, (WALKER_PARTS, 3)),
        sway_rate=jnp.full(WALKER_PARTS, 2.0) * stride_rate,
        limb_angle=jnp.asarray(_WALKER_SWING),
        limb_rate=jnp.full(WALKER_PARTS, 1.0) * stride_rate,
        pivot=jnp.asarray(_WALKER_PIVOT) * height,
    )
    rotation = jnp.broadcast_to(turn, (WALKER_PARTS, 3, 3))
    return position, rotation, jnp.asarray(_WALKER_HALF) * height, motion
