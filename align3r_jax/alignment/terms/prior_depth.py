"""Every frame's depth should have the shape of its depth prior; the prior's scale is free.

What the scales of the frames are is known afterwards: their middle turns a scene of free scale
into metres if the prior is metric, their spread says how far to trust that.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.alignment.variables import mean_of_valid
from align3r_jax.geometry import depth_fit

Array = jax.Array

_MEDIAN_PIXELS = 1024  # of a frame, evenly spread: its scale needs no more


@struct.dataclass
class PriorDepthData:
    """log_depth: (T, L) ln of the prior. weight: (T, L), 0 where the prior knows nothing."""

    log_depth: Array
    weight: Array


def prepare(
    prior: Array, ignore: Array | None = None, *, depth: Array | None = None
) -> PriorDepthData:
    """Returns the data of a prior (T, H, W), NaN or <= 0 where it knows nothing.

    ignore: (T, H, W) bool, pixels that do not count. depth: (T, H, W), the scene's at the start;
    if given, the prior of every frame is first brought to it by a scale and a shift (least
    absolute deviations), for priors whose zero is arbitrary.
    """
    prior = jnp.asarray(prior, jnp.float32)
    known = jnp.isfinite(prior) & (prior > 0)
    if ignore is not None:
        known &= ~jnp.asarray(ignore, bool)
    if depth is not None:
        scale, shift = jax.vmap(depth_fit.least_absolute)(prior, jnp.asarray(depth), known)
        prior = scale[:, None, None] * prior + shift[:, None, None]
        known &= prior > 0
    frames = prior.shape[0]
    return PriorDepthData(
        log_depth=jnp.log(jnp.where(known, prior, 1)).reshape(frames, -1),
        weight=known.astype(jnp.float32).reshape(frames, -1),
    )


def frame_log_scales(log_depth: Array, data: PriorDepthData) -> Array:
    """a_n = median_p (ln D - ln P) over the pixels with a prior; (T,), 0 in frames without any.

    log_depth: (T, L).
    """
    step = max(1, log_depth.shape[-1] // _MEDIAN_PIXELS)
    change = (log_depth - data.log_depth)[:, ::step]
    known = data.weight[:, ::step] > 0
    median = jax.vmap(depth_fit.lower_median)(change, known)
    return jnp.where(jnp.any(known, axis=-1), median, 0)


def shape_error(log_depth: Array, data: PriorDepthData, frame_valid: Array | None = None) -> Array:
    """mean_n mean_p w |ln D - ln P - a_n|, a_n the frame's median (its derivative is 0 there).

    log_depth: (T, L). frame_valid: (T,) 0 or 1, the frames that count; None: all.
    """
    log_scale = jax.lax.stop_gradient(frame_log_scales(log_depth, data))
    error = jnp.abs(log_depth - data.log_depth - log_scale[:, None])
    return mean_of_valid(jnp.mean(data.weight * error, axis=-1), frame_valid)


def scale_and_spread(depth: Array, prior: Array) -> tuple[float, float]:
    """Returns what to multiply the scene's depth by to get the prior's scale, and its spread.

    The middle of the frames' scales exp(-a_n); the spread is relative: 1.48 times their median
    deviation from it (a standard deviation, were they normal). depth, prior: (T, H, W).
    (1, NaN) if the prior knows nothing.
    """
    data = prepare(prior)
    used = np.asarray(data.weight).sum(axis=-1) > 0
    log_depth = jnp.log(jnp.maximum(jnp.asarray(depth, jnp.float32), 1e-30))
    scales = -np.asarray(frame_log_scales(log_depth.reshape(data.weight.shape), data))[used]
    if len(scales) == 0:
        return 1.0, float("nan")
    middle = float(np.median(scales))
    return float(np.exp(middle)), float(np.expm1(1.4826 * np.median(np.abs(scales - middle))))
