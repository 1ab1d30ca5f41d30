"""Rotary position embedding of tokens on a grid (RoPE in y and x, CroCo v2).

For a head of d channels, q = d / 4 frequencies f_i = base^(-i / q): the first half of the
channels turns with the token's row, the second with its column, and within a half channel i is
paired with channel i + q.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rotation(NamedTuple):
    """Cosines and sines of the angles, (B, N, 2, q) float32; axis 2: by row, by column."""

    cos: jax.Array
    sin: jax.Array


def rotation(positions: jax.Array, head_dim: int, base: float) -> Rotation:
    """angle[..., a, i] = positions[..., a] * base^(-i / q), q = head_dim / 4.

    positions: (B, N, 2) integers (row, column). The angles are float32 whatever the network
    computes in: at bfloat16 a token could not tell its neighbour's column from its own.
    """
    quarter = head_dim // 4
    frequency = base ** (-jnp.arange(quarter, dtype=jnp.float32) / quarter)
    angle = positions.astype(jnp.float32)[..., None] * frequency
    return Rotation(jnp.cos(angle), jnp.sin(angle))


def rotate(tokens: jax.Array, by: Rotation) -> jax.Array:
    """Turns queries or keys (B, heads, N, d) by their positions; keeps shape and type."""
    batch, heads, num_tokens, dim = tokens.shape
    pairs = tokens.astype(jnp.float32).reshape(batch, heads, num_tokens, 2, 2, dim // 4)
    first, second = pairs[..., 0, :], pairs[..., 1, :]
    cos, sin = by.cos[:, None], by.sin[:, None]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-2)
    return turned.reshape(tokens.shape).astype(tokens.dtype)
