"""The normal equations of the flow bundle, and their solution.

Per lattice pixel the residual depends on its inverse depth, on the focal and, through
y = Q k + rho s, on the motion (omega, beta) of each slot: dy = omega x y + rho beta. Inverse depth
is eliminated per pixel in those terms; only then are the slots' motions expressed by the poses
R <- R exp(w), T <- T + u of their two frames. What remains couples frames no further apart than
twice the longest flow, so it is solved as a band with the focal as its border: linear in frames.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import linalg

from align3r_jax.predictors import flow_lattice
from align3r_jax.predictors.flow_lattice import Observations, Structure

_SINGLE_THREAD = 200_000  # multiply-adds below which BLAS does not start threads
_MAX_LOG_DEPTH_STEP = 0.7
_MAX_LOG_FOCAL_STEP = 0.2


@dataclasses.dataclass(frozen=True)
class BundleConfig:
    """focal_prior: f0, pixels. scale_px: c of the robust loss. depth_weight: lambda_d and
    focal_weight: lambda_f, in units of the mean weight of a pixel and of all observations."""

    focal_prior: float
    scale_px: float = 1.0
    depth_weight: float = 1e-3
    focal_weight: float = 0.01
    focal_bounds: tuple[float, float] = (0.5, 2.6)  # of f / f0
    iterations: int = 20
    tolerance: float = 1e-4  # stop when the cost falls by less than this fraction


@dataclasses.dataclass(frozen=True)
class System:
    """Linearised residuals of all slots: motion (T, K, 8, 8) blocks over (omega, beta, log f,
    log rho), their gradients (T, K, 8), columns (T, P, 6 K + 1) that couple each pixel's inverse
    depth to its slots and the focal, and that depth's own terms h, g (T, P)."""

    blocks: np.ndarray
    gradient: np.ndarray
    columns: np.ndarray
    h: np.ndarray
    g: np.ndarray
    rotation: np.ndarray
    shift: np.ndarray


def linearise(
    structure: Structure, obs: Observations, prior: np.ndarray, config: BundleConfig
) -> System:
    """Gauss-Newton terms at `structure`, residuals reweighted by 1 / (1 + |r|^2 / c^2)."""
    pull = config.depth_weight * max(float(obs.weight.sum()), 1.0) / prior.size
    parts = [_linearise(structure, obs, part, config) for part in flow_lattice.blocks(obs)]
    blocks, gradient, columns, h, g, rotation, shift = (
        values[0] if len(values) == 1 else np.concatenate(values) for values in zip(*parts)
    )
    g = g + pull * (structure.log_rho - prior)
    return System(blocks, gradient, columns, h + pull + 1e-9, g, rotation, shift)


def _linearise(structure, obs, part, config):
    """The fields of `System` for a run of frames, without the pull of depth to its prior."""
    slots, num = obs.neighbour.shape[1], len(obs.xy)
    y, q = flow_lattice.project(structure, obs, part)
    frames = len(y)
    error = q - obs.target[part]
    c2 = np.float32(config.scale_px**2)
    weight = obs.weight[part] / (1 + flow_lattice.squared_length(error) / c2)
    focal = np.float32(structure.focal)
    rotation, shift = flow_lattice.relative(structure, obs, part)
    rho = np.exp(structure.log_rho[part]).astype(np.float32)[:, None, :]
    over_z = focal / y[..., 2]
    a, b = q[..., 0] / focal, q[..., 1] / focal
    yx, yy, yz = y[..., 0], y[..., 1], y[..., 2]
    flat = np.concatenate([-obs.xy / structure.focal, np.zeros((num, 1))], 1)
    turned = (flat @ np.swapaxes(rotation, -1, -2)).astype(np.float32)  # d y / d log f
    s = shift.astype(np.float32)[:, :, None]

    # d q = over_z (d y_xy - (a, b) d y_z), column by column; axis -2 is (x, y).
    jac = np.empty((frames, slots, num, 2, 8), np.float32)
    jac[..., 0, 0], jac[..., 1, 0] = -over_z * a * yy, -over_z * (yz + b * yy)
    jac[..., 0, 1], jac[..., 1, 1] = over_z * (yz + a * yx), over_z * b * yx
    jac[..., 0, 2], jac[..., 1, 2] = -over_z * yy, over_z * yx
    jac[..., 0, 3], jac[..., 1, 3] = over_z * rho, 0
    jac[..., 0, 4], jac[..., 1, 4] = 0, over_z * rho
    jac[..., 0, 5], jac[..., 1, 5] = -over_z * rho * a, -over_z * rho * b
    jac[..., 0, 6] = over_z * (turned[..., 0] - a * turned[..., 2]) + q[..., 0]
    jac[..., 1, 6] = over_z * (turned[..., 1] - b * turned[..., 2]) + q[..., 1]
    jac[..., 0, 7] = over_z * rho * (s[..., 0] - a * s[..., 2])
    jac[..., 1, 7] = over_z * rho * (s[..., 1] - b * s[..., 2])
    root = np.sqrt(weight)[..., None]
    jac *= root[..., None]
    error = error * root

    rows = jac.reshape(frames, slots, num * 2, 8)
    blocks = np.swapaxes(rows, -1, -2) @ rows
    gradient = (np.swapaxes(rows, -1, -2) @ error.reshape(frames, slots, num * 2, 1))[..., 0]
    along = jac[..., 7]
    cross = jac[..., 0, :7] * along[..., 0, None] + jac[..., 1, :7] * along[..., 1, None]
    columns = np.concatenate(
        [
            np.swapaxes(cross[..., :6], 1, 2).reshape(frames, num, 6 * slots),
            cross[..., 6].sum(1)[..., None],
        ],
        -1,
    )
    h = flow_lattice.squared_length(along).sum(1).astype(np.float64)
    g = (along[..., 0] * error[..., 0] + along[..., 1] * error[..., 1]).sum(1)
    return blocks, gradient, columns, h, g, rotation, shift


def step(
    structure: Structure, obs: Observations, system: System, damping: float, config: BundleConfig
) -> Structure | None:
    """Returns the structure after one damped step, or None if the system is not solvable."""
    frames, slots = obs.neighbour.shape
    damped = system.h * (1 + damping)
    maps = _poses_to_motions(structure, obs, system)
    local, gradient = _eliminate(system, damped, slots)
    local = np.swapaxes(maps, -1, -2) @ local @ maps
    gradient = (np.swapaxes(maps, -1, -2) @ gradient[..., None])[..., 0]
    # Unknowns of frame i's equations: its own pose, its neighbours', the focal.
    involved = np.concatenate([np.arange(frames)[:, None], obs.neighbour], 1)
    index = (6 * involved[..., None] + np.arange(6)).reshape(frames, -1)
    delta, delta_focal = _solve(local, gradient, index, structure, obs, damping, config)
    if delta is None:
        return None
    unknowns = np.concatenate([delta[index], np.full((frames, 1), delta_focal)], 1)
    motions = maps @ unknowns[..., None]
    back = (system.columns @ motions.astype(np.float32))[..., 0]
    depth_step = np.clip(-(system.g + back) / damped, -_MAX_LOG_DEPTH_STEP, _MAX_LOG_DEPTH_STEP)
    pose = delta.reshape(frames, 6)
    focal = structure.focal * np.exp(
        np.clip(delta_focal, -_MAX_LOG_FOCAL_STEP, _MAX_LOG_FOCAL_STEP)
    )
    low, high = (bound * config.focal_prior for bound in config.focal_bounds)
    return Structure(
        structure.rotation @ flow_lattice.exp_rotation(pose[:, :3]),
        structure.translation + pose[:, 3:],
        structure.log_rho + depth_step,
        float(np.clip(focal, low, high)),
    )


def _poses_to_motions(structure: Structure, obs: Observations, system: System) -> np.ndarray:
    """(T, 6 K + 1, 6 (K + 1) + 1): (pose_i, poses_j, log f) -> (omega, beta of every slot, log f).

    With R_i <- R_i exp(w_i): omega = Q w_i, beta = s x Q w_i; T_i + u_i: beta = R_j^T u_i;
    w_j: omega = -w_j; u_j: beta = -R_j^T u_j.
    """
    frames, slots = obs.neighbour.shape
    back = np.swapaxes(structure.rotation[obs.neighbour], -1, -2)
    turn = flow_lattice.hat(system.shift) @ system.rotation
    maps = np.zeros((frames, 6 * slots + 1, 6 * slots + 7))
    for k in range(slots):
        row, column = 6 * k, 6 * k + 6
        maps[:, row : row + 3, :3] = system.rotation[:, k]
        maps[:, row + 3 : row + 6, :3] = turn[:, k]
        maps[:, row + 3 : row + 6, 3:6] = back[:, k]
        maps[:, row : row + 3, column : column + 3] = -np.eye(3)
        maps[:, row + 3 : row + 6, column + 3 : column + 6] = -back[:, k]
    maps[:, -1, -1] = 1
    return maps


def _eliminate(system: System, damped: np.ndarray, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal matrix (T, 6 K + 1, 6 K + 1) and gradient (T, 6 K + 1) without inverse depths."""
    matrix = -_weighted_gram(system.columns, 1 / damped)
    pulled = (system.g / damped).astype(np.float32)
    gradient = -(np.swapaxes(system.columns, -1, -2) @ pulled[..., None])[..., 0]
    gradient = gradient.astype(np.float64)
    for k in range(slots):
        slot = slice(6 * k, 6 * k + 6)
        matrix[:, slot, slot] += system.blocks[:, k, :6, :6]
        matrix[:, slot, -1] += system.blocks[:, k, :6, 6]
        matrix[:, -1, slot] += system.blocks[:, k, :6, 6]
        gradient[:, slot] += system.gradient[:, k, :6]
    matrix[:, -1, -1] += system.blocks[:, :, 6, 6].sum(1)
    gradient[:, -1] += system.gradient[:, :, 6].sum(1)
    return matrix, gradient


def _weighted_gram(columns: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """sum_p weight_p c_p c_p^T of (T, P, M) columns and (T, P) weights: (T, M, M) float64.

    Products are taken in blocks below the size at which BLAS starts threads: waking them costs
    more than the product, and fifty times more on a busy machine.
    """
    frames, num, width = columns.shape
    block = max(1, _SINGLE_THREAD // width**2)
    total = np.zeros((frames, width, width))
    weight = weight[..., None].astype(np.float32)
    for k in range(0, num, block):
        part = columns[:, k : k + block]
        total += np.swapaxes(part * weight[:, k : k + block], -1, -2) @ part
    return total


def _solve(local, gradient, index, structure, obs, damping, config):
    """Sums the frames' equations and solves them: pose steps (6 T,) and the log focal's, or
    (None, 0). The first frame stays."""
    frames = len(index)
    size = 6 * frames
    weight = max(float(obs.weight.sum()), 1.0)
    reach = int(np.abs(obs.neighbour - np.arange(frames)[:, None]).max())
    width = min(6 * (2 * reach + 1), size)  # a frame couples its neighbours on both sides
    row, column = np.broadcast_arrays(index[:, :, None], index[:, None, :])
    lower = row >= column
    flat = (row - column)[lower] * size + column[lower]
    band = np.bincount(flat, local[:, :-1, :-1][lower], width * size).reshape(width, size)
    border = np.bincount(index.ravel(), local[:, :-1, -1].ravel(), size)
    right = np.bincount(index.ravel(), gradient[:, :-1].ravel(), size)
    corner = local[:, -1, -1].sum() * (1 + damping) + config.focal_weight * weight
    away = config.focal_weight * weight * np.log(structure.focal / config.focal_prior)
    focal_gradient = gradient[:, -1].sum() + away
    band[0] += damping * np.maximum(band[0], 0) + 1e-6 * weight
    band[0, :6] = 1e12  # the first camera stays where it is: the gauge
    try:
        solved = linalg.solveh_banded(band, np.stack([right, border], 1), lower=True)
    except linalg.LinAlgError:
        return None, 0.0
    through = corner - border @ solved[:, 1]
    if through <= 0:
        return -solved[:, 0], 0.0
    focal_step = -(focal_gradient - border @ solved[:, 0]) / through
    return -solved[:, 0] - solved[:, 1] * focal_step, focal_step
