"""What a user gives beside the video, brought to the form that the aligner takes."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from align3r_jax.alignment import user_cameras, variables
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.io import mask_files
from align3r_jax.structs import Array, DepthPrior, Frames, KnownCameras


class UserInputs(NamedTuple):
    """known: cameras at working size. dynamic_mask: (T, H, W) float32, 1 where something moves, 0
    where nothing does, NaN where the user does not say. ignore: (T, H, W) bool. None: nothing."""

    known: variables.Known | None = None
    dynamic_mask: np.ndarray | None = None
    ignore: np.ndarray | None = None


def prepare(
    frames: Frames, cameras: KnownCameras | None, masks: Array | None, config: AlignmentConfig
) -> tuple[UserInputs, tuple[str, ...]]:
    """Returns the inputs and sentences for the reader of the result.

    cameras: intrinsics in pixels of the original frames. masks: (T, H, W) uint8 labels at working
    size: 0 static, 1 dynamic, 2 ignore (no weight anywhere), 255 not known; or bool, True dynamic.
    Raises UserError for wrong shapes and numbers.
    """
    known: variables.Known | None = None
    notes: tuple[str, ...] = ()
    if cameras is not None:
        known, notes = user_cameras.from_user(
            frames.size, frames.num_frames, cameras, shared_focal=config.shared_focal
        )
    if masks is None:
        return UserInputs(known), notes
    labels = np.asarray(masks)
    shape = (frames.num_frames, *frames.size.working)
    if labels.shape != shape or labels.dtype not in (np.bool_, np.uint8):
        raise UserError(
            f"Masks are {labels.shape} {labels.dtype}, expected {shape} bool, or uint8 labels: "
            "0 static, 1 dynamic, 2 ignore, 255 not known."
        )
    allowed = np.isin(
        labels,
        (mask_files.STATIC, mask_files.DYNAMIC, mask_files.IGNORE, mask_files.UNKNOWN),
    )
    if not allowed.all():
        raise UserError(
            f"Masks hold the label {labels[~allowed][0]}; known are 0 static, 1 dynamic, 2 ignore "
            "and 255 not known."
        )
    ignore = labels == mask_files.IGNORE
    if ignore.all():
        raise UserError("The masks say to ignore every pixel of the video.")
    dynamic = np.where(labels == mask_files.UNKNOWN, np.nan, labels == mask_files.DYNAMIC)
    # An ignored pixel is not known to stand still either, but nothing is found there.
    return UserInputs(known, dynamic.astype(np.float32), ignore if ignore.any() else None), notes


def with_known_focal(prior: DepthPrior | None, known: variables.Known | None) -> DepthPrior | None:
    """Returns the prior with the known focals, which predictors then use instead of a guess."""
    if prior is None or known is None or known.focal is None:
        return prior
    focal = np.asarray(known.focal, np.float32)
    if known.intrinsics_mask is not None:
        others = np.median(focal[known.intrinsics_mask]) if prior.focal is None else prior.focal
        focal = np.where(known.intrinsics_mask, focal, others).astype(np.float32)
    return dataclasses.replace(prior, focal=focal)
