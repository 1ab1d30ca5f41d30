"""Depth of every pixel of one frame from depth measured at some, and the shape of a prior.

The prior's log depth is brought to the measured one by an offset, a contrast and a tilt (`fit`);
what is left of the measurements is laid over it, smooth but for edges of the image (`regularise`):

    argmin_x sum_p (x_p - r_p)^2 / v_p + x_p^2 / (4 s)^2 + sum_pq (x_p - x_q)^2 / s_pq^2,

with r the measurements minus the fitted prior, v their variance, s how far the prior is off. The
same model as `predictors.flow_depth`, of one frame, traceable.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array

_CORRELATED = 50.0  # lattice pixels err together: so many count as one
_ROUNDS, _SOLVER_STEPS = 3, 40
_EDGE = 0.06  # difference of brightness across which depth may well jump
_SMALLEST_VARIANCE = 0.02**2


@struct.dataclass
class Grid:
    """Lattice of a frame. xy: (P, 2) pixels from the principal point; shape: (rows, columns); every
    `stride`-th pixel of the frame, from stride // 2 on."""

    xy: Array
    shape: tuple[int, int] = struct.field(pytree_node=False)
    stride: int = struct.field(pytree_node=False)


def grid(height: int, width: int, stride: int) -> Grid:
    """Returns the lattice of frames of this size."""
    rows, columns = np.mgrid[stride // 2 : height : stride, stride // 2 : width : stride]
    centred = np.stack([columns - width / 2, rows - height / 2], axis=-1)
    return Grid(jnp.asarray(centred.reshape(-1, 2), jnp.float32), rows.shape, stride)


def at(values: Array, lattice: Grid) -> Array:
    """Returns (P, ...) of maps (H, W, ...)."""
    half, stride = lattice.stride // 2, lattice.stride
    few = values[half::stride, half::stride]
    return few.reshape(-1, *values.shape[2:])


def dense(values: Array, lattice: Grid, height: int, width: int) -> Array:
    """Returns (H, W) of (P,), bilinear between lattice pixels, constant beyond the outermost."""
    rows, columns = (
        _tent(size, count, lattice.stride) for size, count in zip((height, width), lattice.shape)
    )
    return jnp.einsum("hr,rc,wc->hw", rows, values.reshape(lattice.shape), columns,
                      precision="highest")  # fmt: skip


def _tent(size, count, stride):
    position = np.clip((np.arange(size) - stride // 2) / stride, 0, count - 1)
    return jnp.asarray(np.maximum(0, 1 - np.abs(position[:, None] - np.arange(count))), jnp.float32)


def fit(
    measured: Array,
    variance: Array,
    prior: Array,
    has_relief: Array,
    level: Array,
    lattice: Grid,
) -> tuple[Array, Array]:
    """Returns the prior's log depth (P,) fitted to the measured one, and how far it is off, ().

    variance: (P,), huge where nothing is measured. prior: (P,) log depth, NaN where unknown.
    has_relief: () bool, False for a plane, which is only shifted and tilted. level: () log depth
    where nothing is measured at all.
    """
    known = jnp.isfinite(prior)
    middle = jnp.nanmedian(jnp.where(known, prior, jnp.nan))
    centred = jnp.where(known & has_relief, prior - middle, 0.0)
    tilt = lattice.xy / jnp.max(jnp.abs(lattice.xy))
    design = jnp.concatenate([jnp.ones_like(centred)[:, None], centred[:, None], tilt], axis=-1)
    contrast = jnp.where(has_relief, 1.0, 0.0)
    expected = jnp.stack([level, contrast, 0.0, 0.0])
    slope = jnp.where(has_relief, 0.15, 0.5)
    spread = jnp.stack([1e3, jnp.where(has_relief, 0.25, 1e-3), slope, slope])
    precision = 1 / jnp.square(spread)
    outlier = jnp.where(has_relief, 0.15, 0.5)
    usable = jnp.isfinite(measured)
    target = jnp.where(usable, measured, 0.0)
    weight = jnp.where(usable, 1 / (variance + outlier**2), 0.0) / _CORRELATED

    def reweigh(_, carry):
        _, robust = carry
        weighted = design * robust[:, None]
        normal = jnp.matmul(weighted.T, design, precision="highest") + jnp.diag(precision)
        right = jnp.matmul(weighted.T, target, precision="highest") + precision * expected
        coefficients = jnp.linalg.solve(normal, right)
        fitted = jnp.matmul(design, coefficients, precision="highest")
        miss = target - fitted
        return fitted, weight / (1 + (miss / outlier) ** 2)

    fitted, _ = jax.lax.fori_loop(0, 6, reweigh, (target, weight))
    measurable = usable & (variance <= jnp.maximum(0.3**2, jnp.quantile(variance, 0.2)))
    miss = jnp.where(measurable, jnp.abs(target - fitted), jnp.nan)
    sigma = jnp.nan_to_num(jnp.nanquantile(miss, 0.8) / 1.28, nan=1.0)
    return fitted, jnp.clip(sigma, min=0.05, max=1.0)


def regularise(
    measured: Array, variance: Array, fitted: Array, sigma: Array, brightness: Array, lattice: Grid
) -> Array:
    """Returns log depth (P,); see the head of this file.

    brightness: (P,) in [0, 1]. Reweighted for robustness, solved by conjugate gradients.
    """
    rows, columns = lattice.shape
    usable = jnp.isfinite(measured)
    target = jnp.where(usable, measured - fitted, 0.0).reshape(rows, columns)
    variance = (jnp.where(usable, variance, 1e9) + _SMALLEST_VARIANCE).reshape(rows, columns)
    image = brightness.reshape(rows, columns)

    def allowed(axis):
        loose = 1 + (jnp.abs(jnp.diff(image, axis=axis)) / _EDGE) ** 2
        return (0.25 * sigma) ** 2 * jnp.minimum(loose, 9)

    across, down = allowed(1), allowed(0)

    def solve(_, x):
        data = 1 / (variance * (1 + (x - target) ** 2 / (4 * variance)))
        bond_x = 1 / (across * (1 + jnp.diff(x, axis=1) ** 2 / across / 4))
        bond_y = 1 / (down * (1 + jnp.diff(x, axis=0) ** 2 / down / 4))
        own = data + 1 / (16 * sigma**2)

        def system(values):
            flow_x = bond_x * jnp.diff(values, axis=1)
            flow_y = bond_y * jnp.diff(values, axis=0)
            pulled = own * values
            pulled = pulled.at[:, 1:].add(flow_x).at[:, :-1].add(-flow_x)
            return pulled.at[1:].add(flow_y).at[:-1].add(-flow_y)

        diagonal = own.at[:, 1:].add(bond_x).at[:, :-1].add(bond_x)
        diagonal = diagonal.at[1:].add(bond_y).at[:-1].add(bond_y)
        found, _ = jax.scipy.sparse.linalg.cg(
            system, data * target, x0=x, maxiter=_SOLVER_STEPS, tol=1e-4,
            M=lambda values: values / diagonal,
        )  # fmt: skip
        return found

    start = target * sigma**2 / (sigma**2 + variance)
    x = jax.lax.fori_loop(0, _ROUNDS, solve, start)
    return x.reshape(-1) + fitted
