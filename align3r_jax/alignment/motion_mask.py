"""Where something moves by itself: optical flow that the camera's motion does not explain."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.alignment import mask_shape, two_view
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.geometry import warp
from align3r_jax.structs import Array, OpticalFlow, PairGraph, PairPredictions

_GREY_THRESHOLD = 0.99  # user masks: brighter is dynamic

# Masks from a whole scene; chosen on rendered clips with DIS flow, exact and noisy depth.
_MAX_DISTANCE = 3  # frames; flow over longer ones is less sure and hides more
_BACKGROUND_QUANTILE = 0.3  # of the errors: below it nothing moves even if half the image does
_BACKGROUND_FACTOR = 3.0  # errors above this many quantiles are motion
_FLOW_SHARE = 0.2  # of its length, what a flow may be wrong by
_MAX_VOTE = 1.5  # no single field decides alone
_LEAST_TRUST = 0.05  # of flow that fails its consistency check though the point stays in view


def from_two_views(
    predictions: PairPredictions,
    graph: PairGraph,
    flow: OpticalFlow,
    config: AlignmentConfig,
) -> np.ndarray:
    """Dynamic masks before any alignment, every pair by its own two-view scene.

    error = |ego flow - optical flow| of every pair in both directions, each map scaled to [0, 1]
    by its own minimum and maximum; dynamic where the mean over all pairs of the frame exceeds
    `config.motion_threshold` and the mean unscaled error `config.motion_min_error_px` (MonST3R,
    section 3.4; the second condition is ours, 0 = parity).

    Args:
        graph: symmetric.
        flow: fields of the first half of the pairs, both directions.

    Returns:
        (T, H, W) bool.
    """
    scenes = two_view.solve(predictions, graph, config)
    pairs = scenes.pairs
    error1, error2 = two_view_errors(
        scenes, flow.flow[flow.index_of(pairs)], flow.flow[flow.index_of(pairs[:, ::-1])]
    )
    errors = jnp.concatenate([error1, error2])
    frames = np.concatenate([pairs[:, 0], pairs[:, 1]])
    return np.asarray(
        threshold_errors(
            errors,
            frames,
            graph.num_frames,
            config.motion_threshold,
            config.motion_min_error_px,
        )
    )


@jax.jit
def two_view_errors(
    scenes: two_view.TwoViewScenes, flow12: Array, flow21: Array
) -> tuple[jax.Array, jax.Array]:
    """Returns |ego - optical flow| in pixels, (K, H, W) on each frame of every pair.

    flow12, flow21: (K, H, W, 2), from the first frame of each pair to the second and back.
    """

    def one(inputs):
        depth, intrinsics, poses, forward, backward = inputs
        ego12 = warp.ego_flow(depth[0], *intrinsics, *poses)
        ego21 = warp.ego_flow(depth[1], *intrinsics[::-1], *poses[::-1])
        errors = _length(ego12 - forward), _length(ego21 - backward)
        # Unknown points say nothing of motion; one NaN would spoil the range of its map.
        return tuple(jnp.where(jnp.isfinite(error), error, 0) for error in errors)

    inputs = (scenes.depth, scenes.intrinsics, scenes.world_from_cam, flow12, flow21)
    return jax.lax.map(one, inputs)


def normalise_errors(errors: Array) -> jax.Array:
    """Scales each map (..., H, W) to [0, 1] by its own range; constant maps become 0."""
    low = jnp.min(errors, axis=(-2, -1), keepdims=True)
    span = jnp.max(errors, axis=(-2, -1), keepdims=True) - low
    return jnp.where(span > 0, (errors - low) / jnp.where(span > 0, span, 1), 0)


@partial(jax.jit, static_argnames="num_frames")
def threshold_errors(
    errors: Array,
    frames: Array,
    num_frames: int,
    threshold: float,
    min_error_px: float = 0.0,
) -> jax.Array:
    """mean(normalised errors) > threshold and mean(errors) > min_error_px, per frame.

    Args:
        errors: (M, H, W) pixels. frames: (M,) the frame of each map.
        min_error_px: 0 = no such condition.

    Returns:
        (num_frames, H, W) bool; frames without a map are static.
    """
    frames = jnp.asarray(frames)
    empty = jnp.zeros((num_frames, *errors.shape[1:]), errors.dtype)
    count = jnp.zeros(num_frames, errors.dtype).at[frames].add(1)
    count = jnp.maximum(count, 1)[:, None, None]
    scaled = empty.at[frames].add(normalise_errors(errors)) / count
    mean = empty.at[frames].add(errors) / count
    return (scaled > threshold) & ((mean > min_error_px) | (min_error_px <= 0))


def from_user(masks: Array | None, num_frames: int, height: int, width: int) -> np.ndarray:
    """Returns (T, H, W) bool masks of the user, all static if None.

    masks: (T, H, W) bool or grey values in [0, 1] (dynamic above 0.99) or uint8 in [0, 255].
    Raises UserError if the shape is another.
    """
    shape = (num_frames, height, width)
    if masks is None:
        return np.zeros(shape, bool)
    masks = np.asarray(masks)
    if masks.shape != shape:
        raise UserError(
            f"Dynamic masks have shape {masks.shape}, expected {shape}: one mask for each frame, "
            "at working size."
        )
    if masks.dtype == bool:
        return masks
    scale = 255.0 if masks.dtype == np.uint8 else 1.0
    return masks.astype(np.float32) / scale > _GREY_THRESHOLD


def given(masks: Array | None, shape: tuple[int, int, int]) -> tuple[jax.Array, jax.Array | bool]:
    """Returns the masks of the user, (T, H, W) bool, and where they are given; traceable.

    masks: bool, uint8 or grey values in [0, 1], NaN where not given; None: nowhere.
    """
    if masks is None:
        return jnp.zeros(shape, bool), False
    masks = jnp.asarray(masks)
    if masks.dtype == bool:
        return masks, True
    if jnp.issubdtype(masks.dtype, jnp.integer):
        return masks > 255 * _GREY_THRESHOLD, True
    return masks > _GREY_THRESHOLD, ~jnp.isnan(masks)


def update_from_scene(
    depth: Array,
    world_from_cam: Array,
    intrinsics: Array,
    flow: OpticalFlow,
    config: AlignmentConfig,
    axis: str | None = None,
) -> jax.Array:
    """Dynamic masks from an aligned scene. Traceable, also in `flow.pairs`.

    Every flow field between near frames votes on its source frame with min(error / limit, 1.5),
    limit = max(motion_min_error_px, 3 x the 30 % quantile of its errors) + 0.2 x the length of
    the flow; dynamic where the mean vote, weighted by the trust in the flow, exceeds 1. The
    quantile is what depth, cameras and flow get wrong of the standing background, so a static
    scene stays static; the fixed floor keeps noise of good flow out. Votes snap to the edges of
    the depth map (flow bleeds across them), then spots are removed and holes closed.

    Args:
        depth: (T, H, W). world_from_cam: (T, 4, 4). intrinsics: (T, 3, 3).
        flow: any directed fields; those over more than three frames count only for frames that
            have no nearer one. Fields of frame -1 only fill up the shape.
        axis: name of the mesh axis over which the fields are spread, None: they are all here.

    Returns:
        (T, H, W) bool; frames without a field are static.
    """
    return _update_from_scene(
        depth,
        world_from_cam,
        intrinsics,
        jnp.asarray(flow.pairs),
        flow.flow,
        flow.weight,
        config.motion_min_error_px,
        axis,
    )


@partial(jax.jit, static_argnames="axis")
def _update_from_scene(
    depth, world_from_cam, intrinsics, pairs, flow, weight, min_error_px, axis=None
):
    votes, trust = scene_votes(
        depth, world_from_cam, intrinsics, pairs, flow, weight, min_error_px, axis
    )
    return mask_shape.clean(mask_shape.snap(votes, trust, depth) > 1)


@partial(jax.jit, static_argnames="axis")
def scene_votes(
    depth: Array,
    world_from_cam: Array,
    intrinsics: Array,
    pairs: Array,
    flow: Array,
    weight: Array,
    min_error_px: float,
    axis: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns (T, H, W) the mean votes of `update_from_scene` and the sum of their weights.

    pairs: (D, 2); flow: (D, H, W, 2); weight: (D, H, W). Votes are 0 where no flow is trusted.
    """
    near = _near(pairs, depth.shape[0], axis)
    height, width = depth.shape[1:]
    corner = jnp.array([width - 1, height - 1], jnp.float32)
    grid = warp.pixel_grid(height, width)

    def add(carry, inputs):
        total, trust = carry
        (i, j), field, weight, counts = inputs
        ego = warp.ego_flow(
            depth[i], intrinsics[i], intrinsics[j], world_from_cam[i], world_from_cam[j]
        )
        error = _length(ego - field)
        known = jnp.isfinite(error)
        error = jnp.where(known, error, 0)
        background = _quantile(error, known & (weight > 0), _BACKGROUND_QUANTILE)
        limit = jnp.maximum(min_error_px, _BACKGROUND_FACTOR * background)
        limit = limit + _FLOW_SHARE * jnp.minimum(_length(ego), _length(field))
        # Fast things fail the consistency check everywhere; standing ones only where they are
        # hidden or leave the image.
        target = grid + ego
        inside = jnp.all((target >= 0) & (target <= corner), axis=-1)
        weight = jnp.where(inside, jnp.maximum(weight, _LEAST_TRUST), weight)
        weight = jnp.where(known & counts, weight, 0)
        vote = weight * jnp.minimum(error / jnp.maximum(limit, 1e-6), _MAX_VOTE)
        return (total.at[i].add(vote), trust.at[i].add(weight)), None

    empty = jnp.zeros(depth.shape, jnp.result_type(jnp.float32, depth.dtype))
    fields = (pairs, flow, weight, near)
    (total, trust), _ = jax.lax.scan(add, (empty, empty), fields)
    if axis is not None:
        total, trust = jax.lax.psum((total, trust), axis)
    return jnp.where(trust > 0, total / jnp.where(trust > 0, trust, 1), 0), trust


def _near(pairs: Array, num_frames: int, axis: str | None) -> Array:
    """Returns (D,) bool, which fields vote."""
    source = pairs[:, 0]
    distance = jnp.abs(source - pairs[:, 1])
    valid = source >= 0
    far = jnp.iinfo(jnp.int32).max
    nearest = jnp.full(num_frames, far, jnp.int32)
    nearest = nearest.at[source].min(jnp.where(valid, distance, far))
    if axis is not None:
        nearest = jax.lax.pmin(nearest, axis)
    return valid & (distance <= jnp.maximum(_MAX_DISTANCE, nearest[source]))


def _quantile(values: Array, usable: Array, share: float) -> jax.Array:
    """The quantile of the usable values, () ; 0 if there are none."""
    ordered = jnp.sort(jnp.where(usable, values, jnp.inf).reshape(-1))
    count = jnp.sum(usable)
    position = jnp.clip((share * count).astype(jnp.int32), min=0, max=ordered.shape[0] - 1)
    return jnp.where(count > 0, ordered[position], 0)


def _length(vectors: Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(vectors * vectors, axis=-1))
