"""Starting points for the bundle: where its many local minima lie, and how to get near each.

Rotation and sideways translation look alike in a small field of view, and turning one into the
other flattens or inverts the depth, so that descent from one start stops in the wrong valley.
`directions` therefore scans every direction of translation of a pair of frames, for each the best
rotation; its local minima, and the depth prior, each `grow` to a whole clip; the lowest cost wins.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from align3r_jax.predictors import flow_bundle, flow_lattice
from align3r_jax.predictors.flow_lattice import Observations, Structure
from align3r_jax.predictors.flow_normal import BundleConfig

_NUM_DIRECTIONS = 240  # over a half sphere: 9 degrees apart
_NEIGHBOURHOOD = np.cos(np.deg2rad(13))
_SEPARATION = np.cos(np.deg2rad(25))
_SCAN_SCALE_PX = 0.3  # of the robust loss of the scan
_GROW_SCALE_PX = 1.0
_RELIEF = np.log(5)  # start depths lie within this of their median


def half_sphere(count: int = _NUM_DIRECTIONS) -> np.ndarray:
    """Returns (count, 3) unit vectors spread evenly over z > 0 (Fibonacci lattice)."""
    k = np.arange(count) + 0.5
    z = 1 - k / count
    angle = np.pi * (1 + np.sqrt(5)) * k
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], 1)


@dataclasses.dataclass(frozen=True)
class Scan:
    """Instantaneous motion for every direction: translation and rotation vector (N, 3) of camera
    j in camera i, inverse depth (N, P) in units of the translation, cost (N,)."""

    translation: np.ndarray
    rotation: np.ndarray
    rho: np.ndarray
    cost: np.ndarray


def directions(
    xy: np.ndarray, flow: np.ndarray, weight: np.ndarray, focal: float, iterations: int = 4
) -> Scan:
    """Scans the directions of translation t of the second camera.

    flow = rho A(t) + B omega (Longuet-Higgins and Prazdny 1980); what is orthogonal to A(t) does
    not depend on depth (Heeger and Jepson 1992), so omega follows by reweighted least squares;
    negative depths cost what they miss. xy, flow: (P, 2) pixels from the principal point.
    """
    t = half_sphere()
    x, y = xy[:, 0] / focal, xy[:, 1] / focal
    along = focal * np.stack([x * t[:, 2:] - t[:, :1], y * t[:, 2:] - t[:, 1:2]], -1)  # (N, P, 2)
    length = np.maximum(np.sqrt(flow_lattice.squared_length(along)), 1e-6)[..., None]
    along = along / length
    across = np.stack([-along[..., 1], along[..., 0]], -1)
    turning = focal * np.stack(
        [np.stack([x * y, -(1 + x * x), y], -1), np.stack([1 + y * y, -x * y, -x], -1)], 1
    )
    turn_across = across[..., :1] * turning[:, 0] + across[..., 1:] * turning[:, 1]
    flow_across = across[..., 0] * flow[:, 0] + across[..., 1] * flow[:, 1]
    flow_along = along[..., 0] * flow[:, 0] + along[..., 1] * flow[:, 1]
    turn_along = along[..., :1] * turning[:, 0] + along[..., 1:] * turning[:, 1]
    w = np.tile(weight.astype(float), (len(t), 1))
    for _ in range(iterations):
        weighted = turn_across * w[..., None]
        normal = np.swapaxes(weighted, 1, 2) @ turn_across + 1e-6 * np.eye(3)
        right = (np.swapaxes(weighted, 1, 2) @ flow_across[..., None])[..., 0]
        omega = np.linalg.solve(normal, right[..., None])
        miss = flow_across - (turn_across @ omega)[..., 0]
        reach = flow_along - (turn_along @ omega)[..., 0]
        sign = np.where((weight * reach).sum(1, keepdims=True) >= 0, 1.0, -1.0)
        reach = reach * sign
        squared = (np.square(miss) + np.square(np.minimum(reach, 0))) / _SCAN_SCALE_PX**2
        w = weight / (1 + squared)
    cost = (weight * np.log1p(squared)).sum(1) / max(weight.sum(), 1e-9)
    return Scan(t * sign, omega[..., 0], reach / length[..., 0], cost)


def local_minima(scan: Scan, count: int) -> list[int]:
    """Returns up to `count` directions that cost less than all near them, cheapest first."""
    closeness = np.abs(scan.translation @ scan.translation.T)
    around = np.where(closeness > _NEIGHBOURHOOD, scan.cost[None], np.inf).min(1)
    kept: list[int] = []
    for k in np.argsort(scan.cost):
        if scan.cost[k] <= around[k] and all(closeness[k, q] < _SEPARATION for q in kept):
            kept.append(int(k))
    return kept[:count]


def seed_pairs(obs: Observations, count: int) -> list[tuple[int, int]]:
    """Returns (frame, slot) of pairs with much flow that is mostly consistent, one per stretch of
    the clip."""
    share = obs.weight.mean(-1)
    motion = np.sqrt(flow_lattice.squared_length(obs.target - obs.xy))
    moved = (obs.weight * motion).sum(-1) / np.maximum(obs.weight.sum(-1), 1e-9)
    score = np.where(share > 0.2, moved * share**2, 0)
    seeds = []
    for stretch in np.array_split(np.arange(len(score)), min(count, len(score))):
        frame, slot = np.unravel_index(np.argmax(score[stretch]), score[stretch].shape)
        if score[stretch[frame], slot] > 0:
            seeds.append((int(stretch[frame]), int(slot)))
    return seeds


def resect(
    structure: Structure,
    obs: Observations,
    frame: int,
    known: list[int],
    starts: list[tuple[np.ndarray, np.ndarray]],
    iterations: int = 8,
) -> tuple[np.ndarray, np.ndarray]:
    """Camera of `frame` from the points of `known` frames and where their flow says they land.

    Robust Gauss-Newton from the cheapest of `starts` (rotation, translation). Returns the same.
    """
    ray = np.concatenate([obs.xy / structure.focal, np.ones((len(obs.xy), 1))], 1)
    rows = [
        (m, slot)
        for m in known
        for slot in np.flatnonzero(obs.neighbour[m] == frame)
        if obs.weight[m, slot].any()
    ]
    if not rows:
        return starts[0]
    rho = np.concatenate([np.exp(structure.log_rho[m]) for m, _ in rows])
    points = np.concatenate([ray @ structure.rotation[m].T for m, _ in rows]) + rho[
        :, None
    ] * np.repeat([structure.translation[m] for m, _ in rows], len(ray), 0)
    target = np.concatenate([obs.target[row] for row in rows])
    weight = np.concatenate([obs.weight[row] for row in rows])
    focal, scale2 = structure.focal, _GROW_SCALE_PX**2

    def miss(rotation, translation):
        seen = (points - rho[:, None] * translation) @ rotation
        seen[:, 2] = np.maximum(seen[:, 2], flow_lattice.MIN_Z)
        pixel = focal * seen[:, :2] / seen[:, 2:]
        squared = flow_lattice.squared_length(pixel - target)
        return seen, pixel, squared, (weight * np.log1p(squared / scale2)).sum()

    rotation, translation = min(starts, key=lambda start: miss(*start)[3])
    seen, pixel, squared, value = miss(rotation, translation)
    damping = 1e-4
    for _ in range(iterations):
        (a, b), inverse = (pixel / focal).T, focal / seen[:, 2]
        zero = np.zeros_like(a)
        slope = np.stack(
            [
                np.stack([inverse, zero, -inverse * a], -1),
                np.stack([zero, inverse, -inverse * b], -1),
            ],
            1,
        )
        jacobian = np.concatenate(
            [slope @ flow_lattice.hat(seen), -rho[:, None, None] * (slope @ rotation.T)], -1
        ).reshape(-1, 6)
        w = np.repeat(weight / (1 + squared / scale2), 2)
        normal = (jacobian * w[:, None]).T @ jacobian
        gradient = (jacobian * w[:, None]).T @ (pixel - target).ravel()
        normal += np.diag(damping * np.diag(normal) + 1e-9 * np.trace(normal) + 1e-12)
        step = -np.linalg.solve(normal, gradient)
        trial = rotation @ flow_lattice.exp_rotation(step[:3]), translation + step[3:]
        found = miss(*trial)
        if found[3] >= value:
            damping *= 10
            continue
        gain = value - found[3]
        (rotation, translation), (seen, pixel, squared, value) = trial, found
        damping = max(damping / 5, 1e-7)
        if gain < 1e-4 * value:
            break
    return rotation, translation


def carry_depth(
    structure: Structure, obs: Observations, frame: int, known: list[int]
) -> np.ndarray:
    """Log inverse depth (P,) of `frame`, read off the known frames where its flow points."""
    rows, columns = obs.lattice
    step = obs.xy[1, 0] - obs.xy[0, 0] if columns > 1 else 1.0
    total = np.zeros(len(obs.xy))
    count = np.zeros(len(obs.xy))
    for slot, m in enumerate(obs.neighbour[frame]):
        if m == frame or m not in known:
            continue
        cell = np.rint((obs.target[frame, slot] - obs.xy[0]) / step).astype(int)
        cell = np.clip(cell[:, 1], 0, rows - 1) * columns + np.clip(cell[:, 0], 0, columns - 1)
        ray = np.concatenate(
            [obs.target[frame, slot] / structure.focal, np.ones((len(cell), 1))], 1
        )
        depth = np.exp(-structure.log_rho[m][cell])[:, None]
        world = (ray * depth) @ structure.rotation[m].T + structure.translation[m]
        z = ((world - structure.translation[frame]) @ structure.rotation[frame])[:, 2]
        trusted = obs.weight[frame, slot] * (z > 1e-2)
        total -= trusted * np.log(np.maximum(z, 1e-2))
        count += trusted
    if not count.any():
        return structure.log_rho[known[-1]].copy()
    found = total / np.maximum(count, 1e-9)
    return np.where(count > 0, found, np.median(found[count > 0]))


def grow(structure: Structure, obs: Observations, known: list[int], wanted: list[int]) -> Structure:
    """Adds the `wanted` frames to the `known` ones, nearest first: camera, then depth."""
    rotation, translation = structure.rotation.copy(), structure.translation.copy()
    log_rho = structure.log_rho.copy()
    result = Structure(rotation, translation, log_rho, structure.focal)
    known, seed = list(known), known[0]
    for frame in sorted(wanted, key=lambda k: min(abs(k - m) for m in known)):
        near = sorted(known, key=lambda m: abs(m - frame))
        first = near[0]
        starts = [(rotation[first], translation[first])]
        before = 2 * first - frame
        if before in known:
            turn = rotation[before].T @ rotation[first]
            starts.append((rotation[first] @ turn, 2 * translation[first] - translation[before]))
        use = near[:6] + ([seed] if seed not in near[:6] else [])
        rotation[frame], translation[frame] = resect(result, obs, frame, use, starts)
        log_rho[frame] = carry_depth(result, obs, frame, use)
        known.append(frame)
    return result


def candidates(
    obs: Observations, prior: np.ndarray | None, focals: list[float], seeds: int, minima: int
) -> list[Structure]:
    """Whole-clip starts: a plane, the prior (T, P; log inverse depth) and scanned directions."""
    frames, num = len(obs.neighbour), len(obs.xy)
    found = []
    for frame, slot in seed_pairs(obs, seeds) or [(0, 0)]:
        flow, weight = obs.target[frame, slot] - obs.xy, obs.weight[frame, slot]
        reliefs: list[tuple[float, np.ndarray]] = []
        for focal in focals:
            reliefs.append((focal, np.zeros(num)))
            if prior is not None:
                reliefs.append((focal, prior[frame] - np.median(prior[frame])))
            if not weight.any():
                continue
            scan = directions(obs.xy, flow, weight, focal)
            for k in local_minima(scan, minima):
                middle = np.median(scan.rho[k][weight > 0])
                if middle > 0:
                    relief = np.log(np.maximum(scan.rho[k] / middle, 1e-6))
                    relief = np.where(weight > 0, np.clip(relief, -_RELIEF, _RELIEF), 0)
                    reliefs.append((focal, relief))
        for focal, relief in reliefs:
            log_rho = np.zeros((frames, num))
            log_rho[frame] = relief
            start = Structure(
                np.tile(np.eye(3), (frames, 1, 1)), np.zeros((frames, 3)), log_rho, focal
            )
            others = [k for k in range(frames) if k != frame]
            found.append(grow(start, obs, [frame], others))
    return found


def best_starts(
    starts: list[Structure],
    obs: Observations,
    prior: np.ndarray,
    config: BundleConfig,
    count: int,
) -> list[Structure]:
    """Refines the starts in rounds of growing length and sharper loss, dropping the costlier.

    A blunt loss would let a moving object pull every start into one and the same valley.
    """
    pool = [(flow_bundle.cost(start, obs, prior, config), start) for start in starts]
    for keep, iterations, scale in ((10, 4, 0.5), (4, 8, 0.25), (count, 8, 0.25)):
        pool = sorted(pool, key=lambda entry: entry[0])[:keep]
        limited = dataclasses.replace(config, iterations=iterations, scale_px=scale)
        refined = [flow_bundle.bundle(start, obs, prior, limited) for _, start in pool]
        pool = [(cost, structure) for structure, cost in refined]
    return [start for _, start in sorted(pool, key=lambda entry: entry[0])]
