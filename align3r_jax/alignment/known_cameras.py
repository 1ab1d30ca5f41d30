"""The start with known cameras: from all of them, or a chained scene carried onto some of them.

What is held is set and then frozen (`variables.Known`, `variables.trainable`); with known poses
the pair scales are not normalised, since the poses fix the scale of the world.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.alignment import variables
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import pnp, registration, rigid
from align3r_jax.structs import (
    AlignmentVariables,
    Array,
    PairGraph,
    PairPredictions,
)

MAX_GROWTH = 3.0  # of the scale by the parallax; beyond, the predictions contradict the poses
_SCALE_PIXELS = 1024  # of a frame, evenly spread, that the scale is found from
_MAX_NOISE = 1.5  # by how much noise of the found path may lengthen it
_SAME_PLACE = 1e-9  # spread of positions over their size: below, they are one position


def initialise(
    predictions: PairPredictions,
    graph: PairGraph,
    config: AlignmentConfig,
    known: variables.Known,
) -> AlignmentVariables:
    """The start with all poses and focals known.

    The camera of j in i is found from the pair's points (PnP); the similarity that carries the
    two cameras (I, that one) onto the two known ones is the pair's. The depth of a frame is taken
    from its most confident pair.

    Args:
        known: `world_from_cam` and `focal` are set; `principal_point` counts if set.
    """
    height, width = predictions.confidence1.shape[1:]
    poses = jnp.asarray(known.world_from_cam, jnp.float32)
    focals = np.asarray(known.focal, np.float64)
    if known.principal_point is None:
        centres = np.tile([width / 2, height / 2], (len(focals), 1))
    else:
        centres = np.asarray(known.principal_point)
    pointmap2 = np.asarray(predictions.pointmap2)
    everywhere = np.ones((height, width), bool)

    def relative_pose(k: int) -> np.ndarray:
        # parity: camera and confidence of frame i, though the pixels are those of j; the
        # confidence threshold lies below the smallest one, so every pixel counts.
        i = graph.pairs[k, 0]
        solution = pnp.solve_pnp(pointmap2[k], everywhere, focals[i], centres[i])
        return np.full((4, 4), np.nan) if solution is None else solution[1]

    with ThreadPoolExecutor() as threads:
        cam1_from_cam2 = np.stack(list(threads.map(relative_pose, range(graph.num_pairs))))
    similarity = _similarities(cam1_from_cam2, np.asarray(known.world_from_cam)[graph.pairs])
    return variables.encode(
        _depths(predictions, graph, poses, *similarity),
        poses,
        jnp.asarray(focals, jnp.float32),
        *similarity,
        config,
    )


def align_poses(
    source_poses: Array, target_poses: Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`registration.align_poses` of (T, 4, 4) or (P, T, 4, 4) in float64, returned in float32.

    The orientation about a common baseline rests on points a hundredth of it apart, whose
    squares float32 loses.
    """
    with jax.enable_x64(True):
        align = registration.align_poses
        align = jax.vmap(align) if source_poses.ndim == 4 else align
        scale, rotation, translation = jax.jit(align)(
            np.asarray(source_poses, np.float64), np.asarray(target_poses, np.float64)
        )
        return (
            np.asarray(scale, np.float32),
            np.asarray(rotation, np.float32),
            np.asarray(translation, np.float32),
        )


class WorldFit(NamedTuple):
    """x_known = scale rotation x_found + translation, float64.

    fixes_scale: the known positions and the found ones both lie apart; else scale is 1.
    angle: radians, median by which the fitted orientations differ from the known ones.
    """

    scale: float
    rotation: np.ndarray
    translation: np.ndarray
    fixes_scale: bool
    angle: float


def fit_world(
    found: Array, known: Array, mask: Array | None = None, *, exact: bool = True
) -> WorldFit:
    """The similarity that carries found cameras onto known ones, from any number of them.

    found, known: (T, 4, 4) world_from_cam. mask: (T,) bool, the cameras that count; None: all.
    exact: the known cameras are; else both are noisy, and the scale is the ratio of their spreads.
    Rotation: Procrustes of the centres and, as far from them as these are spread, points on the
    three axes of every camera, so that one camera, cameras in one place or on one line fix it too.
    Scale and translation: least squares of the found centres given the known ones and the rotation.
    """
    chosen = slice(None) if mask is None else np.asarray(mask, bool)
    found = np.asarray(found, np.float64)[chosen]
    known = np.asarray(known, np.float64)[chosen]
    centres = [poses[:, :3, 3] for poses in (found, known)]
    means = [centre.mean(axis=0) for centre in centres]
    offsets = [centre - mean for centre, mean in zip(centres, means)]
    spreads = [float(np.sqrt((offset**2).sum(-1).mean())) for offset in offsets]
    sizes = [float(np.abs(centre).max()) for centre in centres]
    apart = all(spread > _SAME_PLACE * max(size, 1e-30) for spread, size in zip(spreads, sizes))
    moments = np.einsum("tia,tja->ij", known[:, :3, :3], found[:, :3, :3])
    if apart:
        moments += offsets[1].T @ offsets[0] / (spreads[0] * spreads[1])
    left, _, right = np.linalg.svd(moments)
    rotation = left @ np.diag([1, 1, np.sign(np.linalg.det(left @ right))]) @ right
    scale = 1.0
    if apart:
        turned = offsets[0] @ rotation.T
        # The noise is in what was found: regressed the other way round it would shrink the scale.
        agreement = float((turned * offsets[1]).sum())
        scale = float((offsets[1] ** 2).sum()) / agreement if agreement > 0 else np.inf
        if not exact or scale > _MAX_NOISE * spreads[1] / spreads[0]:
            # Noise in both, or paths that hardly agree: at least their sizes do.
            scale = spreads[1] / spreads[0]
    turns = np.einsum("tai,ab,tbj->tij", known[:, :3, :3], rotation, found[:, :3, :3])
    cosine = np.clip((np.trace(turns, axis1=1, axis2=2) - 1) / 2, -1, 1)
    return WorldFit(
        scale=scale,
        rotation=rotation,
        translation=means[1] - scale * rotation @ means[0],
        fixes_scale=apart,
        angle=float(np.median(np.arccos(cosine))),
    )


def parallax_scale(
    predictions: PairPredictions,
    pairs: np.ndarray,
    pair_scale: Array,
    world_from_cam: Array,
    intrinsics: Array,
    mask: Array | None = None,
) -> float:
    """By how much all pair scales must grow for their points to show the parallax of the poses.

    With y = sigma_e R x the point of frame j that pair (i, j) predicts, turned into camera j, k the
    ray of its pixel and t the known step between the cameras, c y + t lies on k: c a = b with
    a = (y_x - k_x y_z, y_y - k_y y_z), b = (k_x t_z - t_x, k_y t_z - t_y). Returns one over the
    median of a.b / b.b, weighted by b.b (b is exact, the noise is in a); 1 if nothing is seen.

    Args:
        pair_scale: (P,) sigma_e, in the unit of the poses. world_from_cam: (T, 4, 4).
        intrinsics: (T, 3, 3). mask: (T,) bool, frames whose pose is known; None: all.
    """
    height, width = predictions.confidence1.shape[1:]
    step = max(1, round(np.sqrt(height * width / _SCALE_PIXELS)))
    rows, columns = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    pixels = np.stack([columns, rows, np.ones_like(rows)], -1).astype(np.float64)
    poses = np.asarray(world_from_cam, np.float64)
    rays = np.einsum("tij,hwj->thwi", np.linalg.inv(np.asarray(intrinsics, np.float64)), pixels)
    ratios, weights = [], []
    for k, (i, j) in enumerate(np.asarray(pairs).tolist()):
        if mask is not None and not (mask[i] and mask[j]):
            continue
        cam2_from_cam1 = np.linalg.inv(poses[j]) @ poses[i]
        points = np.asarray(predictions.pointmap2[k, step // 2 :: step, step // 2 :: step])
        trust = np.asarray(predictions.confidence2[k, step // 2 :: step, step // 2 :: step])
        turned = float(pair_scale[k]) * points.astype(np.float64) @ cam2_from_cam1[:3, :3].T
        shift = cam2_from_cam1[:3, 3]
        a = turned[..., :2] - rays[j][..., :2] * turned[..., 2:]
        b = rays[j][..., :2] * shift[2] - shift[:2]
        size = (b * b).sum(-1)
        ratio = (a * b).sum(-1) / np.maximum(size, 1e-30)
        usable = np.isfinite(ratio) & (trust > 1) & (size > 0)
        ratios.append(ratio[usable])
        weights.append(size[usable])
    if not ratios or not sum(len(ratio) for ratio in ratios):
        return 1.0
    ratio, weight = np.concatenate(ratios), np.concatenate(weights)
    order = np.argsort(ratio)
    reached = np.cumsum(weight[order])
    middle = float(ratio[order][np.searchsorted(reached, reached[-1] / 2)])
    return 1 / middle if middle > 0 else 1.0


def with_parallax(
    start: AlignmentVariables,
    predictions: PairPredictions,
    graph: PairGraph,
    config: AlignmentConfig,
    known: variables.Known,
) -> AlignmentVariables:
    """Returns a start about held cameras that has grown by `parallax_scale`.

    Depths and pairs grow about their own (first) cameras, which stay.
    """
    height, width = predictions.confidence1.shape[1:]
    geometry = variables.decode(start, config, (height, width))
    growth = parallax_scale(
        predictions,
        graph.pairs,
        geometry.pair_scale,
        known.world_from_cam,
        geometry.intrinsics,
        known.pose_mask,
    )
    if not 1 / MAX_GROWTH < growth < MAX_GROWTH:
        return start
    centres = geometry.world_from_cam[graph.pairs[:, 0], :3, 3]
    offset = centres + growth * (geometry.pair_offset - centres)
    scale = growth * geometry.pair_scale
    return dataclasses.replace(
        start,
        log_depth=start.log_depth + np.float32(np.log(growth)),
        pair_log_scale=start.pair_log_scale + np.float32(np.log(growth)),
        pair_translation=rigid.encode_translation(offset / scale[:, None]),
    )


def _similarities(
    cam1_from_cam2: np.ndarray, world_from_cams: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Carries the cameras (I, cam1_from_cam2) of every pair onto its two known cameras."""
    local = np.stack([np.broadcast_to(np.eye(4), cam1_from_cam2.shape), cam1_from_cam2], axis=1)
    scale, rotation, translation = align_poses(local, world_from_cams)
    # Failed PnP, or cameras that stand still: the scale of the other pairs, at the first camera.
    usable = np.isfinite(scale) & (scale > 1e-6) & (scale < 1e6)
    typical = np.exp(np.mean(np.log(scale[usable]))) if usable.any() else np.float32(1)
    first = np.asarray(world_from_cams[:, 0], np.float32)
    rotation = np.where(usable[:, None, None], rotation, first[:, :3, :3])
    translation = np.where(usable[:, None], translation, first[:, :3, 3])
    return np.where(usable, scale, typical), rotation, translation


def _depths(
    predictions: PairPredictions,
    graph: PairGraph,
    poses: Array,
    scale: Array,
    rotation: Array,
    translation: Array,
) -> Array:
    """Returns (T, H, W): s Z of X_i of the pair with the largest mean confidence of i."""
    depths = []
    means1 = np.asarray(jnp.mean(predictions.confidence1, axis=(1, 2)))
    means2 = np.asarray(jnp.mean(predictions.confidence2, axis=(1, 2)))
    for frame in range(graph.num_frames):
        leading = np.flatnonzero(graph.pairs[:, 0] == frame)
        if len(leading):
            k = leading[np.argmax(means1[leading])]
            depths.append(scale[k] * predictions.pointmap1[k][..., 2])
            continue
        # A frame that only ever comes second: its points through the world into its own camera.
        following = np.flatnonzero(graph.pairs[:, 1] == frame)
        k = following[np.argmax(means2[following])]
        world_from_pair = rigid.pose(scale[k] * rotation[k], translation[k])
        cam_from_pair = rigid.compose(rigid.invert(poses[frame]), world_from_pair)
        depths.append(rigid.apply(cam_from_pair, jnp.asarray(predictions.pointmap2[k]))[..., 2])
    return jnp.stack([jnp.asarray(depth, jnp.float32) for depth in depths])
