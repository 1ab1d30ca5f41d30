"""Structure and motion of a whole clip from optical flow alone: robust bundle adjustment.

Minimised over poses, one focal length and the inverse depth of every lattice pixel:

    sum_(i,j,p) w_ijp c^2 log(1 + |q_ijp - target_ijp|^2 / c^2)
        + lambda_d sum_ip s_ip (log rho_ip - prior_ip)^2 + lambda_f (log f / f0)^2

where pixel p of frame i lands in frame j, q_ijp = f (y_x, y_y) / y_z with
y = R_j^T (R_i k_p + rho_ip (T_i - T_j)) and the ray k_p = (x_p / f, y_p / f, 1).
Gauss-Newton on reweighted residuals with Levenberg's damping; the inverse depths are eliminated
pixel by pixel, so a step solves for 6 T + 1 unknowns however fine the lattice is. All in NumPy: a
clip is solved once, on the host.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from align3r_jax.structs import OpticalFlow

MIN_Z = 1e-3  # of the unit ray; points at or behind the camera count as just before it


@dataclasses.dataclass(frozen=True)
class Observations:
    """Where the lattice pixels of every frame land in other frames.

    neighbour: (T, K) int, the other frame (the frame itself where weight is 0 throughout).
    xy: (P, 2) lattice pixels; target: (T, K, P, 2); both relative to the principal point.
    weight: (T, K, P) >= 0. lattice: (rows, columns) with rows * columns = P.
    """

    neighbour: np.ndarray
    xy: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    lattice: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Structure:
    """Poses, inverse depth and focal length of a clip.

    rotation: (T, 3, 3) and translation: (T, 3), world_from_cam. log_rho: (T, P) log inverse
    depth on the lattice. focal: pixels.
    """

    rotation: np.ndarray
    translation: np.ndarray
    log_rho: np.ndarray
    focal: float


@dataclasses.dataclass(frozen=True)
class BundleConfig:
    """scale_px: c of the robust loss. depth_weight: lambda_d; focal_weight: lambda_f, both per
    mean observation weight of a pixel. focal_bounds: of f / f0."""

    scale_px: float = 1.0
    depth_weight: float = 1e-3
    focal_weight: float = 0.01
    focal_prior: float | None = None  # f0, pixels
    focal_bounds: tuple[float, float] = (0.5, 2.6)
    fix_focal: bool = False
    iterations: int = 20
    tolerance: float = 1e-4  # stop when the cost falls by less than this fraction


def observe(
    flow: OpticalFlow,
    num_frames: int,
    principal: np.ndarray,
    xy: np.ndarray,
    lattice: tuple[int, int],
) -> Observations:
    """Samples the flow fields on a lattice of pixels.

    principal: (2,) and xy: (P, 2) int, pixels. Every frame gets the same number of slots.
    """
    pairs = flow.pairs.tolist()
    by_source = [[k for k, pair in enumerate(pairs) if pair[0] == i] for i in range(num_frames)]
    slots = max(1, max(len(fields) for fields in by_source))
    num = len(xy)
    neighbour = np.tile(np.arange(num_frames)[:, None], (1, slots))
    target = np.zeros((num_frames, slots, num, 2), np.float32)
    weight = np.zeros((num_frames, slots, num), np.float32)
    centred = (xy - principal).astype(np.float32)
    target[:] = centred
    for i, fields in enumerate(by_source):
        for slot, k in enumerate(fields):
            neighbour[i, slot] = pairs[k][1]
            target[i, slot] += flow.flow[k][xy[:, 1], xy[:, 0]]
            weight[i, slot] = flow.weight[k][xy[:, 1], xy[:, 0]]
    return Observations(neighbour, centred, target, weight, lattice)


def hat(vector: np.ndarray) -> np.ndarray:
    """(..., 3) -> (..., 3, 3) with hat(a) b = a x b."""
    x, y, z = np.moveaxis(vector, -1, 0)
    o = np.zeros_like(x)
    return np.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(*vector.shape[:-1], 3, 3)


def exp_rotation(vector: np.ndarray) -> np.ndarray:
    """Rodrigues: (..., 3) rotation vectors -> (..., 3, 3)."""
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    k = hat(vector)
    safe = np.maximum(angle, 1e-12)
    return np.eye(3) + np.sin(safe) / safe * k + (1 - np.cos(safe)) / safe**2 * (k @ k)


def relative(structure: Structure, obs: Observations) -> tuple[np.ndarray, np.ndarray]:
    """Returns Q = R_j^T R_i (T, K, 3, 3) and s = R_j^T (T_i - T_j) (T, K, 3) of every slot."""
    rotation, translation, j = structure.rotation, structure.translation, obs.neighbour
    back = np.swapaxes(rotation[j], -1, -2)
    shift = (back @ (translation[:, None] - translation[j])[..., None])[..., 0]
    return back @ rotation[:, None], shift


def project(structure: Structure, obs: Observations) -> tuple[np.ndarray, np.ndarray]:
    """Returns y (T, K, P, 3), points in camera j times rho, and q (T, K, P, 2), their pixels."""
    q, s = (a.astype(np.float32) for a in relative(structure, obs))
    ray = np.concatenate([obs.xy / structure.focal, np.ones((len(obs.xy), 1))], 1)
    y = ray.astype(np.float32) @ np.swapaxes(q, -1, -2)
    y += np.exp(structure.log_rho).astype(np.float32)[:, None, :, None] * s[:, :, None]
    y[..., 2] = np.maximum(y[..., 2], MIN_Z)
    return y, np.float32(structure.focal) * y[..., :2] / y[..., 2:]


def residual_norm(structure: Structure, obs: Observations) -> np.ndarray:
    """Returns (T, K, P): pixels between where a point lands and where the flow says."""
    return np.linalg.norm(project(structure, obs)[1] - obs.target, axis=-1)


def cost(
    structure: Structure,
    obs: Observations,
    prior: np.ndarray,
    trust: np.ndarray,
    config: BundleConfig,
) -> tuple[float, float]:
    """Returns the minimised cost and its flow part, both per unit of observation weight."""
    c2 = config.scale_px**2
    total = max(float(obs.weight.sum()), 1.0)
    squared = np.square(project(structure, obs)[1] - obs.target).sum(-1)
    data = float((obs.weight * c2 * np.log1p(squared / c2)).sum()) / total
    depth = float((trust * np.square(structure.log_rho - prior)).sum()) / max(trust.size, 1)
    focal = np.log(structure.focal / config.focal_prior) ** 2 if config.focal_prior else 0.0
    return data + config.depth_weight * depth + config.focal_weight * focal, data


def _normal_equations(structure, obs, prior, trust, config):
    """Returns the reduced system (H, g) over (w_0, u_0, w_1, ..., log f) and what is needed to
    find the inverse depths again: (h, g_rho, C, L)."""
    frames, slots = obs.neighbour.shape
    num = len(obs.xy)
    y, q = project(structure, obs)
    error = q - obs.target
    c2 = np.float32(config.scale_px**2)
    w = obs.weight / (1 + np.square(error).sum(-1) / c2)
    root = np.sqrt(w)[..., None]
    f = np.float32(structure.focal)
    rot, shift = relative(structure, obs)
    rho = np.exp(structure.log_rho).astype(np.float32)[:, None, :]
    inv = f / y[..., 2]
    a, b = q[..., 0] / f, q[..., 1] / f  # y_x / y_z, y_y / y_z
    yx, yy, yz = y[..., 0], y[..., 1], y[..., 2]
    jac = np.empty((frames, slots, num, 2, 8), np.float32)
    # d q = inv * (dy_xy - (a, b) dy_z); dy = omega x y + rho beta.
    jac[..., 0, 0] = -inv * a * yy
    jac[..., 0, 1] = inv * (yz + a * yx)
    jac[..., 0, 2] = -inv * yy
    jac[..., 1, 0] = -inv * (yz + b * yy)
    jac[..., 1, 1] = inv * b * yx
    jac[..., 1, 2] = inv * yx
    jac[..., 0, 3] = inv * rho
    jac[..., 0, 4] = 0
    jac[..., 0, 5] = -inv * rho * a
    jac[..., 1, 3] = 0
    jac[..., 1, 4] = inv * rho
    jac[..., 1, 5] = -inv * rho * b
    # log f: the pixel scales with f, the ray turns by dk = -(x / f, y / f, 0).
    flat = np.concatenate([obs.xy / -structure.focal, np.zeros((num, 1))], 1).astype(np.float32)
    dy = flat @ np.swapaxes(rot, -1, -2).astype(np.float32)
    jac[..., 0, 6] = inv * (dy[..., 0] - a * dy[..., 2]) + q[..., 0]
    jac[..., 1, 6] = inv * (dy[..., 1] - b * dy[..., 2]) + q[..., 1]
    s = shift.astype(np.float32)[:, :, None]
    jac[..., 0, 7] = inv * rho * (s[..., 0] - a * s[..., 2])
    jac[..., 1, 7] = inv * rho * (s[..., 1] - b * s[..., 2])
    jac *= root[..., None]
    error = error * root

    rows = jac.reshape(frames, slots, num * 2, 8)
    local = np.swapaxes(rows, -1, -2) @ rows  # (T, K, 8, 8)
    grad = (np.swapaxes(rows, -1, -2) @ error.reshape(frames, slots, num * 2, 1))[..., 0]
    along = jac[..., 7]
    cross = np.einsum("tkpac,tkpa->tkpc", jac[..., :7], along)  # (T, K, P, 7)
    lam = config.depth_weight * max(float(obs.weight.sum()), 1.0) / max(trust.size, 1)
    h = np.square(along).sum((1, 3)).astype(np.float64) + lam * trust + 1e-9
    g_rho = (along * error).sum((1, 3)) + lam * trust * (structure.log_rho - prior)
    return local, grad, cross, h, g_rho, rot, shift


def _slot_map(structure, obs, rot, shift):
    """(T, K, 6, 12): (w_i, u_i, w_j, u_j) -> (omega, beta) of each slot."""
    back = np.swapaxes(structure.rotation[obs.neighbour], -1, -2)
    out = np.zeros((*obs.neighbour.shape, 6, 12))
    out[..., :3, 0:3] = rot
    out[..., 3:, 0:3] = hat(shift) @ rot
    out[..., 3:, 3:6] = back
    out[..., :3, 6:9] = -np.eye(3)
    out[..., 3:, 9:12] = -back
    return out


def _reduce(structure, obs, system, damping):
    local, grad, cross, h, g_rho, rot, shift = system
    frames, slots = obs.neighbour.shape
    size = 6 * frames + 1
    maps = _slot_map(structure, obs, rot, shift)
    damped = h * (1 + damping)
    width = 6 * slots + 1
    c = np.concatenate(
        [
            np.swapaxes(cross[..., :6], 1, 2).reshape(frames, -1, 6 * slots),
            cross[..., 6].sum(1)[..., None],
        ],
        -1,
    )  # (T, P, 6K+1)
    scaled = c / damped[..., None].astype(np.float32)
    hess = -(np.swapaxes(scaled, -1, -2) @ c).astype(np.float64)
    g = -(np.swapaxes(scaled, -1, -2) @ g_rho[..., None].astype(np.float32))[..., 0].astype(
        np.float64
    )
    for k in range(slots):
        sl = slice(6 * k, 6 * k + 6)
        hess[:, sl, sl] += local[:, k, :6, :6]
        hess[:, sl, -1] += local[:, k, :6, 6]
        hess[:, -1, sl] += local[:, k, :6, 6]
        g[:, sl] += grad[:, k, :6]
    hess[:, -1, -1] += local[:, :, 6, 6].sum(1)
    g[:, -1] += grad[:, :, 6].sum(1)
    total = np.zeros((size, size))
    gradient = np.zeros(size)
    full = np.zeros((frames, width, 6 * (slots + 1) + 1))
    for k in range(slots):
        full[:, 6 * k : 6 * k + 6, :6] = maps[:, k, :, :6]
        full[:, 6 * k : 6 * k + 6, 6 * k + 6 : 6 * k + 12] = maps[:, k, :, 6:]
    full[:, -1, -1] = 1
    hess = np.swapaxes(full, -1, -2) @ hess @ full
    g = (np.swapaxes(full, -1, -2) @ g[..., None])[..., 0]
    for i in range(frames):
        ids = np.concatenate(
            [np.arange(6 * i, 6 * i + 6)]
            + [np.arange(6 * j, 6 * j + 6) for j in obs.neighbour[i]]
            + [[size - 1]]
        ).astype(int)
        np.add.at(total, (ids[:, None], ids[None]), hess[i])
        np.add.at(gradient, ids, g[i])
    return total, gradient, c, damped, full


def _step(structure, obs, system, damping, config):
    total, gradient, c, damped, full = _reduce(structure, obs, system, damping)
    frames, slots = obs.neighbour.shape
    g_rho = system[4]
    weight = max(float(obs.weight.sum()), 1.0)
    if config.focal_prior:
        total[-1, -1] += config.focal_weight * weight
        gradient[-1] += config.focal_weight * weight * np.log(structure.focal / config.focal_prior)
    free = np.arange(6, 6 * frames + (0 if config.fix_focal else 1))
    reduced = total[np.ix_(free, free)]
    diagonal = np.diag(reduced)
    floor = (
        np.concatenate([np.tile([1e-6] * 6, frames - 1), [] if config.fix_focal else [1e-9]])
        * weight
    )
    reduced = reduced + np.diag(damping * np.maximum(diagonal, 0) + floor)
    delta = np.zeros(6 * frames + 1)
    delta[free] = -np.linalg.solve(reduced, gradient[free])
    per = np.zeros((frames, 6 * (slots + 1) + 1))
    for i in range(frames):
        ids = np.concatenate(
            [np.arange(6 * i, 6 * i + 6)]
            + [np.arange(6 * j, 6 * j + 6) for j in obs.neighbour[i]]
            + [[6 * frames]]
        ).astype(int)
        per[i] = delta[ids]
    local = full @ per[..., None]
    back = (c @ local.astype(np.float32))[..., 0]
    log_rho = structure.log_rho + np.clip(-(g_rho + back) / damped, -0.7, 0.7)
    pose = delta[:-1].reshape(frames, 6)
    rotation = structure.rotation @ exp_rotation(pose[:, :3])
    focal = structure.focal * np.exp(np.clip(delta[-1], -0.2, 0.2))
    if config.focal_prior:
        focal = float(np.clip(focal, *(b * config.focal_prior for b in config.focal_bounds)))
    return Structure(rotation, structure.translation + pose[:, 3:], log_rho, focal)


def bundle(
    structure: Structure,
    obs: Observations,
    prior: np.ndarray,
    trust: np.ndarray,
    config: BundleConfig,
) -> tuple[Structure, float, float]:
    """Refines a start. prior, trust: (T, P). Returns (structure, cost, flow part of the cost)."""
    current, data = cost(structure, obs, prior, trust, config)
    damping = 1e-3
    for _ in range(config.iterations):
        system = _normal_equations(structure, obs, prior, trust, config)
        improved = False
        for _ in range(5):
            trial = _step(structure, obs, system, damping, config)
            value, trial_data = cost(trial, obs, prior, trust, config)
            if value < current:
                improved = True
                break
            damping *= 8
        if not improved:
            break
        gain = current - value
        structure, current, data = trial, value, trial_data
        damping = max(damping / 4, 1e-7)
        if gain < config.tolerance * current:
            break
    return structure, current, data
