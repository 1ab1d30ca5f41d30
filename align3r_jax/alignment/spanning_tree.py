"""All frames in one world, chained along the best spanning tree of the pairs.

The pair of largest score starts the world; every further pair of the tree shares one frame with
what is placed already, is registered to it (weighted Procrustes), and brings its other frame.
Focals and poses come from pairs whose first frame is the one in question.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax import pairing
from align3r_jax.alignment import variables
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import focal as focal_lib
from align3r_jax.geometry import pointmap, registration
from align3r_jax.structs import Array, PairGraph, PairPredictions


class KeyFramePrior(NamedTuple):
    """What the key-frame pass says of frame 0 of a clip: world_from_cam (4, 4), focal (pixels)."""

    world_from_cam: np.ndarray
    focal: float


class Tree(NamedTuple):
    """The chained scene.

    points: T maps (H, W, 3) in the world, NaN where they mean nothing (confidence 1). poses: T
    matrices (4, 4) world_from_cam, None for frames that come second in every pair of the tree.
    focals: (T,) pixels, NaN for frames that come second in every pair. pairs: the T - 1 pairs
    (i, j) in the order they were used.
    """

    points: list[Array]
    poses: list[np.ndarray | None]
    focals: np.ndarray
    pairs: list[tuple[int, int]]


def chain(
    predictions: PairPredictions,
    graph: PairGraph,
    scores: np.ndarray,
    config: AlignmentConfig,
    *,
    key_frame_prior: KeyFramePrior | None = None,
    known: variables.Known | None = None,
) -> Tree:
    """Chains all frames along the spanning tree of largest total score, best pair first.

    Args:
        scores: (P,) of the pairs of `graph`.
        config: `stale_focal` counts.
        key_frame_prior: where frame 0 is and its focal; the chain then starts there.
        known: focals and principal points are used if given.
    """
    known = known or variables.Known()
    pairs = graph.pairs
    pointmaps = (predictions.pointmap1, predictions.pointmap2)
    confidences = (predictions.confidence1, predictions.confidence2)
    # Worst first; pairs are taken from the end.
    todo = pairing.spanning_tree(scores, pairs, graph.num_frames).tolist()
    todo.sort(key=lambda k: (scores[k], *pairs[k]))
    points: list[Array | None] = [None] * graph.num_frames
    poses: list[np.ndarray | None] = [None] * graph.num_frames
    focals = known.known_focals(graph.num_frames)

    def set_focal(frame: int, pair: int) -> None:
        if np.isnan(focals[frame]):
            focals[frame] = _focal_of(predictions, pair, principal_point(known, frame))

    k = previous = _first_pair(todo, pairs, key_frame_prior)
    used = [tuple(pairs[k].tolist())]
    pose = np.eye(4)
    if key_frame_prior is not None:
        pose = np.asarray(key_frame_prior[0], np.float64)
        focals[0] = float(key_frame_prior[1]) if np.isnan(focals[0]) else focals[0]
        # The clip starts in the camera of its key frame, so that frame must come first.
        k = k if pairs[k, 0] == 0 else _index_of(pairs, 0, pairs[k, 0])
    poses[pairs[k, 0]] = pose
    set_focal(pairs[k, 0], k)
    for side in (0, 1):
        points[pairs[k, side]] = _place(
            pointmaps[side][k],
            confidences[side][k],
            np.float32(1),
            np.float32(pose[:3, :3]),
            np.float32(pose[:3, 3]),
        )

    while todo:
        k = todo.pop()
        first = pairs[k, 0]
        # parity: the reference looks at the pair of the tree that it placed before this one.
        set_focal(first, previous if config.stale_focal else k)
        placed = [side for side in (0, 1) if points[pairs[k, side]] is not None]
        if not placed:
            todo.insert(0, k)
            continue
        side = placed[0]
        scale, rotation, translation = register_maps(
            pointmaps[side][k], confidences[side][k], points[pairs[k, side]]
        )
        if not np.isfinite(scale) or scale <= 0:
            # Constant or missing points: better in the wrong place than nowhere.
            scale, rotation, translation = np.float32(1), np.eye(3, dtype="f"), np.zeros(3, "f")
        points[pairs[k, 1 - side]] = _place(
            pointmaps[1 - side][k], confidences[1 - side][k], scale, rotation, translation
        )
        if poses[first] is None:
            poses[first] = np.eye(4)
            poses[first][:3] = np.column_stack([rotation, translation])
        used.append(tuple(pairs[k].tolist()))
        previous = k

    for k in np.lexsort((pairs[:, 1], pairs[:, 0], -scores)):
        set_focal(pairs[k, 0], k)
    return Tree(points, poses, focals, used)


@jax.jit
def register_maps(
    source: Array, confidence: Array, target: Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weighted Procrustes between two maps (H, W, 3); returns scale, rotation, translation.

    The weights are the raw confidences (H, W), not their logarithms. Points that mean nothing
    (confidence 1 or not finite) have no weight.
    """
    source = source.astype(jnp.float32).reshape(-1, 3)
    target = target.astype(jnp.float32).reshape(-1, 3)
    confidence = confidence.astype(jnp.float32).reshape(-1)
    finite = jnp.all(jnp.isfinite(source) & jnp.isfinite(target), axis=-1)
    return registration.weighted_procrustes(
        jnp.where(finite[:, None], source, 0),
        jnp.where(finite[:, None], target, 0),
        jnp.where(finite & (confidence > 1), confidence, 0),
    )


@jax.jit
def confident_focal(points: Array, confidence: Array, point: Array | None = None) -> jax.Array:
    """Weiszfeld focal () of a map (H, W, 3) over the points with a confidence above 1."""
    meaningful = pointmap.validity(points, confidence)
    return focal_lib.weiszfeld_focal(
        jnp.where(meaningful[..., None], points.astype(jnp.float32), jnp.nan), point
    )


def principal_point(known: variables.Known, frame: int) -> np.ndarray | None:
    """Returns (2,) pixels if known."""
    mask = known.intrinsics_mask
    if known.principal_point is None or not (mask is None or mask[frame]):
        return None
    return np.asarray(known.principal_point, np.float32)[frame]


@jax.jit
def _place(local, confidence, scale, rotation, translation):
    """Points in the world, NaN where they mean nothing."""
    moved = pointmap.change_frame(local, rotation, translation, scale)
    return jnp.where(pointmap.validity(local, confidence)[..., None], moved, jnp.nan)


def _focal_of(predictions: PairPredictions, pair: int, point: np.ndarray | None) -> float:
    focal = float(
        confident_focal(predictions.pointmap1[pair], predictions.confidence1[pair], point)
    )
    # Points behind their camera, or none at all: a view of about 53 degrees.
    return (
        focal if np.isfinite(focal) and focal > 0 else float(max(predictions.confidence1.shape[1:]))
    )


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
