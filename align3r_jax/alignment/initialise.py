"""Where the aligner starts: one scene chained together along the best spanning tree of the pairs.

Every pair carries its points in a scale of its own. The tree of the most confident pairs brings
all frames into one world by similarities (weighted Procrustes), which gives world points, poses
and focals; then each pair is registered to these points. With all cameras known no tree is
needed (`known_cameras.initialise`). Facts: DUSt3R, section 3.4 and its published aligner.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax import pairing
from align3r_jax.alignment import known_cameras, variables
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import focal as focal_lib
from align3r_jax.geometry import pnp, pointmap, registration, rigid
from align3r_jax.structs import AlignmentVariables, Array, PairGraph, PairPredictions


class KeyFramePrior(NamedTuple):
    """What the key-frame pass says of frame 0 of a clip: world_from_cam (4, 4), focal (pixels)."""

    world_from_cam: np.ndarray
    focal: float


@struct.dataclass
class StartingScene:
    """One scene before optimisation, its scale normalised (`variables.encode` codes it).

    points: (T, H, W, 3) in the world. depth: (T, H, W), may be <= 0 where points lie behind
    their camera. world_from_cam: (T, 4, 4). focal: (T,) pixels. pair_scale (P,), pair_rotation
    (P, 3, 3), pair_translation (P, 3): pair -> world before the scale was normalised.
    """

    points: Array
    depth: Array
    world_from_cam: Array
    focal: Array
    pair_scale: Array
    pair_rotation: Array
    pair_translation: Array


class Tree(NamedTuple):
    """The chained scene: points (T, H, W, 3), poses (4, 4) or None, focals (NaN where unset),
    the pairs (T - 1, 2) in the order they were used."""

    points: list[Array]
    poses: list[np.ndarray | None]
    focals: np.ndarray
    pairs: list[tuple[int, int]]


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
        known: quantities given from outside, set in the result. Known poses and focals together
            replace the tree; known poses alone fix its world.

    Raises:
        UserError: known quantities do not fit the frames.
    """
    config = variables.settings_with_known(config, known)
    height, width = predictions.confidence1.shape[1:]
    if known is not None:
        known.check(graph.num_frames, height, width)
    if known is not None and known.world_from_cam is not None and known.focal is not None:
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


_encode = jax.jit(variables.encode, static_argnames="config")


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
    tree = spanning_tree_scene(
        predictions, graph, scores, config, key_frame_prior=key_frame_prior, known=known
    )
    focals = _fill_focals(tree.focals, predictions, graph, scores, known)
    confidence = np.asarray(frame_confidence(predictions, graph))
    poses = list(tree.poses)
    for frame in range(graph.num_frames):
        if poses[frame] is not None:
            continue
        # A frame that only ever comes second has no camera yet, and perhaps no focal.
        solution = pnp.solve_pnp(
            np.asarray(tree.points[frame]),
            confidence[frame] > config.min_confidence,
            None if np.isnan(focals[frame]) else focals[frame],
            _principal_point(known, frame),
        )
        found_focal, poses[frame] = solution or (float(max(height, width)), np.eye(4))
        focals[frame] = found_focal if np.isnan(focals[frame]) else focals[frame]
    points = jnp.stack(tree.points)
    world_from_cam = jnp.asarray(np.stack(poses), jnp.float32)
    if known.world_from_cam is not None:
        similarity = known_cameras.align_poses(world_from_cam, known.world_from_cam)
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

    Args:
        points: (T, H, W, 3) in the world. world_from_cam: (T, 4, 4). focals: (T,) pixels.
    """
    pair_scale, pair_rotation, pair_translation = register_pairs(
        predictions.pointmap1, predictions.confidence1, points, graph.pairs[:, 0]
    )
    world_from_cam = jnp.asarray(world_from_cam, jnp.float32)
    points, world_from_cam, depth = _normalise_scale(points, world_from_cam, pair_scale, config)
    return StartingScene(
        points=points,
        depth=depth,
        world_from_cam=world_from_cam,
        focal=jnp.asarray(focals, jnp.float32),
        pair_scale=pair_scale,
        pair_rotation=pair_rotation,
        pair_translation=pair_translation,
    )


def pair_scores(predictions: PairPredictions) -> np.ndarray:
    """Returns (P,) float64 mean(confidence1) * mean(confidence2)."""
    means = _mean_confidences(predictions.confidence1, predictions.confidence2)
    return np.prod(np.asarray(means, np.float64), axis=0)


@jax.jit
def _mean_confidences(confidence1: Array, confidence2: Array) -> Array:
    return jnp.stack([jnp.mean(c, axis=(1, 2)) for c in (confidence1, confidence2)])


def frame_confidence(predictions: PairPredictions, graph: PairGraph) -> jax.Array:
    """Returns (T, H, W): per pixel the largest confidence of all pairs that show the frame."""
    return _largest_confidence(
        predictions.confidence1, predictions.confidence2, graph.pairs, graph.num_frames
    )


@partial(jax.jit, static_argnames="num_frames")
def _largest_confidence(confidence1, confidence2, pairs, num_frames):
    largest = jnp.zeros((num_frames, *confidence1.shape[1:]), jnp.result_type(confidence1))
    return largest.at[pairs[:, 0]].max(confidence1).at[pairs[:, 1]].max(confidence2)


def spanning_tree_scene(
    predictions: PairPredictions,
    graph: PairGraph,
    scores: np.ndarray,
    config: AlignmentConfig,
    *,
    key_frame_prior: KeyFramePrior | None = None,
    known: variables.Known | None = None,
) -> Tree:
    """Chains all frames along the spanning tree of largest total score, best pair first."""
    known = known or variables.Known()
    pairs = graph.pairs
    pointmaps = (predictions.pointmap1, predictions.pointmap2)
    confidences = (predictions.confidence1, predictions.confidence2)
    # Worst first; pairs are taken from the end.
    todo = pairing.spanning_tree(scores, pairs, graph.num_frames).tolist()
    todo.sort(key=lambda k: (scores[k], *pairs[k]))
    points: list[Array | None] = [None] * graph.num_frames
    poses: list[np.ndarray | None] = [None] * graph.num_frames
    focals = np.full(graph.num_frames, np.nan)
    if known.focal is not None:
        focals = np.array(known.focal, np.float64)

    k = previous = _first_pair(todo, pairs, key_frame_prior)
    used = [tuple(pairs[k].tolist())]
    pose = np.eye(4)
    if key_frame_prior is not None:
        pose = np.asarray(key_frame_prior[0], np.float64)
        focals[0] = float(key_frame_prior[1]) if np.isnan(focals[0]) else focals[0]
        # The clip starts in the camera of its key frame, so that frame must come first.
        k = k if pairs[k, 0] == 0 else _index_of(pairs, 0, pairs[k, 0])
    first = pairs[k, 0]
    poses[first] = pose
    if np.isnan(focals[first]):
        focals[first] = _weiszfeld(pointmaps[0][k], _principal_point(known, first))
    for side in (0, 1):
        points[pairs[k, side]] = _change_frame(
            pointmaps[side][k], np.float32(pose[:3, :3]), np.float32(pose[:3, 3]), np.float32(1)
        )

    while todo:
        k = todo.pop()
        first = pairs[k, 0]
        if np.isnan(focals[first]):
            # parity: the reference looks at the tree's pair that it placed before this one.
            source = previous if config.stale_focal else k
            focals[first] = _weiszfeld(pointmaps[0][source], _principal_point(known, first))
        placed = [side for side in (0, 1) if points[pairs[k, side]] is not None]
        if not placed:
            todo.insert(0, k)
            continue
        side = placed[0]
        scale, rotation, translation = _register(
            pointmaps[side][k], confidences[side][k], points[pairs[k, side]]
        )
        points[pairs[k, 1 - side]] = _change_frame(
            pointmaps[1 - side][k], rotation, translation, scale
        )
        if poses[first] is None:
            poses[first] = np.eye(4)
            poses[first][:3] = np.column_stack([rotation, translation])
        used.append(tuple(pairs[k].tolist()))
        previous = k
    return Tree(points, poses, focals, used)


def register_pairs(
    pointmap1: Array, confidence1: Array, points: Array, frames: np.ndarray
) -> tuple[Array, Array, Array]:
    """Registers every pair to the world points of its first frame.

    Weighted Procrustes with the raw confidences as weights, one pair at a time inside one
    compiled loop, so that memory does not grow with the number of pairs.

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
        local, weights, frame = inputs
        return _register(local, weights, points[frame])

    return jax.lax.map(one, (pointmap1, confidence1, frames))


@jax.jit
def _register(source: Array, weights: Array, target: Array):
    """Procrustes between two maps (H, W, 3)."""
    return registration.weighted_procrustes(
        source.astype(jnp.float32).reshape(-1, 3),
        target.astype(jnp.float32).reshape(-1, 3),
        weights.astype(jnp.float32).reshape(-1),
    )


_weiszfeld = jax.jit(focal_lib.weiszfeld_focal)
_change_frame = jax.jit(pointmap.change_frame)


@jax.jit
def _move_scene(points, world_from_cam, scale, rotation, translation):
    moved = pointmap.change_frame(points, rotation, translation, scale)
    centres = scale * rigid.rotate(rotation, world_from_cam[:, :3, 3]) + translation
    return moved, rigid.pose(rigid.compose(rotation, world_from_cam[:, :3, :3]), centres)


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


def _first_pair(todo: list[int], pairs: np.ndarray, prior: KeyFramePrior | None) -> int:
    """Takes the best pair from `todo`; with a prior the best that shows frame 0."""
    k = todo.pop()
    while prior is not None and 0 not in pairs[k]:
        todo.insert(0, k)
        k = todo.pop()
    return k


def _index_of(pairs: np.ndarray, first: int, second: int) -> int:
    found = np.flatnonzero((pairs[:, 0] == first) & (pairs[:, 1] == second))
    if len(found) == 0:
        raise ValueError(f"The graph lacks the pair ({first}, {second}) that its clip starts with.")
    return int(found[0])


def _principal_point(known: variables.Known, frame: int) -> np.ndarray | None:
    return None if known.principal_point is None else np.asarray(known.principal_point)[frame]


def _fill_focals(
    focals: np.ndarray,
    predictions: PairPredictions,
    graph: PairGraph,
    scores: np.ndarray,
    known: variables.Known,
) -> np.ndarray:
    """Missing focals from the best pair whose first frame is the one in question."""
    focals = focals.copy()
    for k in np.lexsort((graph.pairs[:, 1], graph.pairs[:, 0], -scores)):
        frame = graph.pairs[k, 0]
        if np.isnan(focals[frame]):
            focals[frame] = _weiszfeld(predictions.pointmap1[k], _principal_point(known, frame))
    return focals
