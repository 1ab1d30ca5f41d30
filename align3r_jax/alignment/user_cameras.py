"""Cameras as the user gives them: checked and brought to the working size."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from align3r_jax.alignment import variables
from align3r_jax.errors import UserError
from align3r_jax.geometry import camera
from align3r_jax.structs import Array, KnownCameras, WorkingSize

_ANISOTROPY = 0.02  # fx and fy may differ by this share; the aligner has one focal
_PROPORTIONS = 0.01  # width / height of the images of the intrinsics and of the frames
_OFF_CENTRE = 0.15  # of the side: principal points beyond get a note
_ONE_LENS = 0.005  # focals of different frames that differ less are one focal


def from_user(
    size: WorkingSize,
    num_frames: int,
    cameras: KnownCameras,
    *,
    shared_focal: bool = False,
) -> tuple[variables.Known | None, tuple[str, ...]]:
    """Returns what is known of the cameras at working size, None if nothing is; and notes.

    Args:
        size: how frames got to the working size.
        num_frames: T.
        cameras: intrinsics in pixels of the original frames (or of images of the same proportions).
        shared_focal: the video has one lens, so intrinsics of some frames that agree hold for all.

    Raises:
        UserError: wrong shapes or numbers, poses that are no rigid motions, fx != fy, intrinsics
            of other images than the frames.
    """
    known = variables.Known()
    notes: list[str] = []
    if cameras.intrinsics is not None:
        known = _with_intrinsics(known, cameras, size, num_frames, notes, shared_focal)
    if cameras.world_from_cam is not None:
        known = _with_poses(known, cameras, num_frames)
    if known.focal is None and known.world_from_cam is None:
        return None, tuple(notes)
    return known.check(num_frames, *size.working), tuple(notes)


def _with_intrinsics(
    known: variables.Known,
    cameras: KnownCameras,
    size: WorkingSize,
    num_frames: int,
    notes: list[str],
    shared_focal: bool,
) -> variables.Known:
    intrinsics = np.asarray(cameras.intrinsics, np.float64)
    if intrinsics.shape not in ((3, 3), (num_frames, 3, 3)):
        raise UserError(
            f"Known intrinsics have shape {intrinsics.shape}, expected (3, 3) for all frames or "
            f"({num_frames}, 3, 3), in pixels of the original frames."
        )
    intrinsics = np.broadcast_to(intrinsics, (num_frames, 3, 3))
    mask = np.asarray(~np.isnan(intrinsics).all((1, 2)))
    if not mask.any():
        return known
    good = np.isfinite(intrinsics[mask]).all() and (intrinsics[mask][:, [0, 1], [0, 1]] > 0).all()
    if not good:
        raise UserError("Known intrinsics need positive focals and no NaN (but all NaN: unknown).")
    sizes = _image_sizes(cameras.image_size, size, num_frames)
    working = np.tile(np.eye(3), (num_frames, 1, 1))
    for frame in np.flatnonzero(mask):
        own = dataclasses.replace(size, original=tuple(sizes[frame]))
        working[frame] = _to_working(intrinsics[frame], own, size, int(frame), notes)
    focal, point = working[:, [0, 1], [0, 1]].mean(-1), working[:, :2, 2]
    if shared_focal and not mask.all() and np.ptp(focal[mask]) <= _ONE_LENS * focal[mask].mean():
        # One lens: what is known of some frames is known of all.
        focal = np.where(mask, focal, np.median(focal[mask]))
        point = np.where(mask[:, None], point, np.median(point[mask], axis=0))
        mask = np.ones(num_frames, bool)
    return dataclasses.replace(
        known,
        focal=focal,
        principal_point=point,
        intrinsics_mask=None if mask.all() else mask,
        focal_deviation=_deviation(cameras.focal_deviation, num_frames, "focal"),
    )


def _image_sizes(given: Array | None, size: WorkingSize, num_frames: int) -> np.ndarray:
    """Returns (T, 2) height and width of the images that the intrinsics belong to."""
    original = np.array(size.original, np.float64)
    if given is None:
        return np.tile(original, (num_frames, 1))
    sizes = np.asarray(given, np.float64)
    if sizes.shape not in ((2,), (num_frames, 2)):
        raise UserError(
            f"The image size of known intrinsics has shape {sizes.shape}, expected (2,) or "
            f"({num_frames}, 2): height and width."
        )
    sizes = np.broadcast_to(sizes, (num_frames, 2))
    sizes = np.where(np.isnan(sizes), original, sizes)
    ratio = sizes[:, 0] * original[1] / (sizes[:, 1] * original[0])
    wrong = np.abs(ratio - 1) > _PROPORTIONS
    if wrong.any():
        height, width = sizes[int(np.argmax(wrong))]
        raise UserError(
            f"The known intrinsics belong to images of {width:g} x {height:g} pixels, the frames "
            f"are {size.original[1]} x {size.original[0]}: other proportions, so one is cropped or "
            "turned. Give the intrinsics of the frames as they are."
        )
    return sizes


def _to_working(
    intrinsics: np.ndarray, own: WorkingSize, size: WorkingSize, frame: int, notes: list[str]
) -> np.ndarray:
    height, width = own.original
    x, y = intrinsics[:2, 2]
    if not (0 < x < width and 0 < y < height):
        raise UserError(
            f"The principal point ({x:.1f}, {y:.1f}) of the known intrinsics of frame {frame} lies "
            f"outside the original frame of {width:g} x {height:g} pixels; they are those of "
            "another resolution. Give them for the original frames, or with their image size."
        )
    if abs(x / width - 0.5) > _OFF_CENTRE or abs(y / height - 0.5) > _OFF_CENTRE:
        note = (
            f"The principal point ({x:.1f}, {y:.1f}) of the known intrinsics lies far from the "
            f"centre of the original frames ({width:g} x {height:g}): are they of another "
            "resolution or crop?"
        )
        if note not in notes:
            notes.append(note)
    working = np.asarray(camera.to_working(jnp.asarray(intrinsics, jnp.float32), own), np.float64)
    fx, fy = working[0, 0], working[1, 1]
    if abs(fx / fy - 1) > _ANISOTROPY:
        stretched = size.between is not None
        raise UserError(
            f"Known intrinsics of frame {frame} have focals {fx:.1f} and {fy:.1f} at working size, "
            "but pixels are taken to be square. "
            + ("Use --crop." if stretched else "Undistort or resize the video so that they agree.")
        )
    return working


def _with_poses(known: variables.Known, cameras: KnownCameras, num_frames: int) -> variables.Known:
    poses = np.asarray(cameras.world_from_cam, np.float64)
    if poses.shape != (num_frames, 4, 4):
        raise UserError(
            f"Known poses have shape {poses.shape}, expected ({num_frames}, 4, 4) world_from_cam "
            "matrices, one for each frame (NaN where unknown)."
        )
    mask = np.asarray(~np.isnan(poses).all((1, 2)))
    if not mask.any():
        return known
    if not np.isfinite(poses[mask]).all():
        raise UserError("Known poses hold NaN or infinite values in a pose that is not all NaN.")
    poses = np.where(mask[:, None, None], poses, np.eye(4))
    _check_rigid(poses)
    # Rounded files hold rotations that are not quite orthonormal.
    left, _, right = np.linalg.svd(poses[:, :3, :3])
    poses[:, :3, :3] = left @ right
    rotation = _deviation(cameras.rotation_deviation, num_frames, "rotation")
    translation = _deviation(cameras.translation_deviation, num_frames, "translation")
    if (rotation is None) != (translation is None):
        raise UserError(
            "Known poses need both a rotation and a translation deviation, or neither (held fixed)."
        )
    if translation is not None and cameras.relative_translation:
        centres = poses[mask, :3, 3]
        spread = np.sqrt(((centres - centres.mean(axis=0)) ** 2).sum(-1).mean())
        # Cameras in one place: any unit will do.
        translation = translation * (spread if spread > 0 else 1.0)
    return dataclasses.replace(
        known,
        world_from_cam=poses,
        pose_mask=None if mask.all() else mask,
        rotation_deviation=None if rotation is None else np.deg2rad(rotation),
        translation_deviation=translation,
    )


def _check_rigid(poses: np.ndarray) -> None:
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


def _deviation(value: Array | None, num_frames: int, name: str) -> np.ndarray | None:
    """Returns (T,) positive standard deviations; None: held fixed."""
    if value is None:
        return None
    deviation = np.asarray(value, np.float64)
    if deviation.shape not in ((), (num_frames,)):
        raise UserError(
            f"The {name} deviation of known cameras has shape {deviation.shape}, expected one "
            f"number or ({num_frames},)."
        )
    if not (np.isfinite(deviation).all() and (deviation > 0).all()):
        raise UserError(f"The {name} deviation of known cameras must be positive.")
    return np.broadcast_to(deviation, (num_frames,)).copy()
