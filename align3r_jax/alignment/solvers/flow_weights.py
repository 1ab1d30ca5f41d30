"""What every flow residual counts in the total loss, for solvers of second order."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from align3r_jax.alignment.terms.flow import FlowData
from align3r_jax.config import AlignmentConfig

Array = jax.Array


def per_field(
    fields: FlowData, count: Array, config: AlignmentConfig, flow_counts: Array | bool
) -> Array:
    """Returns (N, C), the factor of the residuals of every field before their trust.

    count: (R,), the second result of `terms.flow.robust_sums`, by which each role is divided.
    flow_counts: whether the term counts at all now.
    """
    share = jnp.where(count > 0, 1 / jnp.where(count > 0, count, 1), 0)
    if fields.count.shape[0] == 1:  # both roles are the same sum
        share = 2 * share
    weight = jnp.where(flow_counts, config.flow_weight, 0.0)
    return weight * jnp.tensordot(share, fields.count, axes=1)


def reweighted(
    residual: Array, trust: Array, weight: Array, pixel_cut: float
) -> tuple[Array, Array]:
    """Returns r and w / max(|r|, 1), both 0 where the loss does not count the residual.

    weight (w without trust) and trust (of the flow, at static pixels) broadcast to the residual.
    """
    size = jnp.abs(residual)
    cost = jnp.where(size < 1, 0.5 * residual**2, size - 0.5)
    # Points on the camera plane, NaN or infinite, fail both.
    keep = (cost < pixel_cut if pixel_cut > 0 else jnp.isfinite(cost)) & (trust > 0)
    slope = jnp.where(keep, weight * trust / jnp.maximum(size, 1), 0)
    return jnp.where(keep, residual, 0), slope
