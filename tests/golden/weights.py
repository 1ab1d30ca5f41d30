"""Deterministic weights for the golden files: the same numbers for the same PyTorch parameter names.

A golden file stores what a reference network returned when its parameters were filled by `fill`.
Filling a state dict of the same names and shapes here rebuilds those weights, so no weights are stored.
"""

import re
import zlib

import numpy as np

_TOKENS = re.compile(r"(pos_embed|position_embed|cls_token|mask_token|register|dist_token)")
_SCALES = re.compile(r"(gamma|lambda)")  # layer scale


def fill(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Returns the float32 values of the parameter or buffer `name` of `shape`.

    The generator is `np.random.default_rng([crc32(name), seed])`, so every parameter is independent of the
    others and of their order. Matrices and kernels are scaled by 1 / sqrt(fan in), norm weights lie near 1,
    layer scales near 0.5, running variances above 0.5, so that deep networks neither vanish nor overflow.
    """
    shape = tuple(shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    noise = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("running_var"):
        return 0.5 + np.abs(noise)
    if _TOKENS.search(name):
        return np.float32(0.1) * noise
    if _SCALES.search(name):
        return np.float32(0.5) + np.float32(0.1) * noise
    if len(shape) >= 2:
        return noise / np.float32(np.sqrt(np.prod(shape[1:])))
    if name.endswith("weight"):
        return np.float32(1.0) + np.float32(0.1) * noise
    return np.float32(0.1) * noise


def state_dict(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Returns every parameter of `shapes` ({name: shape}) filled."""
    return {name: fill(name, tuple(shape), seed) for name, shape in shapes.items()}


def image(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Returns a smooth float32 test image in [-1, 1] of `shape` (..., H, W, C): sums of random plane waves."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    *lead, height, width, channels = shape
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    out = np.zeros((*lead, height, width, channels))
    for index in np.ndindex(*lead, channels):
        frequency = rng.uniform(-12, 12, (8, 2))
        phase, amplitude = rng.uniform(0, 2 * np.pi, 8), rng.uniform(0.2, 1.0, 8)
        wave = sum(
            a * np.sin(2 * np.pi * (f[0] * y + f[1] * x) + p)
            for f, p, a in zip(frequency, phase, amplitude)
        )
        out[(*index[:-1], slice(None), slice(None), index[-1])] = wave / amplitude.sum()
    return out.astype(np.float32)
