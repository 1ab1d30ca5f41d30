"""The step of cameras and pairs: damped normal equations with the scale gauge held.

    (P (H + damping D) P + k c c') x = -P g,    D = diag(H), c = the gauge, P = I - c c' / c'c

so that c'x = 0 exactly. Up to `DENSE_UNKNOWNS` by Cholesky; beyond by conjugate gradients on the
blocks, which are never assembled (pairs that share a frame are coupled, so H has no useful band in
a complete graph).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from align3r_jax.alignment.solvers import gauss_newton_increments as increments
from align3r_jax.alignment.solvers.gauss_newton_frames import Blocks
from align3r_jax.alignment.solvers.gauss_newton_increments import Unknowns

Array = jax.Array

DENSE_UNKNOWNS = 5000  # 100 MB and 40 GFLOP in float32
CONJUGATE_STEPS, CONJUGATE_TOLERANCE = 200, 1e-4
# Of the diagonal before the elimination, in units of the rounding error: it lost that much.
ROUNDING = 8.0


def add(blocks: Sequence[Blocks], field: str, numbers: Unknowns) -> Array:
    """Returns the sum of all `gradient`s, or diagonals ("diagonal", "magnitude"), (size + 1,).

    Diagonals without the cross terms of a number that stands twice in a block (a shared focal):
    at most twice the true ones, which is enough for scaling and damping.
    """
    total = jnp.zeros_like(numbers.gauge)
    for block in blocks:
        values = (
            jnp.diagonal(block.matrix, axis1=1, axis2=2)
            if field == "diagonal"
            else getattr(block, field)
        )
        total = total.at[block.number].add(values)
    return total.at[numbers.size].set(0)


def solve(blocks: Sequence[Blocks], numbers: Unknowns, damping: Array) -> Array:
    """Returns the step, (size + 1,); unknowns that nothing holds stay."""
    gradient = add(blocks, "gradient", numbers)
    diagonal = add(blocks, "diagonal", numbers)
    magnitude = add(blocks, "magnitude", numbers)
    rounding = ROUNDING * jnp.finfo(gradient.dtype).eps
    scale_of = jnp.maximum(diagonal, rounding * magnitude)
    held = magnitude > 0
    damped = jnp.where(held, damping * scale_of + rounding * magnitude, 1)
    scaling = jnp.where(held, jax.lax.rsqrt(jnp.where(held, scale_of, 1)), 1)
    target = -scaling * increments.without_gauge(gradient, numbers)
    if numbers.size <= DENSE_UNKNOWNS:
        step = _by_cholesky(blocks, numbers, damped, scaling, target)
    else:
        step = _by_conjugate_gradients(blocks, numbers, damped, scaling, target)
    step = jnp.where(held, scaling * step, 0)
    return increments.without_gauge(step, numbers).at[numbers.size].set(0)


def _stiffness(scaling, numbers):
    """k: as strong as the scaled system itself, whose diagonal is 1."""
    count = jnp.maximum(jnp.sum(numbers.gauge), 1)
    return jnp.sum(numbers.gauge / scaling**2) / count**2


def _by_cholesky(blocks, numbers, damped, scaling, target):
    size, gauge = numbers.size, numbers.gauge
    matrix = jnp.zeros((size + 1, size + 1), target.dtype)
    for block in blocks:
        rows, columns = block.number[:, :, None], block.number[:, None, :]
        matrix = matrix.at[rows, columns].add(block.matrix)
    matrix = matrix.at[size].set(0).at[:, size].set(0)
    matrix = matrix + jnp.diag(damped)
    count = jnp.maximum(jnp.sum(gauge), 1)
    matrix = matrix - gauge[:, None] * (gauge @ matrix)[None] / count
    matrix = matrix - (matrix @ gauge)[:, None] * gauge[None] / count
    matrix = matrix + _stiffness(scaling, numbers) * gauge[:, None] * gauge[None]
    matrix = scaling[:, None] * matrix * scaling[None]
    return _factorise_and_solve(matrix, target)


@jax.custom_batching.sequential_vmap
def _factorise_and_solve(matrix, target):
    """Of several clips one after the other: LAPACK on a stack of matrices waits for threads of the
    pool that the devices of a CPU run in, and with many virtual devices waits forever."""
    factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
    return jax.scipy.linalg.cho_solve(factor, target)


def _by_conjugate_gradients(blocks, numbers, damped, scaling, target):
    stiffness = _stiffness(scaling, numbers)

    def product(vector):
        moved = scaling * vector
        free = increments.without_gauge(moved, numbers)
        total = damped * free
        for block in blocks:
            part = jnp.einsum("nuv,nv->nu", block.matrix, free[block.number], precision="highest")
            total = total.at[block.number].add(part)
        total = increments.without_gauge(total.at[numbers.size].set(free[-1]), numbers)
        return scaling * (total + stiffness * numbers.gauge * jnp.sum(numbers.gauge * moved))

    step, _ = jax.scipy.sparse.linalg.cg(
        product, target, tol=CONJUGATE_TOLERANCE, maxiter=CONJUGATE_STEPS
    )
    return step
