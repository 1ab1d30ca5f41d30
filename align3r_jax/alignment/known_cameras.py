"""Cameras that the user knows: checked, brought to the working size, and used as the start.

Known quantities are set and then frozen (`variables.Known`, `variables.trainable`); with known
poses the pair scales are not normalised, since the poses fix the scale of the world.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.alignment import variables
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.geometry import camera, pnp, registration, rigid
from align3r_jax.structs import (
    AlignmentVariables,
    Array,
    PairGraph,
    PairPredictions,
    WorkingSize,
)

_ANISOTROPY = 0.02  # fx and fy may differ by this share; the aligner has one focal


def from_user(
    size: WorkingSize,
    num_frames: int,
    *,
    intrinsics: Array | None = None,
    world_from_cam: Array | None = None,
    pose_mask: Array | None = None,
) -> variables.Known | None:
    """Returns what is known of the cameras at working size, None if nothing is.

    Args:
        size: how frames got to the working size.
        num_frames: T.
        intrinsics: (3, 3) for all frames or (T, 3, 3), pixels of the original frames.
        world_from_cam: (T, 4, 4), any world, any scale.
        pose_mask: (T,) bool, which poses are known; None = all.

    Raises:
        UserError: wrong shapes, poses that are no rigid motions, some poses only, fx != fy.
    """
    known = variables.Known()
    if intrinsics is not None:
        known = _with_intrinsics(known, np.asarray(intrinsics, np.float64), size, num_frames)
    if world_from_cam is not None:
        poses = np.asarray(world_from_cam, np.float64)
        _check_poses(poses, num_frames, pose_mask)
        known = dataclasses.replace(known, world_from_cam=poses)
    if known.focal is None and known.world_from_cam is None:
        return None
    return known.check(num_frames, *size.working)


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


def _with_intrinsics(
    known: variables.Known, intrinsics: np.ndarray, size: WorkingSize, num_frames: int
) -> variables.Known:
    if intrinsics.shape not in ((3, 3), (num_frames, 3, 3)):
        raise UserError(
            f"Known intrinsics have shape {intrinsics.shape}, expected (3, 3) for all frames or "
            f"({num_frames}, 3, 3), in pixels of the original frames."
        )
    intrinsics = np.broadcast_to(intrinsics, (num_frames, 3, 3))
    if not np.isfinite(intrinsics).all() or (intrinsics[:, [0, 1], [0, 1]] <= 0).any():
        raise UserError("Known intrinsics need positive focals and no NaN.")
    working = np.asarray(camera.to_working(jnp.asarray(intrinsics, jnp.float32), size))
    fx, fy = working[:, 0, 0], working[:, 1, 1]
    if np.max(np.abs(fx / fy - 1)) > _ANISOTROPY:
        worst = int(np.argmax(np.abs(fx / fy - 1)))
        raise UserError(
            f"Known intrinsics of frame {worst} have focals {fx[worst]:.1f} and {fy[worst]:.1f} "
            "at working size, but pixels are taken to be square. Undistort or resize the video "
            "so that both focals agree."
        )
    return dataclasses.replace(known, focal=(fx + fy) / 2, principal_point=working[:, :2, 2])


def _check_poses(poses: np.ndarray, num_frames: int, pose_mask: Array | None) -> None:
    if poses.shape != (num_frames, 4, 4):
        raise UserError(
            f"Known poses have shape {poses.shape}, expected ({num_frames}, 4, 4) world_from_cam "
            "matrices, one for each frame."
        )
    if pose_mask is not None and not np.all(pose_mask):
        count = int(np.sum(pose_mask))
        raise UserError(
            f"{count} of {num_frames} poses are known. Give the poses of all frames, or of none "
            "and let them be estimated."
        )
    if not np.isfinite(poses).all():
        raise UserError("Known poses hold NaN or infinite values; every pose is needed.")
    rotations = poses[:, :3, :3]
    products = np.einsum("tij,tkj->tik", rotations, rotations)
    rigid_motion = np.isclose(products, np.eye(3), atol=1e-3).all((1, 2))
    rigid_motion &= np.linalg.det(rotations) > 0
    rigid_motion &= np.isclose(poses[:, 3], [0, 0, 0, 1], atol=1e-6).all(1)
    if not rigid_motion.all():
        raise UserError(
            f"The known pose of frame {int(np.argmin(rigid_motion))} is no rigid motion: expected "
            "[R t; 0 1] with a rotation R (world_from_cam, x right, y down, z forward)."
        )
