"""Real-time mode with point maps of frame pairs: one frame in, its depth and camera out (MonST3R).

Frame t meets the anchor a in both orders. X(t|a), the points of t in the camera of a, in the scale
of the anchor's depth D, give the camera by resection with the pixels of t; X(a|t), those of a in
the camera of t, give it once more by resection with the pixels of a. Depth of t is the mean of what
both pairs say. The anchor's own point map in each pair fixes that pair's scale:

    s = median D / z(X(a|a)),   s' = median z(camera of t <- s X(t|a)) / z(X(t|t)).

What pairs (a, t) say of the anchor itself is averaged into D. When t becomes the anchor its depth
is in that same scale, so the scale is handed on. State and work per frame are of constant size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.alignment import lattice
from align3r_jax.config import FeedForwardConfig
from align3r_jax.feedforward import anchor as anchor_lib
from align3r_jax.feedforward import locate as locate_lib
from align3r_jax.feedforward import motion
from align3r_jax.feedforward.anchor import FrameResult
from align3r_jax.geometry import camera, depth_fit, focal, rigid, warp
from align3r_jax.structs import PairPredictions

Array = jax.Array
# (features of the anchor, features of frame t) -> predictions of the pairs (a, t) and (t, a).
Decode = Callable[[Any, Any], PairPredictions]

_ANCHOR_MEMORY = 8.0  # pairs over which the anchor's depth is averaged, at most


@struct.dataclass
class View:
    """A frame that others may be compared with.

    features: what the predictor keeps of it, any tree. log_depth, confidence: (H, W), NaN and 1
    where nothing is known. world_from_cam: (4, 4). index: () int32.
    """

    features: Any
    log_depth: Array
    confidence: Array
    world_from_cam: Array
    index: Array


@struct.dataclass
class PairState:
    """All that is remembered; its size does not depend on how many frames were seen.

    anchor: the frame compared with; last_good: the latest whose camera was found. averaged: ()
    pairs in the anchor's depth. best_confidence: () of this anchor. past_poses: see `motion`.
    log_focal: () mean, of `focals` () frames. count: () int32 frames seen. lost: () int32 frames
    in a row without a camera.
    """

    anchor: View
    last_good: View
    averaged: Array
    best_confidence: Array
    past_poses: Array
    log_focal: Array
    focals: Array
    count: Array
    lost: Array


def init(
    features: Any, decode: Decode, known_focal: Array | float | None = None
) -> tuple[PairState, FrameResult]:
    """Returns the state after the first frame, and its result: it is paired with itself.

    features: of the first frame. known_focal: pixels; None: found from the point maps, as the mean
    of all frames so far.
    """
    known = jnp.float32(0.0 if known_focal is None else known_focal)
    return _first(features, decode(features, features), known)


def step(
    state: PairState,
    features: Any,
    decode: Decode,
    config: FeedForwardConfig,
    past: motion.PastFlow | None = None,
) -> tuple[PairState, FrameResult]:
    """Returns the next state and the result of one more frame; traceable if `decode` is.

    past: its flow to the frames before, for the motion mask; None: all static.
    """
    return _next(state, features, decode(state.anchor.features, features), past, config)


@jax.jit
def _first(features, pairs, known_focal):
    points, confidence = pairs.pointmap1[0], pairs.confidence1[0]
    found = jnp.log(_focal(pairs.pointmap1))
    log_focal = jnp.where(known_focal > 0, jnp.log(jnp.maximum(known_focal, 1e-6)), found)
    # A large count holds a known focal where it is.
    focals = jnp.where(known_focal > 0, 1e9, 1.0).astype(jnp.float32)
    log_depth, confidence = _known(points[..., 2], confidence)
    zero = jnp.zeros((), jnp.int32)
    eye = jnp.eye(4, dtype=jnp.float32)
    view = View(features, log_depth, confidence, eye, zero)
    state = PairState(
        anchor=view,
        last_good=view,
        averaged=jnp.float32(1),
        best_confidence=jnp.float32(0),
        past_poses=motion.push(motion.first_poses(), eye),
        log_focal=log_focal,
        focals=focals,
        count=zero + 1,
        lost=zero,
    )
    result = anchor_lib.first_result(_filled(log_depth), confidence, log_focal)
    return anchor_lib.settled(state), result


@functools.partial(jax.jit, static_argnames="config")
def _next(state, features, pairs, past, config):
    anchor, shape = state.anchor, pairs.confidence1.shape[1:]
    height, width = shape
    scalars = _measure_focal(state, pairs)
    log_focal = scalars[0]
    intrinsics = anchor_lib.intrinsics(log_focal, shape)
    stride = lattice.stride_for(height, width)
    few = functools.partial(_every, stride=stride)
    pixels = few(warp.pixel_grid(height, width)).reshape(-1, 2)

    # Pair (a, t), in the anchor's scale and camera.
    log_own, own_confidence = _known(pairs.pointmap1[0, ..., 2], pairs.confidence1[0])
    log_scale = _median(few(anchor.log_depth) - few(log_own))
    points = jnp.exp(log_scale) * pairs.pointmap2[0]
    weight = jnp.log(jnp.maximum(pairs.confidence2[0], 1))
    start = rigid.compose(rigid.invert(anchor.world_from_cam), state.past_poses[0])
    locate = functools.partial(
        locate_lib.locate, pixels=pixels, intrinsics=intrinsics, config=config
    )
    first = locate(few(points).reshape(-1, 3), weight=few(weight).reshape(-1), start=start)
    anchor_from_cam = first.pose
    seen = rigid.apply(rigid.invert(anchor_from_cam), points)
    log_seen, seen_confidence = _known(seen[..., 2], pairs.confidence2[0])

    # Pair (t, a), brought to the same scale through the depth of t.
    log_here, here_confidence = _known(pairs.pointmap1[1, ..., 2], pairs.confidence1[1])
    log_scale = _median(few(log_seen) - few(log_here))
    log_scale = jnp.where(
        first.inliers >= config.lost_inliers,
        log_scale,
        _median(few(state.last_good.log_depth) - few(log_here)),
    )
    back = jnp.exp(log_scale) * pairs.pointmap2[1]
    back_weight = few(jnp.log(jnp.maximum(pairs.confidence2[1], 1))).reshape(-1)
    second = locate(
        few(back).reshape(-1, 3), weight=back_weight, start=rigid.invert(anchor_from_cam)
    )
    anchor_from_cam = locate_lib.between(first, second)
    inliers = jnp.maximum(first.inliers, second.inliers)
    good = inliers >= config.lost_inliers
    anchor_from_cam = jnp.where(good, anchor_from_cam, start)
    world_from_cam = rigid.compose(anchor.world_from_cam, anchor_from_cam)

    # Depth: both pairs, weighted by their log confidence; alone where the camera is not known.
    seen = rigid.apply(rigid.invert(anchor_from_cam), points)
    log_seen, seen_confidence = _known(seen[..., 2], pairs.confidence2[0])
    log_here = log_here + log_scale
    log_depth, confidence = _mean(
        log_here, here_confidence, log_seen, jnp.where(good, seen_confidence, 1.0)
    )
    confidence = jnp.where(good, confidence, 1.0)

    moving = jnp.zeros(shape, bool)
    depth = _filled(log_depth)
    if past is not None and config.motion_masks:
        moving = good & motion.mask(depth, world_from_cam, intrinsics, state.past_poses, past)

    # The anchor's depth, of all pairs so far.
    share = jnp.where(good, 1 / (state.averaged + 1), 0.0)
    log_own = log_own + _median(few(anchor.log_depth) - few(log_own))
    blend = (1 - share) * anchor.log_depth + share * log_own
    blend = jnp.where(jnp.isnan(blend), anchor.log_depth, blend)
    anchor = anchor.replace(log_depth=blend)
    averaged = jnp.minimum(state.averaged + jnp.where(good, 1.0, 0.0), _ANCHOR_MEMORY)

    view = View(features, log_depth, confidence, world_from_cam, state.count)
    overlap = _overlap(few(points).reshape(-1, 3), intrinsics, shape)
    sure = jnp.mean(weight)
    best = jnp.maximum(state.best_confidence, sure)
    lost = jnp.where(good, 0, state.lost + 1)
    due = good & anchor_lib.is_due(
        config,
        overlap=overlap,
        inliers=inliers,
        confidence=sure / jnp.maximum(best, 1e-6),
        since=state.count - anchor.index,
    )
    start_again = lost >= config.max_lost
    take_over = due | start_again
    new_anchor = anchor_lib.choose(take_over, view, anchor)
    # Lost: the latest good frame is the nearest whose depth is known.
    fall_back = ~good & ~start_again & (config.anchor == "adaptive")
    new_anchor = anchor_lib.choose(fall_back, state.last_good, new_anchor)
    changed = new_anchor.index != state.anchor.index
    result = FrameResult(
        depth=depth,
        confidence=confidence,
        dynamic_mask=moving,
        world_from_cam=world_from_cam,
        intrinsics=intrinsics,
        good=good,
        inliers=inliers,
        overlap=overlap,
        anchor=state.anchor.index,
        is_anchor=take_over,
    )
    state = PairState(
        anchor=new_anchor,
        last_good=anchor_lib.choose(good | start_again, view, state.last_good),
        averaged=jnp.where(changed, 1.0, averaged),
        best_confidence=jnp.where(changed, 0.0, best),
        past_poses=motion.push(state.past_poses, world_from_cam),
        log_focal=log_focal,
        focals=scalars[1],
        count=state.count + 1,
        lost=jnp.where(start_again, 0, lost),
    )
    return anchor_lib.settled(state), result


def _measure_focal(state, pairs):
    """Returns the mean log focal and its count with this frame's own point map in it."""
    found = _focal(pairs.pointmap1[1])
    usable = jnp.isfinite(found) & (found > 0)
    count = state.focals + usable
    log_found = jnp.log(jnp.where(usable, found, 1.0))
    moved = state.log_focal + (log_found - state.log_focal) / count
    return jnp.where(usable, moved, state.log_focal), count


def _focal(pointmaps):
    return jnp.mean(focal.weiszfeld_focal(pointmaps))


def _every(values, stride):
    return values[stride // 2 :: stride, stride // 2 :: stride]


def _known(depth, confidence):
    """Returns log depth, NaN where it is no positive number, and confidence, 1 there."""
    known = jnp.isfinite(depth) & (depth > 0) & jnp.isfinite(confidence)
    log_depth = jnp.where(known, jnp.log(jnp.where(known, depth, 1.0)), jnp.nan)
    return log_depth, jnp.where(known, confidence, 1.0)


def _filled(log_depth):
    """Depth, with its median where it is unknown."""
    known = jnp.isfinite(log_depth)
    return jnp.exp(jnp.where(known, log_depth, _median(log_depth)))


def _median(values):
    """The lower median of the finite values, 0 if there are none."""
    known = jnp.isfinite(values)
    return jnp.where(jnp.any(known), depth_fit.lower_median(values, known), 0.0)


def _mean(first, confidence1, second, confidence2):
    """Log depth and confidence of two sources, weighted by their log confidence."""
    weight1, weight2 = (
        jnp.where(jnp.isfinite(depth), jnp.log(jnp.maximum(c, 1.0)) + 1e-6, 0.0)
        for depth, c in ((first, confidence1), (second, confidence2))
    )
    total = weight1 + weight2
    weighted = jnp.where(weight1 > 0, weight1 * first, 0) + jnp.where(
        weight2 > 0, weight2 * second, 0
    )
    mean = jnp.where(total > 0, weighted / jnp.maximum(total, 1e-12), jnp.nan)
    sure = (weight1 * confidence1 + weight2 * confidence2) / jnp.maximum(total, 1e-12)
    return mean, jnp.where(total > 0, sure, 1.0)


def _overlap(points, intrinsics, shape):
    """Share of points in the anchor's camera that it sees."""
    height, width = shape
    xy = camera.project(points, intrinsics)
    inside = jnp.all((xy >= 0) & (xy <= jnp.array([width - 1, height - 1])), axis=-1)
    known = jnp.all(jnp.isfinite(points), axis=-1)
    return jnp.sum(inside & known & (points[:, 2] > 0)) / jnp.maximum(jnp.sum(known), 1)
