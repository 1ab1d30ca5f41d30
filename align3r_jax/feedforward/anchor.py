"""What comes out for every frame, and when the anchor is replaced."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.config import FeedForwardConfig
from align3r_jax.geometry import camera
from align3r_jax.structs import Array

Tree = TypeVar("Tree")


@struct.dataclass
class FrameResult:
    """What is known of a frame as soon as it has been seen; never revised.

    depth, confidence (> 1 where depth means anything): (H, W). dynamic_mask: (H, W) bool.
    world_from_cam: (4, 4), the world is the camera of the first frame. intrinsics: (3, 3) pixels of
    the working size. good: () bool, False where the camera could not be found and that of the frame
    before stands in. inliers, overlap: () in [0, 1]. anchor: () int32, the number of the frame it
    was compared with. is_anchor: () bool, whether the frames after it are compared with it.
    """

    depth: Array
    confidence: Array
    dynamic_mask: Array
    world_from_cam: Array
    intrinsics: Array
    good: Array
    inliers: Array
    overlap: Array
    anchor: Array
    is_anchor: Array


def intrinsics(log_focal: Array, shape: tuple[int, int]) -> jax.Array:
    """Returns (3, 3) of a camera whose principal point is the centre of (height, width) pixels."""
    return camera.intrinsics_matrix(jnp.exp(log_focal), camera.image_centre(*shape))


def first_result(depth: Array, confidence: Array, log_focal: Array) -> FrameResult:
    """Returns what is known of the first frame, the first anchor. depth, confidence: (H, W)."""
    one, zero = jnp.float32(1), jnp.int32(0)
    return FrameResult(
        depth=depth,
        confidence=confidence,
        dynamic_mask=jnp.zeros(depth.shape, bool),
        world_from_cam=jnp.eye(4, dtype=jnp.float32),
        intrinsics=intrinsics(log_focal, (depth.shape[0], depth.shape[1])),
        good=jnp.ones((), bool),
        inliers=one,
        overlap=one,
        anchor=zero,
        is_anchor=jnp.ones((), bool),
    )


def is_due(
    config: FeedForwardConfig,
    *,
    overlap: Array,
    inliers: Array,
    confidence: Array | float,
    since: Array,
) -> Array:
    """Returns () bool, whether a frame that was found well should become the anchor.

    overlap, inliers, confidence: () shares that `config` sets bars for. since: () int32, frames
    since the anchor.
    """
    if config.anchor == "first":
        return jnp.zeros((), bool)
    if config.anchor != "adaptive":
        return since >= int(config.anchor)
    return (
        (overlap < config.min_overlap)
        | (inliers < config.min_inliers)
        | (confidence < config.min_confidence)
    )


def choose(condition: Array, first: Tree, second: Tree) -> Tree:
    """Returns one of two trees of equal shapes, the first where `condition` () holds."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)


def settled(state: Tree) -> Tree:
    """Returns the tree with types that no longer give way to others: one compilation for all."""
    return jax.tree.map(lambda array: jax.lax.convert_element_type(array, array.dtype), state)
