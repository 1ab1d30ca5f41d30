"""Cameras and masks of a user, from files to what `align3r_jax.reconstruct` takes."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import cameras as cameras_lib
from align3r_jax.io import mask_files
from align3r_jax.structs import Frames, KnownCameras


class Deviations(NamedTuple):
    """Standard deviations of soft cameras: degrees, unit of the poses or (`relative`) shares of
    the spread of the known positions, share of the focal."""

    rotation: float
    translation: float
    relative: bool
    focal: float


class UserFiles(NamedTuple):
    """cameras, masks: as `align3r_jax.reconstruct` takes them, None where no file was given.

    facts: for summary.json. notes: sentences for the reader of the result. checksum: of it all.
    """

    cameras: KnownCameras | None
    masks: np.ndarray | None
    facts: dict[str, object]
    notes: tuple[str, ...]
    checksum: str


def load(
    frames: Frames,
    cameras: str | None,
    masks: str | None,
    *,
    use: str = "all",
    soft: Deviations | None = None,
) -> UserFiles:
    """Reads both files and matches them to the frames.

    use: "all", "intrinsics" or "poses" of the cameras. soft: None holds them fixed.
    Raises UserError for files that cannot be read or do not fit the video.
    """
    known, labels = None, None
    facts: dict[str, object] = {}
    notes: tuple[str, ...] = ()
    if cameras:
        known, notes = read_cameras(cameras, frames, use, soft)
        facts["cameras"] = {
            "file": cameras,
            "poses": _count(known.world_from_cam),
            "intrinsics": _count(known.intrinsics),
            "mode": "fixed" if soft is None else "soft",
        }
    if masks:
        folder = mask_files.read_mask_folder(masks, frames.names, frames.size)
        labels, notes = folder.labels, notes + folder.notes
        given = (labels != mask_files.UNKNOWN).any(axis=(1, 2))
        facts["masks"] = {"folder": masks, "frames": int(given.sum())}
    digest = hashlib.sha256(repr(soft).encode())
    arrays = (
        (None,) if known is None else (known.intrinsics, known.image_size, known.world_from_cam)
    )
    for array in (*arrays, labels):
        digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return UserFiles(known, labels, facts, notes, digest.hexdigest())


def read_cameras(
    path: str, frames: Frames, use: str, soft: Deviations | None
) -> tuple[KnownCameras, tuple[str, ...]]:
    """Returns what a file knows of the cameras of the frames, and sentences about it."""
    matched = cameras_lib.match(cameras_lib.read_cameras(path), frames)
    for name, values in (("intrinsics", matched.intrinsics), ("poses", matched.world_from_cam)):
        if use == name and values is None:
            raise UserError(f"--camera_use={use}: '{path}' holds no {name} of these frames.")
    with_intrinsics, with_poses = use != "poses", use != "intrinsics"
    known = KnownCameras(
        intrinsics=matched.intrinsics if with_intrinsics else None,
        image_size=matched.image_sizes if with_intrinsics else None,
        world_from_cam=matched.world_from_cam if with_poses else None,
    )
    if soft is not None:
        known = known.replace(
            rotation_deviation=soft.rotation,
            translation_deviation=soft.translation,
            relative_translation=soft.relative,
            focal_deviation=soft.focal,
        )
    return known, matched.notes


def _count(values: np.ndarray | None) -> int:
    return 0 if values is None else int(np.isfinite(values).all((1, 2)).sum())
