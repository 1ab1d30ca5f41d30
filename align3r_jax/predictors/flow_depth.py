"""Depth of every pixel from known cameras and flow, pulled to a prior where parallax is low.

Three steps on a lattice of pixels: triangulate every pixel on its own (`triangulate`); fit the
prior of each frame to the triangulated depth, one scale and contrast per frame, consistent over
the clip (`fit_prior`); solve for the most probable log depth x of each frame (`regularise`),

    sum_p (x_p - m_p)^2 / v_p + (x_p - l_p)^2 / s_u^2 + sum_edges rho((x_p - l_p) - (x_q - l_q)),

with m, v the triangulated log depth and its variance, l the fitted prior (a plane without one).
So depth is triangulated where parallax fixes it, and the prior's relief elsewhere.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import linalg

from align3r_jax.predictors import flow_lattice

_CORRELATED = 50  # lattice pixels err together: so many count as one
# A prior that lies so much nearer than a plane to what was triangulated also knows where things
# stand that move; a weaker one does not.
_KNOWS_MOVERS = 0.5


def triangulate(
    structure: flow_lattice.Structure,
    obs: flow_lattice.Observations,
    log_rho: np.ndarray,
    noise_px: float,
    iterations: int = 8,
) -> tuple[np.ndarray, np.ndarray]:
    """Log inverse depth of every lattice pixel for fixed cameras, and its variance.

    log_rho: (T, P) start. noise_px: scale of the robust loss and of the flow's error. Errors of
    the fields that start in one pixel are taken as fully correlated: many fields do not make a
    pixel surer than its best one. Returns (log_rho, variance), both (T, P).
    """
    bounds = np.median(log_rho) + np.log([1 / 30, 30])
    parts = [
        _triangulate(structure, obs, log_rho, noise_px, iterations, bounds, part)
        for part in flow_lattice.blocks(obs)
    ]
    found, variance = (np.concatenate(values) for values in zip(*parts))
    return found, variance


def _triangulate(structure, obs, log_rho, noise_px, iterations, bounds, part):
    rot, shift = (a.astype(np.float32) for a in flow_lattice.relative(structure, obs, part))
    target, weight = obs.target[part], obs.weight[part]
    focal = np.float32(structure.focal)
    ray = np.concatenate([obs.xy / focal, np.ones((len(obs.xy), 1))], 1).astype(np.float32)
    turned = ray @ np.swapaxes(rot, -1, -2)  # (T, K, P, 3)
    low, high = bounds
    x = log_rho[part].astype(np.float32)
    start = x
    c2 = np.float32((2 * noise_px) ** 2)
    for _ in range(iterations):
        rho = np.exp(x)[:, None]
        y = turned + rho[..., None] * shift[:, :, None]
        z = np.maximum(y[..., 2], 0.05)
        q = focal * y[..., :2] / z[..., None]
        error = q - target
        slope = (
            focal
            * (rho / z)[..., None]
            * (shift[:, :, None, :2] - q / focal * shift[:, :, None, 2:])
        )  # d q / d log rho
        w = weight / (1 + flow_lattice.squared_length(error) / c2)
        info = flow_lattice.squared_length(slope)
        h = (w * info).sum(1)
        weak = np.float32(noise_px**2)  # holds pixels without parallax where they started
        g = (w * (slope[..., 0] * error[..., 0] + slope[..., 1] * error[..., 1])).sum(1) + weak * (
            x - start
        )
        x = np.clip(x - np.clip(g / (h + weak), -0.5, 0.5), low, high)
    strength = (w * info).sum(1) / np.maximum(w.sum(1), 1e-3) * np.minimum(w.sum(1), 1)
    return x, noise_px**2 / np.maximum(strength, 1e-9)


@dataclasses.dataclass(frozen=True)
class FittedPrior:
    """log_depth: (T, P), the prior (or plane) in the scale of the bundle; sigma: how far true log
    depth lies from it; useful: False if a plane fits the triangulated depth as well; knows_movers:
    whether what moves may keep the prior's depth."""

    log_depth: np.ndarray
    sigma: float
    useful: bool
    knows_movers: bool


def frame_offsets(
    log_depth: np.ndarray,
    structure: flow_lattice.Structure,
    obs: flow_lattice.Observations,
    offset: np.ndarray,
    precision: np.ndarray,
) -> np.ndarray:
    """Offsets (T,) that bring the log depth of all frames to one scale.

    Minimises sum_i u_i (o_i - offset_i)^2 + sum_ij n_ij (o_i - o_j - d_ij)^2 with offset_i, u_i
    from triangulation and d_ij the median over pixels that flow from i to j of how much the depth
    maps disagree (NaN: unknown). Where nothing is triangulated the pairs still hold the frames
    together.
    """
    frames, slots = obs.neighbour.shape
    rows, columns = obs.lattice
    step = obs.xy[1, 0] - obs.xy[0, 0]
    rot, shift = flow_lattice.relative(structure, obs)
    ray = np.concatenate([obs.xy / structure.focal, np.ones((len(obs.xy), 1))], 1)
    reach = np.abs(obs.neighbour - np.arange(frames)[:, None]).max()
    band = np.zeros((reach + 1, frames))  # row d: the diagonal d below the main one
    band[0] = precision + 1e-6
    right = precision * offset
    for i in range(frames):
        for slot in range(slots):
            j, weight = obs.neighbour[i, slot], obs.weight[i, slot]
            if j == i or weight.mean() < 0.2:
                continue
            cell = np.rint((obs.target[i, slot] - obs.xy[0]) / step).astype(int)
            cell = np.clip(cell[:, 1], 0, rows - 1) * columns + np.clip(cell[:, 0], 0, columns - 1)
            depth = np.exp(log_depth[i] + offset[i])
            moved = depth * (ray @ rot[i, slot][2]) + shift[i, slot][2]
            change = np.log(np.clip(moved / depth, 0.3, 3))
            gaps = (log_depth[j][cell] - log_depth[i] - change)[weight > 0]
            gaps = gaps[np.isfinite(gaps)]
            if not gaps.size:
                continue
            gap = np.median(gaps)
            strength = 1 / 0.05**2
            band[0, i] += strength
            band[0, j] += strength
            band[abs(i - j), min(i, j)] -= strength
            right[i] += strength * gap
            right[j] -= strength * gap
    return linalg.solveh_banded(band, right, lower=True)


def fit_prior(
    measured: np.ndarray,
    variance: np.ndarray,
    prior: np.ndarray | None,
    structure: flow_lattice.Structure,
    obs: flow_lattice.Observations,
) -> FittedPrior:
    """Fits offset, contrast and tilt of every frame's prior log depth to the measured one.

    measured, variance: (T, P) triangulated log depth. prior: (T, P) log depth, or None;
    where it is NaN the plane stands in.
    A prior that explains no more of the measured relief than a tilted plane is left out.
    """
    plane = _fit(measured, variance, np.zeros_like(measured), structure, obs, contrast=False)
    if prior is None:
        return FittedPrior(plane[0], plane[1], useful=False, knows_movers=False)
    fitted = _fit(measured, variance, prior, structure, obs, contrast=True)
    measurable = np.median(variance) < 0.3**2
    if measurable and fitted[1] > 0.97 * plane[1]:
        return FittedPrior(plane[0], plane[1], useful=False, knows_movers=False)
    return FittedPrior(
        np.where(np.isnan(prior), plane[0], fitted[0]),
        fitted[1],
        useful=True,
        knows_movers=not measurable or fitted[1] < _KNOWS_MOVERS * plane[1],
    )


def _fit(measured, variance, relief, structure, obs, contrast):
    """Returns the fitted log depth (T, P) and how far the measured one lies from it."""
    tilt = obs.xy / np.abs(obs.xy).max()
    # Expected before any measurement: contrast 1 (none for a plane) and no tilt.
    expected = np.array([0.0, 1.0 if contrast else 0.0, 0.0, 0.0])
    precision = 1 / np.square([1e3, 0.25 if contrast else 1e-4, *([0.15 if contrast else 0.5] * 2)])
    outlier = 0.15 if contrast else 0.5
    fitted = np.empty_like(measured)
    offset, surety = np.zeros(len(measured)), np.zeros(len(measured))
    for i in range(len(measured)):
        given = np.isfinite(relief[i])
        if not given.any():
            fitted[i] = np.nan
            continue
        centred = np.where(given, relief[i] - np.median(relief[i][given]), 0)
        design = np.column_stack([np.ones(len(tilt)), centred, tilt])
        weight = given / (variance[i] + outlier**2) / _CORRELATED
        w = weight
        for _ in range(6):
            weighted = design * w[:, None]
            normal = weighted.T @ design + np.diag(precision)
            right = weighted.T @ measured[i] + precision * expected
            coefficients = np.linalg.solve(normal, right)
            miss = measured[i] - design @ coefficients
            w = weight / (1 + np.square(miss / outlier))
        fitted[i] = np.where(given, design[:, 1:] @ coefficients[1:], np.nan)
        offset[i], surety[i] = coefficients[0], w.sum()
    fitted = fitted + frame_offsets(fitted, structure, obs, offset, surety)[:, None]
    measurable = variance <= np.maximum(0.3**2, np.quantile(variance, 0.2))
    miss = np.abs(measured - fitted)[measurable & np.isfinite(relief)]
    if not miss.size:
        return fitted, 1.0
    return fitted, float(np.clip(np.quantile(miss, 0.8) / 1.28, 0.05, 1.0))


def regularise(
    measured: np.ndarray,
    variance: np.ndarray,
    fitted: FittedPrior,
    edge_strength: np.ndarray,
    lattice: tuple[int, int],
    iterations: int = 4,
) -> np.ndarray:
    """The most probable log depth (T, P): see the head of this file.

    edge_strength: (T, rows, columns) brightness of the lattice, 0 to 1; neighbours that differ in
    it may differ in depth.
    """
    result = np.empty_like(measured)
    for i in range(len(measured)):
        result[i] = _regularise_frame(
            measured[i] - fitted.log_depth[i],
            variance[i] + 0.02**2,
            fitted.sigma,
            edge_strength[i],
            lattice,
            iterations,
        )
    return result + fitted.log_depth


def _regularise_frame(measured, variance, sigma, brightness, lattice, iterations):
    rows, columns = lattice
    step = 0.25 * sigma  # expected change between neighbours, more across image edges
    loose = 1 + (np.abs(np.diff(brightness, axis=1)) / 0.06) ** 2
    sigma_x = step * np.minimum(loose, 9) ** 0.5
    loose = 1 + (np.abs(np.diff(brightness, axis=0)) / 0.06) ** 2
    sigma_y = step * np.minimum(loose, 9) ** 0.5
    x = measured * sigma**2 / (sigma**2 + variance)
    bands = np.zeros((columns + 1, rows * columns))
    for _ in range(iterations):
        data = 1 / (variance * (1 + np.square(x - measured) / (4 * variance)))
        grid = x.reshape(rows, columns)
        wx = 1 / (sigma_x**2 * (1 + np.square(np.diff(grid, axis=1) / sigma_x) / 4))
        wy = 1 / (sigma_y**2 * (1 + np.square(np.diff(grid, axis=0) / sigma_y) / 4))
        diagonal = (data + 1 / (16 * sigma**2)).reshape(rows, columns).copy()
        diagonal[:, 1:] += wx
        diagonal[:, :-1] += wx
        diagonal[1:] += wy
        diagonal[:-1] += wy
        bands[:] = 0
        bands[0] = diagonal.ravel()
        bands[1] = -np.pad(wx, ((0, 0), (0, 1))).ravel()
        bands[columns, : (rows - 1) * columns] = -wy.ravel()
        x = linalg.solveh_banded(bands, data * measured, lower=True, check_finite=False)
    return x
