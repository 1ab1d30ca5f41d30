"""The reweighted scale fit of MonST3R, reproduced to the last bit.

s0 = mean(y) / mean(x), then ten times w = 1 / (|s x - y| + 1e-8), s = sum w x y / sum w x^2.
Ten steps do not converge, and a pixel whose residual happens to round to zero gets the weight
1e8: one different rounding in a sum changes the result in the fourth digit. Recorded numbers can
therefore be met only by adding float32 values in the order in which PyTorch adds them (vectors of
eight lanes, four at a time, cascaded). For a fit that is well defined take
`depth_fit.least_absolute_scale`.
"""

from __future__ import annotations

import numpy as np

_STEPS = 10
_EPSILON = np.float32(1e-8)
_LANES, _PARALLEL, _LEVELS = 8, 4, 4


def irls_scale(x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Returns (scale >= 1e-3, shift 0) of float32 x, y under the bool mask."""
    x, y = x[mask].astype(np.float32), y[mask].astype(np.float32)
    if x.size == 0:
        return 1.0, 0.0
    count = np.float32(x.size)
    scale = (_sum(y) / count) / (_sum(x) / count)
    for _ in range(_STEPS):
        weight = np.float32(1) / (np.abs(scale * x - y) + _EPSILON)
        scale = _sum(weight * x * y) / _sum(weight * (x * x))
    return max(float(scale), 1e-3), 0.0


def _sum(values: np.ndarray) -> np.float32:
    """Float32 sum of (n,) values, rounded as PyTorch's vectorised cascade sum on a CPU."""
    whole = values.size // _LANES
    vectors = values[: whole * _LANES].reshape(whole, _LANES)
    rows = whole // _PARALLEL
    lanes = _cascade(vectors[: rows * _PARALLEL].reshape(rows, _PARALLEL, _LANES))
    for vector in vectors[rows * _PARALLEL :]:
        lanes[0] += vector
    total = lanes[0]
    for k in range(1, _PARALLEL):
        total = total + lanes[k]
    result = np.float32(0)
    for value in values[whole * _LANES :]:
        result = result + value
    for value in total:
        result = result + value
    return result


def _cascade(rows: np.ndarray) -> np.ndarray:
    """Sum over the first axis in groups of groups, which keeps the rounding error small."""
    power = max(4, int(np.ceil(np.log2(max(len(rows), 1)))) // _LEVELS)
    step = 1 << power
    remainders = []
    for _ in range(_LEVELS - 1):
        groups = len(rows) // step
        remainders.append(_in_order(rows[groups * step :], rows.shape[1:]))
        grouped = rows[: groups * step].reshape(groups, step, *rows.shape[1:])
        rows = _in_order(np.swapaxes(grouped, 0, 1), (groups, *rows.shape[1:]))
    total = remainders[0]
    for part in (*remainders[1:], _in_order(rows, rows.shape[1:])):
        total = total + part
    return total


def _in_order(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    total = np.zeros(shape, np.float32)
    for row in rows:
        total += row
    return total
