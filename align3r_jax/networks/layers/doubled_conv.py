"""A 3x3 convolution of a doubled map at the price of one of the small map.

Doubling (`resample.upsample2`) acts on every channel alike, the nine matrices of a 3x3 kernel on
every pixel alike: they commute. So the nine products are taken on the small map, a quarter of the
multiplications, and each is doubled, moved by its tap and added,

    conv(up(x)) = sum_ij shift_ij(up(x W_ij)),

along columns first, then along rows. The same numbers up to rounding. Pays where multiplications
cost more than memory traffic: on CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_STRIP = 8  # rows of the small map at once: what a strip needs stays in the cache of a core
# The combinations of (tap, neighbour) that any sample of a doubled axis needs.
_USED = ((0, -1), (0, 0), (1, -1), (1, 0), (1, 1), (2, 0), (2, 1))


def conv(features: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """(B, H, W, C), (3, 3, C, D), (D,) -> (B, 2H, 2W, D), zeros around the doubled map."""
    _, rows, columns, _ = features.shape
    padded = jnp.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)))
    products = _products(padded, kernel)
    lines = [_combine(taps, _weights(columns), 2) for taps in products]
    return _combine(lines, _weights(rows), 1) + bias


def conv_in_strips(
    features: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    then: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """then(conv(features, kernel, bias)), a few rows of one image at a time.

    then: of every pixel by itself, (..., D) -> (..., E). The wide map is never there as a whole.
    Returns (B, 2H, 2W, E).
    """
    batch, rows, columns, channels = features.shape
    strip = math.gcd(rows, _STRIP)
    padded = jnp.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)))
    across, along = _weights(columns), jnp.asarray(_weights(rows))

    def run(index: jax.Array) -> jax.Array:
        image, start = index // (rows // strip), index % (rows // strip) * strip
        size = (1, strip + 2, columns + 2, channels)
        part = jax.lax.dynamic_slice(padded, (image, start, 0, 0), size)
        lines = [_combine(taps, across, 2) for taps in _products(part, kernel)]
        weights = jax.lax.dynamic_slice_in_dim(along, start, strip, axis=1)
        return then(_combine(lines, weights, 1) + bias)[0]

    strips = jax.lax.map(run, jnp.arange(batch * rows // strip))
    return strips.reshape(batch, 2 * rows, 2 * columns, -1)


def products(rows: int, columns: int) -> tuple[int, int]:
    """Returns the pixels whose nine products are taken, borders and overlaps of strips included.

    Of `conv` on a (rows, columns) map, then of `conv_in_strips` on what it gives.
    """
    strip = math.gcd(2 * rows, _STRIP)
    return (rows + 2) * (columns + 2), 2 * rows // strip * (strip + 2) * (2 * columns + 2)


def _products(padded: jax.Array, kernel: jax.Array) -> list[list[jax.Array]]:
    """The small map times each of the nine matrices, [row of the kernel][column]."""
    return [[padded @ kernel[row, column] for column in range(3)] for row in range(3)]


def _weights(size: int) -> np.ndarray:
    """(7, size, 2) float32: weights of `_USED` in samples 2k and 2k + 1 of a doubled axis.

    Sample 2k of `upsample2` lies k / (2n - 1) before k, sample 2k + 1 (n - 1 - k) / (2n - 1) behind
    it. Tap t of a kernel reads sample 2k - 1 + t for output 2k, 2k + t for output 2k + 1; samples
    outside are zero.
    """
    dense = np.zeros((3, 3, size, 2))
    k = np.arange(2 * size)
    source = k * (size - 1) / (2 * size - 1)
    base = np.minimum(np.floor(source + 1e-9).astype(int), max(size - 2, 0))
    fraction = source - base
    for out in range(2 * size):
        for tap in range(3):
            sample = out - 1 + tap
            if not 0 <= sample < 2 * size:
                continue
            for near, weight in ((0, 1 - fraction[sample]), (1, fraction[sample])):
                shift = base[sample] + near - out // 2
                if abs(weight) > 1e-9:
                    dense[tap, shift + 1, out // 2, out % 2] += weight
    return np.stack([dense[tap, shift + 1] for tap, shift in _USED]).astype(np.float32)


def _combine(taps: list[jax.Array], weights: np.ndarray | jax.Array, axis: int) -> jax.Array:
    """Doubles, moves and adds three maps that reach one beyond both ends of `axis`.

    One expression of slices, so that nothing between the products and the sum is stored.
    """
    size = weights.shape[1]
    total: jax.Array | float = 0.0
    for (tap, shift), weight in zip(_USED, weights):
        part = jax.lax.slice_in_dim(taps[tap], 1 + shift, 1 + shift + size, axis=axis)
        part = jnp.expand_dims(part, axis + 1)
        shape = [1] * part.ndim
        shape[axis : axis + 2] = (size, 2)
        total = total + part * weight.reshape(shape)
    shape = list(taps[0].shape)
    shape[axis] = 2 * size
    return jnp.asarray(total).reshape(shape)
