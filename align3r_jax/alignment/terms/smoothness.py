"""Cameras of consecutive frames should move little."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from align3r_jax.geometry import rigid

Array = jax.Array


def per_step(world_from_cam: Array, translation_weight: float) -> Array:
    """l_n = |R - I|_F + w |t|, [R t] = inverse(pose_n) pose_n+1; (T - 1,) from (T, 4, 4)."""
    step = rigid.compose(rigid.invert(world_from_cam[:-1]), world_from_cam[1:])
    turn = rigid.safe_norm(step[:, :3, :3] - jnp.eye(3, dtype=step.dtype), axis=(-2, -1))
    return turn + translation_weight * rigid.safe_norm(step[:, :3, 3])


def smoothness(
    world_from_cam: Array, translation_weight: float, frame_valid: Array | None = None
) -> Array:
    """sum_n l_n (a sum, not a mean) over consecutive frames (MonST3R, eq. 4).

    frame_valid: (T,) 0 or 1; only steps between two valid frames count. None: all.
    """
    steps = per_step(world_from_cam, translation_weight)
    if frame_valid is not None:
        steps = steps * frame_valid[:-1] * frame_valid[1:]
    return jnp.sum(steps)
