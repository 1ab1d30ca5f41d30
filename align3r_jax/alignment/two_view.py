"""Two frames without optimisation: both cameras and depths from the pair (i, j) and its reverse.

It is the whole answer for a video of two frames, and, done for every pair of a longer one, what
the first motion masks compare with optical flow.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.alignment import initialise as initialise_lib
from align3r_jax.alignment import spanning_tree
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.geometry import camera, pnp, pointmap, rigid
from align3r_jax.structs import AlignmentVariables, Array, PairGraph, PairPredictions

_RANSAC_ITERATIONS = 100


@struct.dataclass
class TwoViewScenes:
    """K scenes of two frames each, in the order (i, j) of their pair; each in a world of its own.

    pairs: (K, 2) frame numbers. focal: (K, 2) pixels. world_from_cam: (K, 2, 4, 4), one of the two
    the identity. depth: (K, 2, H, W), NaN where points mean nothing (confidence 1).
    """

    pairs: np.ndarray
    focal: Array
    world_from_cam: Array
    depth: Array

    @property
    def intrinsics(self) -> jax.Array:
        """(K, 2, 3, 3) with the principal point in the middle."""
        height, width = self.depth.shape[-2:]
        return camera.intrinsics_matrix(self.focal, camera.image_centre(height, width))


def solve(predictions: PairPredictions, graph: PairGraph, config: AlignmentConfig) -> TwoViewScenes:
    """Solves every undirected pair of a symmetric graph by itself.

    Focal of each frame: Weiszfeld of its points in its own camera. Pose of each frame in the
    other camera: PnP of its points there, where its confidence exceeds `config.min_confidence`;
    identity on failure. The direction of larger score (mean confidence of i times that of j)
    counts: its first camera is the world, the other gets its pose.

    Raises:
        UserError: the graph is not symmetric.
    """
    if not graph.symmetric:
        raise UserError(
            f"The pair graph '{graph.name}' has pairs in one direction only; two-view scenes and "
            "the first motion masks need both. Make the graph symmetric (PairConfig.symmetrize)."
        )
    num = graph.num_pairs // 2
    focals = np.array(_focals(predictions.pointmap1, predictions.confidence1)).reshape(2, num).T
    # Points behind their camera, or none at all: a view of about 53 degrees.
    focals[~(np.isfinite(focals) & (focals > 0))] = max(predictions.confidence1.shape[1:])
    # The camera that comes second in a pair, in the camera that comes first.
    cam1_from_cam2 = _relative_poses(predictions, focals, config.min_confidence)
    scores = initialise_lib.pair_scores(predictions)
    forward = scores[:num] > scores[num:]
    poses = np.tile(np.eye(4), (num, 2, 1, 1))
    poses[forward, 1] = cam1_from_cam2[:num][forward]
    poses[~forward, 0] = cam1_from_cam2[num:][~forward]
    world_from_cam = jnp.asarray(poses, jnp.float32)
    chosen = np.where(forward, np.arange(num), np.arange(num) + num)
    return TwoViewScenes(
        pairs=graph.pairs[:num],
        focal=jnp.asarray(focals, jnp.float32),
        world_from_cam=world_from_cam,
        depth=_depths(predictions, chosen, forward, world_from_cam),
    )


def initialise(
    predictions: PairPredictions, graph: PairGraph, config: AlignmentConfig
) -> AlignmentVariables:
    """Returns the two-view scene of a graph of two frames as the aligner's variables."""
    scene = solve(predictions, graph, config)
    if graph.num_frames != 2 or len(scene.pairs) != 1:
        raise ValueError(f"Expected two frames, got {graph.num_frames}.")
    order = np.argsort(scene.pairs[0])  # the pair may be (1, 0)
    world_from_cam = scene.world_from_cam[0, order]
    local = camera.unproject(scene.depth[0, order], scene.intrinsics[0, order])
    start = initialise_lib.register_scene(
        predictions,
        graph,
        config,
        rigid.apply(world_from_cam, local),
        world_from_cam,
        scene.focal[0, order],
    )
    return initialise_lib.encode(start, config)


@jax.jit
def _focals(pointmap1: Array, confidence1: Array) -> jax.Array:
    return jax.lax.map(lambda pair: spanning_tree.confident_focal(*pair), (pointmap1, confidence1))


def _relative_poses(
    predictions: PairPredictions, focals: np.ndarray, min_confidence: float
) -> np.ndarray:
    """Returns (2 K, 4, 4): for every pair (a, b) the camera of b in that of a."""
    num = len(focals)
    pointmap2 = np.asarray(predictions.pointmap2)
    confidence1, confidence2 = (
        np.asarray(predictions.confidence1),
        np.asarray(predictions.confidence2),
    )

    def solve_one(k: int) -> np.ndarray:
        reverse = (k + num) % (2 * num)
        confidence = np.maximum(confidence2[k], confidence1[reverse])
        solution = pnp.solve_pnp(
            pointmap2[k],
            confidence > min_confidence,
            focals[k % num, 1 if k < num else 0],
            iterations=_RANSAC_ITERATIONS,
        )
        return np.eye(4) if solution is None else solution[1]

    with ThreadPoolExecutor() as threads:
        return np.stack(list(threads.map(solve_one, range(2 * num))))


@jax.jit
def _depths(
    predictions: PairPredictions, chosen: Array, forward: Array, world_from_cam: Array
) -> jax.Array:
    """Returns (K, 2, H, W) from the direction that counts; its first camera is the world."""

    def one(inputs):
        k, is_forward, poses = inputs
        cam2_from_world = rigid.invert(jnp.where(is_forward, poses[1], poses[0]))
        points1, points2 = predictions.pointmap1[k], predictions.pointmap2[k].astype(jnp.float32)
        first = points1[..., 2].astype(jnp.float32)
        second = rigid.apply(cam2_from_world, points2)[..., 2]
        first = jnp.where(pointmap.validity(points1, predictions.confidence1[k]), first, jnp.nan)
        second = jnp.where(pointmap.validity(points2, predictions.confidence2[k]), second, jnp.nan)
        pair = jnp.stack([first, second])
        return jnp.where(is_forward, pair, pair[::-1])

    return jax.lax.map(one, (jnp.asarray(chosen), jnp.asarray(forward), world_from_cam))
