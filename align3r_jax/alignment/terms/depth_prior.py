"""Depth should keep the shape it started with; its scale is free."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.alignment.variables import mean_of_valid

Array = jax.Array

LOG_SMALLEST = float(np.log(1e-6))
DYNAMIC_WEIGHT = 2.0  # depth of moving pixels has no other support


def log_depth_change(
    log_depth: Array,
    initial_log_depth: Array,
    dynamic: Array,
    frame_valid: Array | None = None,
) -> Array:
    """mean_n mean_p (1 + [dynamic]) (d - mean_p d)^2, d = ln max(D, 1e-6) - ln max(D0, 1e-6).

    log_depth, initial_log_depth: (T, L). dynamic: (T, L) bool. frame_valid: (T,) 0 or 1, the
    frames n that count (both depths of the others must be finite); None: all.
    """
    change = jnp.maximum(log_depth, LOG_SMALLEST) - jnp.maximum(initial_log_depth, LOG_SMALLEST)
    change = change - jnp.mean(change, axis=-1, keepdims=True)
    weighted = jnp.where(dynamic, DYNAMIC_WEIGHT, 1.0) * change**2
    if frame_valid is None:
        return jnp.mean(weighted)
    return mean_of_valid(jnp.mean(weighted, axis=-1), frame_valid)
