"""Scale and scale-shift fits of predicted depth to measured depth, over the valid pixels.

x prediction, y measurement, both of any one shape; mask the same shape, bool. All return
(scale, shift) float32 scalars and can be jitted. Medians are lower medians, index
floor((n - 1) / 2) of the sorted values. No valid pixel: scale 1, shift 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

_LAD_STEPS = 120
_ADAM_STEPS, _ADAM_LR, _ADAM_STOP = 1000, 1e-4, 1e-6


def lower_median(values: Array, mask: Array) -> Array:
    """The element floor((n - 1) / 2) of the n sorted values under the mask; 1 if n = 0."""
    count = mask.sum()
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf).reshape(-1))
    return jnp.where(count > 0, ordered[jnp.maximum(count - 1, 0) // 2], 1.0)


def median(x: Array, y: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """s = med(y) / med(x), t = 0 (the "scale" of DUSt3R and MonST3R)."""
    x, y, mask = _prepare(x, y, mask)
    return lower_median(y, mask) / lower_median(x, mask), jnp.float32(0.0)


def least_absolute_scale(x: Array, y: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """argmin_s sum |s x - y|, t = 0, for x > 0: the median of y / x weighted by x, exact.

    The "scale" fit of MonST3R is ten reweighted steps towards it (`evaluation.irls`).
    """
    x, y, mask = _prepare(x, y, mask)
    weight = jnp.where(mask & (x > 0), x, 0.0).reshape(-1)
    ratio = jnp.where(weight > 0, y.reshape(-1) / jnp.where(weight > 0, weight, 1.0), jnp.inf)
    order = jnp.argsort(ratio)
    reached = jnp.cumsum(weight[order])
    position = jnp.searchsorted(reached, 0.5 * reached[-1])
    best = ratio[order][jnp.minimum(position, order.size - 1)]
    return jnp.where(reached[-1] > 0, best, 1.0), jnp.float32(0.0)


def least_squares(x: Array, y: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """argmin over s, t of sum (s x + t - y)^2, in centred form."""
    x, y, mask = _prepare(x, y, mask)
    return _weighted_line(x, y, mask.astype(jnp.float32))


def least_absolute(x: Array, y: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """argmin over s, t of sum |s x + t - y| (least absolute deviations, LAD), to convergence.

    Reweighted least squares with weights 1 / max(|r|, e), e falling from 10 % to 1e-6 of the
    median depth, on data divided by their medians; the best iterate is kept. The objective is
    within 1e-5 of the optimum (relative), where the reference stops a BFGS run.
    """
    x, y, mask = _prepare(x, y, mask)
    x_unit, y_unit = lower_median(x, mask), lower_median(y, mask)
    u, v, weight = x / x_unit, y / y_unit, mask.astype(jnp.float32)

    def cost(line):
        return (weight * jnp.abs(line[0] * u + line[1] - v)).sum()

    def step(k, carry):
        line, best, best_cost = carry
        smooth = jnp.maximum(0.1 * 0.85**k, 1e-6)
        residual = jnp.abs(line[0] * u + line[1] - v)
        line = jnp.stack(_weighted_line(u, v, weight / jnp.maximum(residual, smooth)))
        new_cost = cost(line)
        better = new_cost < best_cost
        return line, jnp.where(better, line, best), jnp.where(better, new_cost, best_cost)

    start = jnp.array([1.0, 0.0], jnp.float32)
    _, best, _ = jax.lax.fori_loop(0, _LAD_STEPS, step, (start, start, cost(start)))
    return best[0] * y_unit / x_unit, best[1] * y_unit


def adam_absolute(x: Array, y: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """The `lad2` of MonST3R: at most 1000 Adam steps (lr 1e-4) on sum |s x + t - y|.

    Starts at (median ratio, 0) and stops when the sum changes by less than 1e-6. Adam moves at
    most lr per step, so s and t end within about 0.1 of the start: not the minimum.
    """
    x, y, mask = _prepare(x, y, mask)
    weight = mask.astype(jnp.float32)
    start, _ = median(x, y, mask)

    def condition(state):
        step, *_, change = state
        return (step < _ADAM_STEPS) & (change >= _ADAM_STOP)

    def advance(state):
        step, line, first, second, last, _ = state
        residual = line[0] * x + line[1] - y
        total = (weight * jnp.abs(residual)).sum()
        sign = weight * jnp.sign(residual)
        gradient = jnp.stack([(sign * x).sum(), sign.sum()])
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        count = (step + 1).astype(jnp.float32)
        unbiased = jnp.sqrt(second / (1 - 0.999**count)) + 1e-8
        line = line - _ADAM_LR * first / (1 - 0.9**count) / unbiased
        return step + 1, line, first, second, total, jnp.abs(last - total)

    zero = jnp.zeros(2, jnp.float32)
    line = jnp.stack([start, jnp.float32(0.0)])
    state = (jnp.int32(0), line, zero, zero, jnp.float32(jnp.inf), jnp.float32(jnp.inf))
    line = jax.lax.while_loop(condition, advance, state)[1]
    return line[0], line[1]


def _prepare(x, y, mask):
    """Float32 arrays with harmless values outside the mask."""
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    mask = jnp.ones(x.shape, bool) if mask is None else jnp.asarray(mask, bool)
    return jnp.where(mask, x, 0.0), jnp.where(mask, y, 0.0), mask


def _ratio(numerator, denominator):
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1.0), 1.0)


def _weighted_line(x, y, weight):
    total = jnp.maximum(weight.sum(), 1e-20)
    x_mean, y_mean = (weight * x).sum() / total, (weight * y).sum() / total
    dx, dy = x - x_mean, y - y_mean
    scale = _ratio((weight * dx * dy).sum(), (weight * dx * dx).sum())
    empty = weight.sum() == 0
    return jnp.where(empty, 1.0, scale), jnp.where(empty, 0.0, y_mean - scale * x_mean)
