"""A wavy wall seen by a moving camera, in closed form, and what a good predictor says of it."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from align3r_jax import pairing
from align3r_jax.config import AlignmentConfig
from align3r_jax.structs import OpticalFlow, PairGraph, PairPredictions

T, H, W, FOCAL = 4, 16, 24, 22.0
INTRINSICS = np.array([[FOCAL, 0, W / 2], [0, FOCAL, H / 2], [0, 0, 1]])

# One for all tests, so that the loop compiles once. Smoothness weighs translations in the unit of
# the scene: without it no unit is left.
CONFIG = AlignmentConfig(iterations=20, smoothness_weight=0.0)


def graph(frames: int = T) -> PairGraph:
    """All pairs, both directions."""
    return pairing.make_pairs(frames, "complete")


def path(frames: int = T, travel: float = 0.12, turn: float = 2.0) -> np.ndarray:
    """(T, 4, 4) world_from_cam: sideways and forward by `travel`, turning by `turn` degrees."""
    poses = np.tile(np.eye(4), (frames, 1, 1))
    for k in range(frames):
        angles = np.deg2rad(turn) * np.array([np.sin(k), k, 0.5 * np.cos(k)])
        poses[k, :3, :3] = Rotation.from_rotvec(angles).as_matrix()
        poses[k, :3, 3] = travel * k * np.array([1, 0.2 * (-1) ** k, 0.3])
    return poses


def depths(poses: np.ndarray, relief: float = 0.2, frequency: float = 2.0) -> np.ndarray:
    """(T, H, W): z of the wall Z = 2 + relief cos(f X) cos(f Y), by fixed-point iteration."""
    rays = _rays()
    maps = []
    for pose in poses:
        z = np.full((H, W), 2.0)
        for _ in range(60):
            point = (rays * z[..., None]) @ pose[:3, :3].T + pose[:3, 3]
            wall = 2 + relief * np.cos(frequency * point[..., 0]) * np.cos(
                frequency * point[..., 1]
            )
            z = z + 0.7 * (wall - point[..., 2])
        maps.append(z)
    return np.stack(maps)


def _rays() -> np.ndarray:
    rows, columns = np.mgrid[:H, :W]
    pixels = np.stack([columns, rows, np.ones((H, W))], -1)
    return pixels @ np.linalg.inv(INTRINSICS).T


def predictions(
    poses: np.ndarray, depth: np.ndarray, pairs: PairGraph, *, noise: float = 0.003, seed: int = 0
) -> PairPredictions:
    """What a good predictor says: every pair in a scale of its own, with relative noise."""
    rng = np.random.default_rng(seed)
    points = [
        (_rays() * z[..., None]) @ pose[:3, :3].T + pose[:3, 3] for pose, z in zip(poses, depth)
    ]
    views: tuple[list, list] = ([], [])
    for i, j in pairs.pairs:
        scale = np.exp(0.3 * rng.standard_normal())
        for side, frame in enumerate((i, j)):
            local = (points[frame] - poses[i, :3, 3]) @ poses[i, :3, :3]
            views[side].append(scale * local * (1 + noise * rng.standard_normal((H, W, 1))))
    confidence = 2 + 3 * rng.uniform(size=(2, pairs.num_pairs, H, W))
    return PairPredictions(
        *(np.asarray(view, np.float32) for view in views), *confidence.astype(np.float32)
    )


def flow(poses: np.ndarray, depth: np.ndarray, pairs: PairGraph) -> OpticalFlow:
    """The exact flow of every pair of the standing wall."""
    fields = []
    for i, j in pairs.pairs:
        point = (_rays() * depth[i][..., None]) @ poses[i, :3, :3].T + poses[i, :3, 3]
        local = (point - poses[j, :3, 3]) @ poses[j, :3, :3] @ INTRINSICS.T
        rows, columns = np.mgrid[:H, :W]
        fields.append(local[..., :2] / local[..., 2:] - np.stack([columns, rows], -1))
    values = np.asarray(fields, np.float32)
    return OpticalFlow(pairs.pairs, values, np.ones(values.shape[:3], np.float32))


def errors(
    found_poses: np.ndarray, found_depth: np.ndarray, poses: np.ndarray, depth: np.ndarray
) -> tuple[float, float]:
    """Mean relative rotation error (degrees) against the first frame, and Abs Rel of depth."""
    found_poses = np.asarray(found_poses, np.float64)
    turns = [np.linalg.inv(p[0])[:3, :3] @ p[:, :3, :3] for p in (found_poses, poses)]
    between = np.einsum("tji,tjk->tik", turns[0], turns[1])
    cosine = np.clip((np.trace(between, axis1=1, axis2=2) - 1) / 2, -1, 1)
    ratio = np.asarray(found_depth, np.float64) / depth
    return float(np.rad2deg(np.arccos(cosine)).mean()), float(
        np.mean(np.abs(ratio / np.median(ratio) - 1))
    )
