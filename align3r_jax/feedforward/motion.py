"""Motion masks of one frame from its flow to the frames before; causal, traceable."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct

from align3r_jax.alignment import mask_shape, motion_mask
from align3r_jax.geometry import rigid
from align3r_jax.structs import Array

BEFORE = 3  # frames before the current one that its flow is compared with
_MIN_ERROR_PX = 1.0  # as `AlignmentConfig.motion_min_error_px`


@struct.dataclass
class PastFlow:
    """Flow of the current frame to those 1, ..., BEFORE frames earlier.

    flow: (BEFORE, H, W, 2) pixels. weight: (BEFORE, H, W) in [0, 1], 0 for frames before the first.
    """

    flow: Array
    weight: Array


def first_poses() -> Array:
    """Returns (BEFORE, 4, 4), stand-ins before the first frame: no flow leads there."""
    return jnp.tile(jnp.eye(4, dtype=jnp.float32), (BEFORE, 1, 1))


def push(poses: Array, world_from_cam: Array) -> Array:
    """Returns the last BEFORE cameras, the newest first."""
    return jnp.concatenate([world_from_cam[None], poses[:-1]])


def mask(
    depth: Array, world_from_cam: Array, intrinsics: Array, poses: Array, past: PastFlow
) -> Array:
    """Returns (H, W) bool: `alignment.motion_mask.update_from_scene` of one frame.

    depth: (H, W). world_from_cam: (4, 4). intrinsics: (3, 3). poses: (BEFORE, 4, 4) of the frames
    before. Static where no flow is trusted.
    """
    count = BEFORE + 1
    pairs = jnp.stack([jnp.zeros(BEFORE, jnp.int32), jnp.arange(1, count)], axis=-1)
    cameras = jnp.concatenate([world_from_cam[None], poses])
    # Relative to the newest: far from the origin float32 would round their differences.
    cameras = rigid.compose(rigid.invert(cameras[:1]), cameras)
    votes, trust = motion_mask.scene_votes(
        jnp.broadcast_to(depth, (count, *depth.shape)),
        cameras,
        jnp.broadcast_to(intrinsics, (count, 3, 3)),
        pairs,
        past.flow,
        past.weight,
        _MIN_ERROR_PX,
    )
    snapped = mask_shape.snap(votes[:1], trust[:1], depth[None])
    found = mask_shape.clean(snapped > 1)[0]
    return found & jnp.any(past.weight > 0)
