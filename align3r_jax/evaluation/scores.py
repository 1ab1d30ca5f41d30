"""Scores of one sequence by a protocol, and of a set of sequences.

A score is a dictionary of numbers that goes to JSON as it is; None says that a number does not
exist for this sequence (a path that fixes no similarity), and `average` leaves it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import jax.numpy as jnp
import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.evaluation import consistency, motion, trajectory
from align3r_jax.evaluation import depth as depth_metrics
from align3r_jax.evaluation.methods import Prediction
from align3r_jax.evaluation.protocols import Protocol, SingleDepthProtocol, VideoDepthProtocol
from align3r_jax.geometry import camera
from align3r_jax.structs import WorkingSize

Scores = dict[str, Any]
DEPTH_NAMES = ("Abs Rel", "Sq Rel", "RMSE", "Log RMSE", "delta < 1.25", "delta < 1.25^2",
               "delta < 1.25^3")  # fmt: skip
POSE_NAMES = ("ate", "rpe_trans", "rpe_rot_deg")
MOTION_NAMES = ("J", "F", "J&F", "iou", "precision", "recall")


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is known of T frames; None where nothing is.

    depth: (T, Ht, Wt), 0 = not measured. world_from_cam: (T, 4, 4). intrinsics: (T, 3, 3) pixels
    of images of `image_size` (H, W). dynamic_mask: (T, H, W) bool; mask_frames: where it is known.
    """

    depth: np.ndarray | None = None
    world_from_cam: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    image_size: tuple[int, int] | None = None
    dynamic_mask: np.ndarray | None = None
    mask_frames: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class DepthScores:
    """scores: the numbers. aligned, truth: (T, Ht, Wt) as compared, for pictures."""

    scores: Scores
    aligned: np.ndarray
    truth: np.ndarray


def depth(prediction: Prediction, truth: Truth, protocol: VideoDepthProtocol) -> DepthScores:
    """Depth metrics of a sequence; a fit per frame if the protocol is of single frames.

    Pixels without a prediction (a crop, holes) are not scored; `coverage` is the share of measured
    pixels that have one. With true cameras of a video also TAE (`consistency`), and `TAE floor`,
    what the true depth would score. Raises UserError naming what is missing.
    """
    if prediction.depth is None:
        raise UserError("There is no predicted depth to evaluate.")
    if truth.depth is None:
        raise UserError("The data set gives no true depth for this sequence.")
    if len(prediction.depth) != len(truth.depth):
        raise UserError(
            f"There are {len(prediction.depth)} predicted depth maps for {len(truth.depth)} frames."
        )
    rule = protocol.depth
    predicted = to_truth_size(prediction, truth.depth.shape[1:], protocol.interpolation)
    known = np.isfinite(predicted)
    if rule.disparity and not prediction.inverse:
        known &= predicted > 0
        predicted = 1 / np.where(known, predicted, 1.0)
    elif prediction.inverse:
        rule = dataclasses.replace(rule, disparity=True)
    predicted = np.where(known, predicted, np.float32(1)).astype(np.float32)
    measured = depth_metrics.valid_pixels(truth.depth, rule)
    target = np.where(known, truth.depth, np.float32(0))
    if isinstance(protocol, SingleDepthProtocol):
        scores, aligned = _each_frame(predicted, target, rule, protocol.average)
    else:
        aligned, scale, shift = depth_metrics.align(predicted, target, rule)
        valid = depth_metrics.valid_pixels(target, rule)
        scores = depth_metrics.metrics(aligned, target, valid) | {"scale": scale, "shift": shift}
        scores |= _consistency(aligned, known, truth)
    scores["coverage"] = float((known & measured).sum() / max(int(measured.sum()), 1))
    return DepthScores(scores, aligned, target)


def camera_pose(prediction: Prediction, truth: Truth) -> Scores:
    """ATE and RPE after a Sim(3), with what a standing camera scores beside them.

    A degenerate path (standing, on a line) has None for the three numbers and says why.
    """
    if prediction.world_from_cam is None:
        raise UserError("There is no predicted camera path to evaluate.")
    if truth.world_from_cam is None:
        raise UserError("The data set gives no true cameras for this sequence.")
    if len(prediction.world_from_cam) != len(truth.world_from_cam):
        raise UserError(
            f"There are {len(prediction.world_from_cam)} predicted poses for "
            f"{len(truth.world_from_cam)} frames."
        )
    scores: Scores = {
        "frames": len(truth.world_from_cam),
        "path_length": trajectory.path_length(truth.world_from_cam),
        "standing_ate": trajectory.standing_camera(truth.world_from_cam).ate,
    }
    try:
        found = trajectory.evaluate(prediction.world_from_cam, truth.world_from_cam)
    except trajectory.DegenerateTrajectory as error:
        return scores | dict.fromkeys(POSE_NAMES) | {"degenerate": str(error)}
    return scores | {
        "ate": found.ate,
        "rpe_trans": found.rpe_trans,
        "rpe_rot_deg": found.rpe_rot_deg,
        "scale": found.similarity.scale,
    }


def motion_masks(prediction: Prediction, truth: Truth) -> Scores:
    """J and F (means over frames in which either mask has a pixel), IoU, precision, recall.

    J: IoU; F: of the outlines (`motion`); J&F: the mean of both.
    """
    if prediction.dynamic_mask is None:
        raise UserError("There are no predicted dynamic masks to evaluate.")
    if truth.dynamic_mask is None:
        raise UserError("The data set gives no true dynamic masks for this sequence.")
    frames = range(len(truth.dynamic_mask)) if truth.mask_frames is None else truth.mask_frames
    shape = truth.dynamic_mask.shape[1:]
    masks = [
        _to_size(
            np.asarray(prediction.dynamic_mask[k], np.float32), prediction.size, shape,
            cv2.INTER_NEAREST_EXACT, outside=np.nan,
        )
        for k in frames
    ]  # fmt: skip
    # Pixels that a crop has cut away are judged static, like all that was not found to move.
    predicted = np.stack([np.nan_to_num(mask) > 0.5 for mask in masks])
    found = motion.evaluate(predicted, truth.dynamic_mask[list(frames)])
    return {
        "J": found.mean_frame_iou,
        "F": found.mean_boundary,
        "J&F": found.j_and_f,
        "iou": found.iou,
        "precision": found.precision,
        "recall": found.recall,
        "frames": len(masks),
    }


def average(scores: Mapping[str, Scores], protocol: Protocol) -> tuple[Scores, list[str]]:
    """Returns the numbers of a set and the names of the sequences that do not count in them.

    Depth: weighted by valid pixels, or plain, as the protocol says; poses and masks: plain means.
    """
    left_out = [name for name, entry in scores.items() if entry.get("degenerate")]
    counted = [entry for name, entry in scores.items() if name not in left_out]
    if not counted:
        return {}, left_out
    if isinstance(protocol, VideoDepthProtocol):
        names: Sequence[str] = (*DEPTH_NAMES, "TAE", "TAE floor", "coverage")
    else:
        names = (*POSE_NAMES, *MOTION_NAMES)
    result: Scores = {}
    for name in names:
        having = [entry for entry in counted if entry.get(name) is not None]
        if not having:
            continue
        weighted = (
            isinstance(protocol, VideoDepthProtocol)
            and protocol.average == "pixels"
            and not name.startswith("TAE")
        )
        weights = [entry["valid_pixels"] for entry in having] if weighted else None
        result[name] = float(np.average([entry[name] for entry in having], weights=weights))
    result["sequences"] = len(counted)
    return result, left_out


def to_truth_size(prediction: Prediction, shape: tuple[int, ...], interpolation: str) -> np.ndarray:
    """Returns predicted depth (T, h, w) as (T, Ht, Wt) float32, NaN where there is none.

    "linear" (Align3R) or "cubic" (MonST3R); holes of a prediction stay holes.
    """
    assert prediction.depth is not None
    code = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}[interpolation]
    return np.stack([_to_size(d, prediction.size, shape, code) for d in prediction.depth])


def _to_size(values, size: WorkingSize | None, shape, code, outside=np.nan):
    """One map over the field of view of the truth; `outside` of what a crop has left."""
    known = np.isfinite(values)
    whole = known.all()
    filled = np.where(known, values, 0).astype(np.float32)
    if size is not None and size.resized != size.working:
        inside = np.zeros(size.resized, bool)
        rows, columns = (slice(c, c + n) for c, n in zip(size.crop, size.working))
        # The border is repeated, so that no pixel mixes with what was cut away.
        top, left = size.crop
        bottom, right = (r - c - w for r, c, w in zip(size.resized, size.crop, size.working))
        canvas = np.pad(filled, ((top, bottom), (left, right)), mode="edge")
        inside[rows, columns] = known
        filled, known, whole = canvas, inside, False
    target = (int(shape[1]), int(shape[0]))
    resized = cv2.resize(filled, target, interpolation=code)
    if whole:
        return resized
    seen = cv2.resize(known.astype(np.uint8), target, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.where(seen > 0, resized, np.float32(outside))


def _each_frame(predicted, target, rule, weighting):
    """Metrics of every frame with a fit of its own, averaged as the protocol says."""
    found, aligned = [], np.zeros(predicted.shape)
    for k in range(len(predicted)):
        aligned[k], _, _ = depth_metrics.align(predicted[k], target[k], rule)
        valid = depth_metrics.valid_pixels(target[k], rule)
        found.append(depth_metrics.metrics(aligned[k], target[k], valid))
    pixels = [entry["valid_pixels"] for entry in found]
    weights = pixels if weighting == "pixels" else None
    scores = {
        name: float(np.average([entry[name] for entry in found], weights=weights))
        for name in DEPTH_NAMES
    }
    return scores | {"valid_pixels": float(sum(pixels)), "frames": len(found)}, aligned


def _consistency(aligned, known, truth: Truth) -> Scores:
    if truth.world_from_cam is None or truth.intrinsics is None or len(aligned) < 2:
        return {}
    assert truth.depth is not None
    shape = (aligned.shape[1], aligned.shape[2])
    intrinsics = truth.intrinsics
    if truth.image_size is not None and truth.image_size != shape:
        size = WorkingSize(truth.image_size, shape, (0, 0), shape)
        intrinsics = np.asarray(camera.to_working(jnp.asarray(intrinsics), size))
    movers = truth.dynamic_mask
    if movers is not None and movers.shape != aligned.shape:
        movers = None
    try:
        found = consistency.evaluate(
            np.where(known, aligned, 0), truth.world_from_cam, intrinsics,
            truth=truth.depth, dynamic_mask=movers,
        )  # fmt: skip
    except UserError:
        return {"TAE": None, "TAE floor": None}
    return {"TAE": found.tae, "TAE floor": found.floor, "TAE share": found.share}
