"""The image pyramid of Depth Pro: overlapping windows out of it, token maps of windows back.

A window is a quarter of the input's side. The input itself is cut into 5 x 5 windows that overlap
by a quarter, its half size into 3 x 3 that overlap by half, its quarter size is one window.
Windows of one image stay together, (B, K, ...): a batch sharded over devices is then cut and
merged on each device alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

FINE, MIDDLE = 5, 3  # windows along a side of the input and of its half size
NUM_WINDOWS = FINE * FINE + MIDDLE * MIDDLE + 1


def shrink(images: jax.Array, factor: int) -> jax.Array:
    """out[y, x] = mean of the central 2 x 2 pixels of cell (y, x), cells of `factor` pixels.

    What bilinear sampling at pixel centres without antialiasing (align_corners=False) gives for
    an even factor. images: (B, H, W, C), sides multiples of factor. Returns (B, H/f, W/f, C).
    """
    batch, height, width, channels = images.shape
    cells = images.reshape(batch, height // factor, factor, width // factor, factor, channels)
    middle = slice(factor // 2 - 1, factor // 2 + 1)
    return cells[:, :, middle, :, middle].mean(axis=(2, 4))


def split(images: jax.Array, window: int, per_side: int) -> jax.Array:
    """Cuts evenly spaced windows, row by row: (B, S, S, C) -> (B, n * n, window, window, C)."""
    stride = (images.shape[1] - window) // max(per_side - 1, 1)
    starts = [stride * index for index in range(per_side)]
    cut = [images[:, top : top + window, left : left + window] for top in starts for left in starts]
    return jnp.stack(cut, axis=1)


def pyramid_windows(images: jax.Array) -> jax.Array:
    """All 35 windows of three scales, finest first: (B, S, S, C) -> (B, 35, S/4, S/4, C)."""
    window = images.shape[1] // 4
    return jnp.concatenate(
        [
            split(images, window, FINE),
            split(shrink(images, 2), window, MIDDLE),
            split(shrink(images, 4), window, 1),
        ],
        axis=1,
    )


def merge(maps: jax.Array, padding: int) -> jax.Array:
    """Tiles the maps of n x n windows after cutting `padding` pixels on each interior side.

    maps: (B, n * n, t, t, C), row by row. Returns (B, n t - 2 (n - 1) p, same, C).
    """
    batch, count, side, _, channels = maps.shape
    per_side = round(count**0.5)
    maps = maps.reshape(batch, per_side, per_side, side, side, channels)
    kept = [
        slice(padding if index else 0, side - padding if index < per_side - 1 else side)
        for index in range(per_side)
    ]
    # (B, i, j, y, x, C): first the rows of windows, then the columns.
    rows = jnp.concatenate([maps[:, i, :, kept[i]] for i in range(per_side)], axis=2)
    return jnp.concatenate([rows[:, j, :, kept[j]] for j in range(per_side)], axis=2)
