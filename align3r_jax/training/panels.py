"""Pictures of what a network in training predicts, beside the truth.

One row per view; columns: image, depth prior (if there is one), true z, predicted z, confidence
(if there is one). z of both views is in camera 1; the prediction is scaled to the truth by medians,
and both share their colours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from align3r_jax.config import NetworkConfig
from align3r_jax.io import preview
from align3r_jax.networks import align3r
from align3r_jax.networks.small_depth import SmallDepth, SmallDepthConfig
from align3r_jax.structs import Array
from align3r_jax.training import pair_batch, tasks

MapsFn = Callable[[Any, dict[str, Array]], dict[str, Array]]
_GAP = 2  # pixels between pictures


def pairwise_maps(config: NetworkConfig, dtype: Any = jnp.float32) -> MapsFn:
    """Returns maps(params, batch) -> {images (B, 2, H, W, 3); truth, predicted, confidence,
    prior (B, 2, H, W)}: z, 0 or not finite where unknown; prior only of networks that read one."""
    network = align3r.Align3R(config, dtype=dtype)

    def maps(params: Any, batch: dict[str, Array]) -> dict[str, Array]:
        views = pair_batch.read(batch, config)
        output = tasks.predict(network, params, views, symmetrise=False)
        true = pair_batch.first_of_pairs(pair_batch.true_points(views))
        z = [jnp.where(true.valid1, true.points1[..., 2], 0.0)]
        z.append(jnp.where(true.valid2, true.points2[..., 2], 0.0))
        found = {
            "images": pair_batch.images_of(batch),
            "truth": jnp.stack(z, axis=1),
            "predicted": jnp.stack([output.pointmap1[..., 2], output.pointmap2[..., 2]], axis=1),
            "confidence": jnp.stack([output.confidence1, output.confidence2], axis=1),
        }
        if views.prior is not None and views.has_prior is not None:
            prior = jnp.where(views.has_prior[:, None, None], views.prior[..., 2], 0.0)
            found["prior"] = prior.reshape(found["truth"].shape)
        return found

    return maps


def mono_maps(config: SmallDepthConfig, dtype: Any = jnp.float32) -> MapsFn:
    """Returns maps(params, batch) -> {images; truth, predicted (B, 2, H, W)}, see above."""
    network = SmallDepth(config)

    def maps(params: Any, batch: dict[str, Array]) -> dict[str, Array]:
        images = pair_batch.images_of(batch)
        flat = images.reshape(-1, *images.shape[2:]).astype(dtype)
        log_depth: Any = network.apply({"params": params}, flat)
        predicted = jnp.exp(log_depth)
        return {
            "images": images,
            "truth": batch["depth"],
            "predicted": predicted.reshape(batch["depth"].shape),
        }

    return maps


def draw(maps: dict[str, np.ndarray], sample: int) -> np.ndarray:
    """Returns the panel (H', W', 3) uint8 of one sample of the maps, as arrays on the host."""
    one = {name: np.asarray(array[sample], np.float32) for name, array in maps.items()}
    return _stacked([_row({k: v[view] for k, v in one.items()}) for view in (0, 1)], axis=0)


def _row(maps: dict[str, np.ndarray]) -> np.ndarray:
    image = np.clip(127.5 * (maps["images"] + 1), 0, 255).round().astype(np.uint8)
    truth, predicted = maps["truth"], maps["predicted"]
    known = np.isfinite(truth) & (truth > 0)
    usable = known & np.isfinite(predicted) & (predicted > 0)
    if usable.any():
        predicted = predicted * (np.median(truth[usable]) / np.median(predicted[usable]))
    scale = preview.inverse_depth_range(truth if known.any() else predicted)
    pictures = [image]
    if "prior" in maps:
        prior = maps["prior"]
        pictures.append(preview.colour_depth(prior, preview.inverse_depth_range(prior)))
    pictures.append(preview.colour_depth(truth, scale))
    pictures.append(preview.colour_depth(predicted, scale))
    if "confidence" in maps:
        pictures.append(preview.colour_confidence(maps["confidence"]))
    return _stacked(pictures, axis=1)


def _stacked(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    widths = [(0, 0)] * 3
    widths[axis] = (0, _GAP)
    padded = [np.pad(p, widths, constant_values=255) for p in pictures[:-1]]
    return np.concatenate([*padded, pictures[-1]], axis=axis)
