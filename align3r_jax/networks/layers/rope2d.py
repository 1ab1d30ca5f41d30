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
    """u cos + swap(u) sin: turns tokens (B, heads, N, d) by their positions, in float32.

    swap exchanges the partners i and i + q of each half, the sine of the first is negative. by: of
    the B items, or of one that stands for all. Keeps shape and type.
    """
    quarter = tokens.shape[-1] // 4
    tables = []
    for first, second in ((by.cos, by.cos), (-by.sin, by.sin)):
        table = jnp.concatenate([first, second], axis=-1)
        tables.append(table.reshape(*table.shape[:2], 4 * quarter)[:, None])
    u = tokens.astype(jnp.float32)
    row, row_partner, column, column_partner = jnp.split(u, 4, axis=-1)
    swapped = jnp.concatenate([row_partner, row, column_partner, column], axis=-1)
    return (u * tables[0] + swapped * tables[1]).astype(tokens.dtype)
