"""Cleaning a user's depth prior with the shipped small network.

The network corrects what monocular depth gets wrong (blobs, wrong objects, soft edges) at the
size it was trained at; its correction is then laid over the prior at full detail.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from align3r_jax.config import ReconstructConfig
from align3r_jax.predictors import network
from align3r_jax.priors import shipped
from align3r_jax.structs import DepthPrior, Frames, WorkingSize
from align3r_jax.weights import store

_WIDTH = 160  # long side at which align3r_small was trained


def is_worth_it(config: ReconstructConfig, prior: DepthPrior) -> bool:
    """Whether the prior is a user's and the shipped network passed its gate of improving such."""
    if not config.refine_prior or not prior.name.startswith("files"):
        return False
    return shipped.gates()["align3r_small"]["use"]["refine_prior"]


def with_shipped(frames: Frames, prior: DepthPrior) -> DepthPrior:
    """Returns the prior times the network's smooth correction, (T, H, W), in the prior's scale.

    log depth = log prior + resize(log network(small prior) - log small prior). Missing pixels
    are filled by the network.
    """
    predictor = network.NetworkPredictor(store.load("align3r_small"))
    height, width = frames.images.shape[1:3]
    ratio = _WIDTH / max(height, width)
    small = tuple(max(16, 16 * round(side * ratio / 16)) for side in (height, width))
    size = WorkingSize((height, width), small, (0, 0), small)
    images = np.stack(
        [_resize(image, small, cv2.INTER_AREA) for image in np.asarray(frames.images)]
    )
    depth = np.stack([_shrink(d, small) for d in np.asarray(prior.depth, np.float32)])
    focal = None if prior.focal is None else np.asarray(prior.focal) * small[1] / width
    refined = network.refine_depth(
        predictor,
        dataclasses.replace(frames, images=images, size=size),
        dataclasses.replace(prior, native=depth, depth=depth, focal=focal, inverse=False),
    )
    cleaned = []
    for full, before, after in zip(np.asarray(prior.depth), depth, np.asarray(refined.depth)):
        correction = np.log(after) - np.log(np.where(np.isfinite(before), before, after))
        correction = _resize(correction, (height, width), cv2.INTER_LINEAR)
        filled = _resize(after, (height, width), cv2.INTER_LINEAR)
        cleaned.append(np.where(np.isfinite(full), full * np.exp(correction), filled))
    result = np.stack(cleaned).astype(np.float32)
    return dataclasses.replace(prior, native=result, depth=result, name=refined.name, inverse=False)


def _resize(image: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    return cv2.resize(image, size[::-1], interpolation=interpolation)


def _shrink(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Area average over known pixels; NaN where fewer than half are known."""
    known = np.isfinite(depth)
    total = _resize(np.where(known, depth, 0).astype(np.float32), size, cv2.INTER_AREA)
    share = _resize(known.astype(np.float32), size, cv2.INTER_AREA)
    return np.where(share >= 0.5, total / np.maximum(share, 1e-6), np.float32(np.nan))
