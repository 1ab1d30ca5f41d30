"""Cameras that are known roughly should stay near what is known of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.alignment.variables import Known, mean_of_valid
from align3r_jax.geometry import rigid

Array = jax.Array


@struct.dataclass
class CameraPriorData:
    """world_from_cam: (T, 4, 4). log_focal: (T,) ln pixels.

    rotation, translation, focal: (T,) one over the standard deviation (radians, unit of the poses,
    ln focal); 0 where nothing is known.
    """

    world_from_cam: Array
    log_focal: Array
    rotation: Array
    translation: Array
    focal: Array


def prepare(known: Known | None, num_frames: int, dtype: jnp.dtype) -> CameraPriorData | None:
    """Returns the soft priors among what is known; None if there are none."""
    if known is None or (known.rotation_deviation is None and known.focal_deviation is None):
        return None

    def inverse(deviation: Array | None, mask: Array | None) -> Array:
        if deviation is None:
            return jnp.zeros(num_frames, dtype)
        weight = 1 / jnp.asarray(deviation, dtype)
        return weight if mask is None else jnp.where(jnp.asarray(mask), weight, 0)

    poses = jnp.eye(4, dtype=dtype)[None]
    soft_poses = known.world_from_cam is not None and known.rotation_deviation is not None
    soft_focals = known.focal is not None and known.focal_deviation is not None
    return CameraPriorData(
        world_from_cam=jnp.asarray(known.world_from_cam, dtype)
        if soft_poses
        else jnp.broadcast_to(poses, (num_frames, 4, 4)),
        log_focal=jnp.log(jnp.asarray(known.focal, dtype))
        if soft_focals
        else jnp.zeros(num_frames, dtype),
        rotation=inverse(known.rotation_deviation if soft_poses else None, known.pose_mask),
        translation=inverse(known.translation_deviation if soft_poses else None, known.pose_mask),
        focal=inverse(known.focal_deviation if soft_focals else None, known.intrinsics_mask),
    )


def residuals(world_from_cam: Array, focal: Array, data: CameraPriorData) -> Array:
    """r_n = (log(R0^T R) / s_R, (T - T0) / s_T, ln(f / f0) / s_f); (T, 7), 0 where unknown.

    world_from_cam: (T, 4, 4). focal: (T,) pixels.
    """
    given = data.world_from_cam
    turn = rigid.compose(jnp.swapaxes(given[:, :3, :3], -1, -2), world_from_cam[:, :3, :3])
    turn = rigid.log_so3(turn) * data.rotation[:, None]
    shift = (world_from_cam[:, :3, 3] - given[:, :3, 3]) * data.translation[:, None]
    zoom = (jnp.log(focal) - data.log_focal) * data.focal
    return jnp.concatenate([turn, shift, zoom[:, None]], axis=-1)


def camera_prior(
    world_from_cam: Array,
    focal: Array,
    data: CameraPriorData,
    frame_valid: Array | None = None,
) -> Array:
    """mean_n [ rho(|r_R|) + rho(|r_T|) + rho(|r_f|) ], rho(x) = sqrt(1 + x^2) - 1 (pseudo-Huber).

    The mean runs over all frames, so a frame counts the same however many others are known. Errors
    far beyond their deviation count linearly: one wrong pose bends nothing. frame_valid: (T,) 0
    or 1, the frames that count; None: all.
    """
    square = residuals(world_from_cam, focal, data) ** 2
    parts = (square[:, :3].sum(-1), square[:, 3:6].sum(-1), square[:, 6])
    # Exact near 0, where sqrt(1 + x) - 1 rounds to 0.
    cost = sum(part / (1 + jnp.sqrt(1 + part)) for part in parts)
    return mean_of_valid(cost, frame_valid)
