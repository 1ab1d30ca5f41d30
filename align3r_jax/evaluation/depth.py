"""Video-depth metrics with every alignment in use, pooled over the valid pixels of a sequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import jax
import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.evaluation import irls
from align3r_jax.geometry import depth_fit

FITS: dict[str, Callable[..., Any]] = {
    "median": jax.jit(depth_fit.median),
    "scale": irls.irls_scale,
    "lad_scale": jax.jit(depth_fit.least_absolute_scale),
    "lstsq": jax.jit(depth_fit.least_squares),
    "lad": jax.jit(depth_fit.least_absolute),
    "lad2": jax.jit(depth_fit.adam_absolute),
}
_LOG_FLOOR = 1e-5  # predictions are clipped below before the logarithm


@dataclasses.dataclass(frozen=True)
class DepthProtocol:
    """How predictions meet the truth. Defaults: Align3R (scale and shift per sequence).

    fit: key of `FITS`, or "none". Valid pixels: min_depth < truth < max_depth (None = no limit).
    clip: (low, high) after the fit, either may be None. disparity: the prediction is a disparity
    x; the fit is to 1 / (truth + 1e-8) and the depth is 1 / (s x + t) where positive, else 0.
    """

    fit: str = "lad"
    min_depth: float = 1e-3
    max_depth: float | None = 70.0
    clip: tuple[float | None, float | None] = (1e-5, 70.0)
    disparity: bool = False


ALIGN3R = DepthProtocol()
MONST3R_SCALE_SHIFT = DepthProtocol(fit="lad2", min_depth=0.0, clip=(None, 70.0))
MONST3R_SCALE = DepthProtocol(fit="median", min_depth=0.0, clip=(None, 70.0))


@dataclasses.dataclass(frozen=True)
class DepthResult:
    """metrics: name -> value (`valid_pixels` among them). scale, shift: of the fit."""

    metrics: dict[str, float]
    scale: float
    shift: float


def valid_pixels(truth: np.ndarray, protocol: DepthProtocol = ALIGN3R) -> np.ndarray:
    """Returns the bool mask of measured pixels that count (limits excluded)."""
    mask = np.isfinite(truth) & (truth > protocol.min_depth)
    return mask if protocol.max_depth is None else mask & (truth < protocol.max_depth)


def metrics(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Abs Rel mean |p-g|/g; Sq Rel mean (p-g)^2/g; RMSE; Log RMSE of ln with p >= 1e-5;
    delta < 1.25^k the share with max(p/g, g/p) < 1.25^k; means over all pixels of the mask.

    prediction, truth: one shape, same units. Raises UserError if nothing is valid.
    """
    p, g = prediction[mask].astype(np.float64), truth[mask].astype(np.float64)
    if p.size == 0:
        raise UserError("The ground truth has no valid pixel: check its units and depth limits.")
    error = p - g
    log_error = np.log(np.maximum(p, _LOG_FLOOR)) - np.log(g)
    with np.errstate(divide="ignore"):
        ratio = np.maximum(p / g, np.where(p > 0, g / np.where(p > 0, p, 1.0), np.inf))
    result = {
        "Abs Rel": (np.abs(error) / g).mean(),
        "Sq Rel": (error**2 / g).mean(),
        "RMSE": np.sqrt((error**2).mean()),
        "Log RMSE": np.sqrt((log_error**2).mean()),
    }
    for power, name in ((1, "delta < 1.25"), (2, "delta < 1.25^2"), (3, "delta < 1.25^3")):
        result[name] = (ratio < 1.25**power).mean()
    result["valid_pixels"] = p.size
    return {name: float(value) for name, value in result.items()}


def align(
    prediction: np.ndarray, truth: np.ndarray, protocol: DepthProtocol = ALIGN3R
) -> tuple[np.ndarray, float, float]:
    """Returns (aligned prediction, scale, shift), clipped as the protocol says."""
    if prediction.shape != truth.shape:
        raise UserError(
            f"Predicted depth is {prediction.shape}, the ground truth {truth.shape}: bring the "
            "prediction to the size of the truth with `resize_to` and match the frames."
        )
    mask = valid_pixels(truth, protocol)
    if protocol.fit == "none":
        scale, shift = 1.0, 0.0
    elif protocol.fit in FITS:
        target = 1 / (truth.astype(np.float32) + 1e-8) if protocol.disparity else truth
        target = np.where(mask, target, 1.0).astype(np.float32)
        scale, shift = (float(v) for v in FITS[protocol.fit](prediction, target, mask))
    else:
        raise UserError(f"Unknown depth fit {protocol.fit!r}: expected one of none, {list(FITS)}.")
    aligned = prediction.astype(np.float64) * scale + shift
    if protocol.disparity:
        aligned = np.where(aligned > 0, 1 / np.where(aligned > 0, aligned, 1.0), 0.0)
    if protocol.clip != (None, None):
        aligned = np.clip(aligned, *protocol.clip)
    return aligned, scale, shift


def evaluate(
    prediction: np.ndarray, truth: np.ndarray, protocol: DepthProtocol = ALIGN3R
) -> DepthResult:
    """One sequence: prediction, truth (T, H, W) (or one frame (H, W)), one fit for all of it."""
    aligned, scale, shift = align(prediction, truth, protocol)
    return DepthResult(metrics(aligned, truth, valid_pixels(truth, protocol)), scale, shift)


def average(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of metrics over sequences, weighted by their `valid_pixels` (which is left out)."""
    weights = np.array([result["valid_pixels"] for result in results])
    names = [name for name in results[0] if name != "valid_pixels"]
    return {
        name: float(np.average([result[name] for result in results], weights=weights))
        for name in names
    }


def resize_to(
    depth: np.ndarray, size: tuple[int, int], interpolation: str = "linear"
) -> np.ndarray:
    """(..., h, w) float32 to size (H, W): "linear" (Align3R) or "cubic" (MonST3R, a = -0.75).

    Half-pixel centres, replicated border, no antialias.
    """
    codes = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
    frames = depth.reshape(-1, *depth.shape[-2:]).astype(np.float32)
    resized = [cv2.resize(f, size[::-1], interpolation=codes[interpolation]) for f in frames]
    return np.stack(resized).reshape(*depth.shape[:-2], *size)
