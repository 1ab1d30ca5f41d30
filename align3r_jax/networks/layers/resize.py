"""Exact separable resizes: bilinear (corners or edges aligned) and bicubic, no antialiasing.

out[i] = sum_k w_k(t_i) in[clamp(floor(s_i) + k)] per axis, with s_i the source coordinate of output
i and t_i its fraction. Coordinates are rounded to float32 as PyTorch does, because released
networks saw them so: at a width of 1536 float32 moves t by up to 6e-5. Weights are then float64,
cast once. `jax.image.resize` agrees with none of the three.

Taps are NumPy constants of the trace; a resize is a few gathers and multiply-adds per axis, exact
at any matrix-product precision and several times faster than dense matrices on large maps.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CUBIC_A = -0.75  # of Keys' kernel, the one PyTorch and OpenCV use


class Taps(NamedTuple):
    """One axis of a resize: sample (n_out, K) int32 of the source, weight (n_out, K) float32."""

    sample: np.ndarray
    weight: np.ndarray


def _edge_aligned(n_in: int, n_out: int, offset: float = 0.0) -> np.ndarray:
    """s = (i + 0.5) r - 0.5, r = n_in / (n_out + offset), rounded to float32 once at the end."""
    if offset:
        ratio = np.float32(1.0 / ((n_out + offset) / n_in))
    else:
        ratio = np.float32(n_in) / np.float32(n_out)
    return (np.float64(ratio) * (np.arange(n_out) + 0.5) - 0.5).astype(np.float32)


def _corner_aligned(n_in: int, n_out: int) -> np.ndarray:
    """s = i r, r = (n_in - 1) / (n_out - 1), both products of float32."""
    ratio = np.float32(n_in - 1) / np.float32(n_out - 1) if n_out > 1 else np.float32(0)
    return ratio * np.arange(n_out, dtype=np.float32)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """(a + 2) d^3 - (a + 3) d^2 + 1 for d <= 1, a d^3 - 5 a d^2 + 8 a d - 4 a for 1 < d < 2."""
    a, d = CUBIC_A, distance
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    return np.where(d <= 1, near, a * (d**3 - 5 * d**2 + 8 * d - 4))


@functools.lru_cache(maxsize=256)
def bilinear_taps(n_in: int, n_out: int, align_corners: bool) -> Taps:
    """Returns the two taps of every output sample; edges aligned: coordinates stop at 0."""
    if align_corners:
        source = _corner_aligned(n_in, n_out)
    else:
        source = np.maximum(_edge_aligned(n_in, n_out), 0)
    source = source.astype(np.float64)
    base = np.floor(source)
    fraction = (source - base)[:, None]
    sample = np.minimum(base[:, None] + np.arange(2), n_in - 1).astype(np.int32)
    return Taps(sample, np.concatenate([1 - fraction, fraction], axis=1).astype(np.float32))


@functools.lru_cache(maxsize=256)
def bicubic_taps(n_in: int, n_out: int, offset: float = 0.0) -> Taps:
    """Returns the four taps of every output sample (Keys, 1981, with a = -0.75).

    Edges aligned; taps beyond the border are those of the border. offset: r = n_in / (n_out +
    offset), the 0.1 by which DINOv2 guards the size of its position grid and so shifts it.
    """
    source = _edge_aligned(n_in, n_out, offset).astype(np.float64)
    base = np.floor(source)[:, None]
    taps = np.arange(-1, 3)
    weight = _cubic(np.abs(source[:, None] - base - taps)).astype(np.float32)
    return Taps(np.clip(base + taps, 0, n_in - 1).astype(np.int32), weight)


def apply_taps(features: jax.Array, taps: Taps, axis: int) -> jax.Array:
    """Resizes one axis; sums in float32, keeps the type of `features`."""
    shape = [1] * features.ndim
    shape[axis] = -1
    parts = [
        jnp.take(features, sample, axis=axis) * weight.reshape(shape)
        for sample, weight in zip(taps.sample.T, taps.weight.T)
    ]
    return functools.reduce(jnp.add, parts).astype(features.dtype)


def bilinear(features: jax.Array, shape: tuple[int, int], *, align_corners: bool) -> jax.Array:
    """(B, H, W, C) -> (B, *shape, C). The identity where the size stays."""
    for axis, n_out in zip((1, 2), shape):
        n_in = features.shape[axis]
        if n_in != n_out:
            features = apply_taps(features, bilinear_taps(n_in, n_out, align_corners), axis)
    return features


def bicubic(features: jax.Array, shape: tuple[int, int], *, offset: float = 0.0) -> jax.Array:
    """(B, H, W, C) -> (B, *shape, C); `offset` as in `bicubic_taps`.

    With an offset an axis whose size stays is resampled too.
    """
    for axis, n_out in zip((1, 2), shape):
        n_in = features.shape[axis]
        if n_in != n_out or offset:
            features = apply_taps(features, bicubic_taps(n_in, n_out, offset), axis)
    return features
