"""Depth in 16 bits, equally fine at every distance.

    code = 1 + round(65533 ln(z / near) / ln(far / near))
    z    = near (far / near)^((code - 1) / 65533)

near and far are the smallest and largest positive depth of the map itself. Code 0 is z = 0
(unknown), 65535 is NaN. The relative error is at most half a step, ln(far / near) / 131066, and
the rounding of float32: 5.3e-5 for 0.1 to 100 metres, 8.2e-5 for 0.01 to 400.
"""

from __future__ import annotations

import numpy as np

from align3r_jax.errors import UserError

_STEPS = 65533  # between code 1 and code 65534
_NAN = 65535


def encode(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (codes (H, W) uint16, (near, far) float32) of a map (H, W) float32.

    Raises UserError if a value is negative or infinite.
    """
    unknown = np.isnan(depth)
    known = depth[~unknown & (depth != 0)].astype(np.float64)
    if known.size and (known.min() < 0 or not np.isfinite(known.max())):
        raise UserError("The map has negative or infinite values, which 16 bits cannot hold.")
    codes = np.zeros(depth.shape, np.uint16)
    near, far = (known.min(), known.max()) if known.size else (1.0, 1.0)
    span = np.log(far / near)
    if known.size:
        position = np.log(known / near) / span if span > 0 else np.zeros_like(known)
        codes[~unknown & (depth != 0)] = 1 + np.round(_STEPS * position).astype(np.uint16)
    codes[unknown] = _NAN
    return codes, np.array([near, far], np.float32)


def decode(codes: np.ndarray, near_far: np.ndarray) -> np.ndarray:
    """Returns the map (H, W) float32 that `encode` was given, within the error above."""
    near, far = (float(value) for value in near_far)
    # One entry per code: a look-up is faster than as many powers as there are pixels.
    table = near * (far / near) ** ((np.arange(_NAN + 1) - 1) / _STEPS)
    table[0], table[_NAN] = 0, np.nan
    return table.astype(np.float32)[codes]


def error_bound(near_far: np.ndarray) -> float:
    """Returns the largest relative error of maps with these (near, far)."""
    near, far = (float(value) for value in near_far)
    return float(np.log(far / near) / (2 * _STEPS) + 2 * np.finfo(np.float32).eps)
