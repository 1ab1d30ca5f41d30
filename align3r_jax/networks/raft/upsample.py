"""Convex up-sampling of a coarse field by learned weights (RAFT, section 3.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from align3r_jax.networks.raft.config import DOWNSCALE

Array = jax.Array


def convex_upsample(values: Array, mask: Array) -> Array:
    """up[8y + i, 8x + j] = sum_k softmax_k(mask[y, x, k, i, j]) values[y + dy_k, x + dx_k].

    k runs over the 3 x 3 neighbours row by row; those beyond the border count as 0. values:
    (B, h, w, C), in the units of the result. mask: (B, h, w, 576) logits, k slowest, then i, j.
    Returns (B, 8h, 8w, C) float32.
    """
    batch, height, width, channels = values.shape
    mask = mask.astype(jnp.float32).reshape(batch, height, width, 9, DOWNSCALE, DOWNSCALE)
    weights = jax.nn.softmax(mask, axis=3)
    padded = jnp.pad(values.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    up = jnp.zeros((batch, height, width, DOWNSCALE, DOWNSCALE, channels), jnp.float32)
    for k in range(9):
        neighbour = padded[:, k // 3 : k // 3 + height, k % 3 : k % 3 + width]
        up += weights[:, :, :, k, :, :, None] * neighbour[:, :, :, None, None, :]
    up = up.transpose(0, 1, 3, 2, 4, 5)
    return up.reshape(batch, DOWNSCALE * height, DOWNSCALE * width, channels)
