"""A small world with exact depth, cameras and motion, ray-cast in NumPy: floor, wall, two spheres,
one of them moving; solid textures made of waves."""

from __future__ import annotations

import dataclasses

import numpy as np

from align3r_jax.predictors import flow_lattice
from align3r_jax.predictors.flow_lattice import Observations, Structure
from align3r_jax.structs import Frames, WorkingSize

HEIGHT, WIDTH, FOCAL = 96, 128, 115.0


@dataclasses.dataclass(frozen=True)
class Clip:
    frames: Frames
    depth: np.ndarray  # (T, H, W)
    world_from_cam: np.ndarray  # (T, 4, 4)
    dynamic_mask: np.ndarray  # (T, H, W)


def camera_path(count: int, speed: float = 0.04) -> np.ndarray:
    """A hand-held path: sideways and forward, with rotation that sways."""
    k = np.arange(count)[:, None]
    turn = np.concatenate([0.3 * np.sin(0.9 * k), 0.5 * k, 0.4 * np.sin(0.7 * k + 1)], 1)
    pose = np.tile(np.eye(4), (count, 1, 1))
    pose[:, :3, :3] = flow_lattice.exp_rotation(np.deg2rad(turn))
    sway = 0.1 * np.sin(0.8 * k)
    pose[:, :3, 3] = speed * np.concatenate([-k, 0.3 * k + sway, 0.4 * k - sway], 1)
    return pose


def render(world_from_cam: np.ndarray, mover_speed: float = 0.05, texture_seed: int = 0) -> Clip:
    """Renders the world from the cameras; the mover advances `mover_speed` per frame."""
    rng = np.random.default_rng(texture_seed)
    waves, phases = rng.normal(size=(24, 3)) * 12, rng.uniform(0, 6.28, 24)
    x, y = np.meshgrid(np.arange(WIDTH) - WIDTH / 2, np.arange(HEIGHT) - HEIGHT / 2)
    ray = np.stack([x / FOCAL, y / FOCAL, np.ones_like(x)], -1)
    images, depths, masks = [], [], []
    for k, pose in enumerate(world_from_cam):
        origin, direction = pose[:3, 3], ray @ pose[:3, :3].T
        mover = np.array([0.5 - mover_speed * k, 0.3, 1.9])
        hits = [
            (0.7 - origin[1]) / np.where(direction[..., 1] > 1e-6, direction[..., 1], 1e-6),
            (4.0 - origin[2]) / direction[..., 2],
            _sphere(origin, direction, np.array([-0.6, 0.3, 2.3]), 0.4),
            _sphere(origin, direction, mover, 0.28),
        ]
        nearest = np.argmin(hits, 0)
        depth = np.min(hits, 0)
        points = origin + direction * depth[..., None]
        points = np.where((nearest == 3)[..., None], points - mover + 7.0, points)
        shade = np.sin(points @ waves.T + phases).sum(-1)
        shade = 128 + 17 * shade + 20 * (nearest - 1.5)
        images.append(np.clip(shade + rng.normal(size=shade.shape), 0, 255))
        depths.append(depth)
        masks.append(nearest == 3)
    grey = np.round(np.stack(images)).astype(np.uint8)
    size = (HEIGHT, WIDTH)
    frames = Frames(
        images=np.repeat(grey[..., None], 3, -1),
        times=np.arange(len(grey)) / 10,
        size=WorkingSize(original=size, resized=size, crop=(0, 0), working=size),
        names=tuple(str(k) for k in range(len(grey))),
    )
    return Clip(frames, np.stack(depths), world_from_cam, np.stack(masks))


def _sphere(origin, direction, centre, radius):
    offset = origin - centre
    a, b = (direction**2).sum(-1), direction @ offset
    inside = b * b - a * (offset @ offset - radius**2)
    return np.where(inside > 0, (-b - np.sqrt(np.maximum(inside, 0))) / a, np.inf)


def exact_problem(
    count: int, offsets=(1, 2, 4), lattice=(9, 12), speed: float = 0.04, seed: int = 0
) -> tuple[Structure, Observations]:
    """A random static relief with exact observations, no images involved."""
    rng = np.random.default_rng(seed)
    rows, columns = lattice
    y, x = np.mgrid[:rows, :columns]
    xy = np.stack([x - columns / 2 + 0.5, y - rows / 2 + 0.5], -1).reshape(-1, 2) * 10.0
    pose = camera_path(count, speed)
    log_rho = -np.log(2 + 0.5 * rng.uniform(-1, 1, (count, rows * columns)))
    truth = Structure(pose[:, :3, :3], pose[:, :3, 3], log_rho, FOCAL)
    steps = [step * sign for step in offsets for sign in (1, -1)]
    neighbour = np.arange(count)[:, None] + np.array(steps)
    outside = (neighbour < 0) | (neighbour >= count)
    neighbour = np.where(outside, np.arange(count)[:, None], neighbour)
    weight = np.repeat(~outside[..., None], rows * columns, -1).astype(np.float32)
    shape = (*neighbour.shape, rows * columns, 2)
    xy, nothing = xy.astype(np.float32), np.zeros(shape, np.float32)
    obs = Observations(neighbour, xy, nothing, weight, lattice)
    target = flow_lattice.project(truth, obs)[1]
    return truth, dataclasses.replace(obs, target=target)


def trajectory_error(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(T, 4, 4) each: position error after a similarity as a share of a standing camera's, and
    mean rotation error per step as a share of a standing camera's."""
    source, target = found[:, :3, 3], truth[:, :3, 3]
    a, b = source - source.mean(0), target - target.mean(0)
    u, d, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1, 1, np.linalg.det(u @ vt)])
    scale = np.trace(np.diag(d) @ sign) / max((a**2).sum(), 1e-12)
    miss = scale * a @ (u @ sign @ vt).T - b
    turns = [np.swapaxes(p[:-1, :3, :3], 1, 2) @ p[1:, :3, :3] for p in (found, truth)]
    wrong = np.swapaxes(turns[0], 1, 2) @ turns[1]
    return float(np.sqrt((miss**2).sum() / (b**2).sum())), float(
        np.mean(_angle(wrong)) / np.mean(_angle(turns[1]))
    )


def _angle(rotation: np.ndarray) -> np.ndarray:
    return np.arccos(np.clip((np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2, -1, 1))


def depth_error(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean of |s d - g| / g with one median scale s for the clip."""
    scale = np.median(truth / found)
    return float(np.mean(np.abs(scale * found - truth) / truth))
