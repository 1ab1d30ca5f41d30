"""Where the aligner starts: one scene chained together along the best spanning tree of the pairs.

Every pair carries its points in a scale of its own. The tree of the most confident pairs brings
all frames into one world by similarities (weighted Procrustes), which gives world points, poses
and focals; then each pair is registered to these points. With all cameras known no tree is
needed (`known_cameras.initialise`). Facts: DUSt3R, section 3.4 and its published aligner.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.alignment import known_cameras, spanning_tree, variables
from align3r_jax.alignment.spanning_tree import KeyFramePrior
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import depth_fit, pnp, pointmap, rigid
from align3r_jax.structs import AlignmentVariables, Array, PairGraph, PairPredictions


@struct.dataclass
class StartingScene:
    """One scene before optimisation, its scale normalised (`variables.encode` codes it).

    points: (T, H, W, 3) in the world, NaN where unknown. depth: (T, H, W), known everywhere, but
    <= 0 where points lie behind their camera. world_from_cam: (T, 4, 4). focal: (T,) pixels.
    pair_scale (P,), pair_rotation (P, 3, 3), pair_translation (P, 3): pair -> world before the
    scale was normalised.
    """

    points: Array
    depth: Array
    world_from_cam: Array
    focal: Array
    pair_scale: Array
    pair_rotation: Array
    pair_translation: Array


def initialise(
    predictions: PairPredictions,
    graph: PairGraph,
    config: AlignmentConfig,
    *,
    key_frame_prior: KeyFramePrior | None = None,
    known: variables.Known | None = None,
) -> AlignmentVariables:
    """Returns the aligner's variables at their start.

    Args:
        predictions: of every pair of `graph`, H x W.
        graph: connected; any order of pairs.
        config: `stale_focal`, `shared_focal`, `min_confidence` and the codings count here.
        key_frame_prior: pose and focal of frame 0 (clips); None = the world is the camera of the
            best pair.
        known: quantities given from outside, set in the result. Poses and focals of all frames
            replace the tree; else known poses place its world.

    Raises:
        UserError: known quantities do not fit the frames.
    """
    config = variables.settings_with_known(config, known)
    height, width = predictions.confidence1.shape[1:]
    if known is not None:
        known.check(graph.num_frames, height, width)
    if known is not None and known.holds_all_cameras:
        start = known_cameras.initialise(predictions, graph, config, known)
    else:
        scene = starting_scene(
            predictions, graph, config, key_frame_prior=key_frame_prior, known=known
        )
        start = encode(scene, config)
    return variables.with_known(start, known, config)


def encode(scene: StartingScene, config: AlignmentConfig) -> AlignmentVariables:
    """Returns the scene as the aligner's variables."""
    return _encode(
        scene.depth,
        scene.world_from_cam,
        scene.focal,
        scene.pair_scale,
        scene.pair_rotation,
        scene.pair_translation,
        config,
    )


@partial(jax.jit, static_argnames="config")
def _encode(depth, world_from_cam, focal, scale, rotation, translation, config):
    return variables.encode(depth, world_from_cam, focal, scale, rotation, translation, config)


def starting_scene(
    predictions: PairPredictions,
    graph: PairGraph,
    config: AlignmentConfig,
    *,
    key_frame_prior: KeyFramePrior | None = None,
    known: variables.Known | None = None,
) -> StartingScene:
    """Chains the pairs into one scene, finds missing cameras, registers every pair to it."""
    known = known or variables.Known()
    height, width = predictions.confidence1.shape[1:]
    scores = pair_scores(predictions)
    tree = spanning_tree.chain(
        predictions, graph, scores, config, key_frame_prior=key_frame_prior, known=known
    )
    focals = tree.focals.copy()
    confidence = np.asarray(frame_confidence(predictions, graph))
    poses: list[np.ndarray] = []
    for frame, pose in enumerate(tree.poses):
        if pose is not None:
            poses.append(pose)
            continue
        # A frame that only ever comes second has no camera yet, and perhaps no focal.
        solution = pnp.solve_pnp(
            np.asarray(tree.points[frame]),
            confidence[frame] > config.min_confidence,
            None if np.isnan(focals[frame]) else focals[frame],
            spanning_tree.principal_point(known, frame),
        )
        found_focal, found_pose = solution or (float(max(height, width)), np.eye(4))
        poses.append(found_pose)
        focals[frame] = found_focal if np.isnan(focals[frame]) else focals[frame]
    points = jnp.stack(tree.points)
    world_from_cam = jnp.asarray(np.stack(poses), jnp.float32)
    if known.world_from_cam is not None:
        similarity: tuple[np.ndarray | np.floating, ...]
        if known.holds_all_poses:
            similarity = known_cameras.align_poses(world_from_cam, known.world_from_cam)
        else:
            fit = known_cameras.fit_world(world_from_cam, known.world_from_cam, known.pose_mask)
            similarity = (
                np.float32(fit.scale),
                np.float32(fit.rotation),
                np.float32(fit.translation),
            )
        points, world_from_cam = _move_scene(points, world_from_cam, *similarity)
    return register_scene(predictions, graph, config, points, world_from_cam, focals)


def register_scene(
    predictions: PairPredictions,
    graph: PairGraph,
    config: AlignmentConfig,
    points: Array,
    world_from_cam: Array,
    focals: Array,
) -> StartingScene:
    """Registers every pair to the world points, then gives the whole scene its scale.

    A pair that cannot be registered (constant or missing points) stands at its first camera.

    Args:
        points: (T, H, W, 3) in the world. world_from_cam: (T, 4, 4). focals: (T,) pixels.
    """
    pair_scale, pair_rotation, pair_translation = register_pairs(
        predictions.pointmap1, predictions.confidence1, points, graph.pairs[:, 0]
    )
    poses = np.asarray(world_from_cam, np.float32)
    similarity = replace_unusable(
        pair_scale, pair_rotation, pair_translation, poses[graph.pairs[:, 0]]
    )
    if not bool(_all_finite(points)):
        points = _fill_points(points, predictions, graph.pairs, similarity)
    pair_scale, pair_rotation, pair_translation = similarity
    points, world_from_cam, depth = _normalise_scale(points, poses, pair_scale, config)
    if not bool(_all_finite(depth)):
        depth = fill_depth(depth)
    return StartingScene(
        points=points,
        depth=depth,
        world_from_cam=world_from_cam,
        focal=jnp.asarray(focals, jnp.float32),
        pair_scale=pair_scale,
        pair_rotation=pair_rotation,
        pair_translation=pair_translation,
    )


@jax.jit
def _all_finite(values: Array) -> Array:
    return jnp.all(jnp.isfinite(values))


def pair_scores(predictions: PairPredictions) -> np.ndarray:
    """Returns (P,) float64 mean(confidence1) * mean(confidence2)."""
    means = _mean_confidences(predictions.confidence1, predictions.confidence2)
    return np.prod(np.asarray(means, np.float64), axis=0)


@jax.jit
def _mean_confidences(confidence1: Array, confidence2: Array) -> Array:
    return jnp.stack([jnp.mean(_finite(c), axis=(1, 2)) for c in (confidence1, confidence2)])


def _finite(values: Array) -> Array:
    return jnp.where(jnp.isfinite(values), values, 0)


def frame_confidence(predictions: PairPredictions, graph: PairGraph) -> jax.Array:
    """Returns (T, H, W): per pixel the largest confidence of all pairs that show the frame."""
    return _largest_confidence(
        predictions.confidence1, predictions.confidence2, graph.pairs, graph.num_frames
    )


@partial(jax.jit, static_argnames="num_frames")
def _largest_confidence(confidence1, confidence2, pairs, num_frames):
    largest = jnp.zeros((num_frames, *confidence1.shape[1:]), jnp.result_type(confidence1))
    largest = largest.at[pairs[:, 0]].max(_finite(confidence1))
    return largest.at[pairs[:, 1]].max(_finite(confidence2))


def register_pairs(
    pointmap1: Array, confidence1: Array, points: Array, frames: np.ndarray
) -> tuple[Array, Array, Array]:
    """Registers every pair to the world points of its first frame.

    `spanning_tree.register_maps`, one pair at a time inside one compiled loop, so that memory
    does not grow with the number of pairs.

    Args:
        pointmap1: (P, H, W, 3). confidence1: (P, H, W). points: (T, H, W, 3).
        frames: (P,) the first frame of each pair.

    Returns:
        scale (P,), rotation (P, 3, 3), translation (P, 3).
    """
    return _register_pairs(pointmap1, confidence1, points, jnp.asarray(frames))


@jax.jit
def _register_pairs(pointmap1, confidence1, points, frames):
    def one(inputs):
        local, confidence, frame = inputs
        return spanning_tree.register_maps(local, confidence, points[frame])

    return jax.lax.map(one, (pointmap1, confidence1, frames))


@jax.jit
def _move_scene(points, world_from_cam, scale, rotation, translation):
    moved = pointmap.change_frame(points, rotation, translation, scale)
    centres = scale * rigid.rotate(rotation, world_from_cam[:, :3, 3]) + translation
    return moved, rigid.pose(rigid.compose(rotation, world_from_cam[:, :3, :3]), centres)


@jax.jit
def replace_unusable(
    scale: Array, rotation: Array, translation: Array, world_from_cam: Array
) -> tuple[Array, Array, Array]:
    """Similarities (P,), (P, 3, 3), (P, 3) of pairs without one become those of their first camera.

    world_from_cam: (P, 4, 4) of the first frames. The scale is the geometric mean of the others.
    """
    usable = jnp.isfinite(scale) & (scale > 0)
    logs = jnp.where(usable, jnp.log(jnp.where(usable, scale, 1)), 0)
    typical = jnp.exp(jnp.sum(logs) / jnp.maximum(jnp.sum(usable), 1))
    rotation = jnp.where(usable[:, None, None], rotation, world_from_cam[:, :3, :3])
    translation = jnp.where(usable[:, None], translation, world_from_cam[:, :3, 3])
    return jnp.where(usable, scale, typical), rotation, translation


@jax.jit
def _fill_points(points, predictions, pairs, similarity):
    """Points that the tree does not know become the weighted mean of those of all pairs."""

    def add(total, inputs):
        k, maps, pair_similarity = inputs
        scale, rotation, translation = pair_similarity
        for side, (local, confidence) in enumerate(maps):
            moved = pointmap.change_frame(local, rotation, translation, scale)
            known = pointmap.validity(moved, confidence)
            weighted = jnp.where(known, confidence, 0)[..., None]
            sums = jnp.concatenate([jnp.where(known[..., None], moved, 0) * weighted, weighted], -1)
            total = total.at[pairs[k, side]].add(sums.astype(jnp.float32))
        return total, None

    maps = (
        (predictions.pointmap1, predictions.confidence1),
        (predictions.pointmap2, predictions.confidence2),
    )
    empty = jnp.zeros((*points.shape[:3], 4), jnp.float32)
    total, _ = jax.lax.scan(add, empty, (jnp.arange(len(pairs)), maps, similarity))
    known = jnp.all(jnp.isfinite(points), axis=-1, keepdims=True)
    return jnp.where(known, points, total[..., :3] / total[..., 3:])


@jax.jit
def fill_depth(depth: Array) -> Array:
    """Unknown depth, NaN in (T, H, W), becomes the median of its frame, 1 in frames without any."""
    known = jnp.isfinite(depth)
    median = jax.vmap(depth_fit.lower_median)(depth, known)
    return jnp.where(known, depth, median[:, None, None])


@partial(jax.jit, static_argnames="config")
def _normalise_scale(points: Array, world_from_cam: Array, pair_scale: Array, config):
    """Returns points and poses times g, and (T, H, W) the z of the points in their cameras."""
    gain = variables.scale_normalisation(jnp.log(pair_scale), config)
    points = gain * points
    world_from_cam = world_from_cam.at[:, :3, 3].multiply(gain)
    cam_from_world = rigid.invert(world_from_cam)
    z_axis, offset = cam_from_world[:, 2, :3], cam_from_world[:, 2, 3]
    depth = jnp.einsum("ti,thwi->thw", z_axis, points, precision="highest")
    return points, world_from_cam, depth + offset[:, None, None]
