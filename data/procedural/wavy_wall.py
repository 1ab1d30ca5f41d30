"""The world of the recorded alignments: a wavy wall, a ball that moves, a camera in front of them.

Any number of frames of any size, and what a network would say of its pairs, in NumPy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from align3r_jax.structs import PairGraph, PairPredictions
from data.procedural.oracle import smooth

_SURFACE_STEPS = 60
_BALL_RADIUS = 0.45


class World(NamedTuple):
    """world_from_cam (T, 4, 4), depth (T, H, W), and the rays (H, W, 3) of all cameras."""

    world_from_cam: np.ndarray
    depth: np.ndarray
    rays: np.ndarray


def world(frames: int, height: int, width: int) -> World:
    """Returns the wall and the ball as every camera sees them; the focal is 0.9 widths."""
    focal = 0.9 * width
    rows, columns = np.mgrid[:height, :width]
    rays = np.stack([(columns - width / 2) / focal, (rows - height / 2) / focal,
                     np.ones((height, width))], -1)  # fmt: skip
    poses, depths = np.tile(np.eye(4), (frames, 1, 1)), []
    for k in range(frames):
        s = k / (frames - 1)
        poses[k, :3, 3] = 0.5 * np.sin(1.3 * s), -0.1 * s, 0.25 * s
        angles = [0.02 * np.sin(3 * s), -0.15 * s, 0.05 * s]
        poses[k, :3, :3] = Rotation.from_euler("ZYX", angles).as_matrix()
        seen, centre = rays @ poses[k, :3, :3].T, poses[k, :3, 3]
        depth = np.full((height, width), 4.0)
        for _ in range(_SURFACE_STEPS):
            x, y, _ = np.moveaxis(centre + depth[..., None] * seen, -1, 0)
            wall = 4 + 0.5 * np.sin(1.1 * x + 0.3) + 0.4 * np.cos(0.9 * y) + 0.15 * x
            depth = (wall - centre[2]) / seen[..., 2]
        towards = np.array([-0.5 + 0.9 * s**2, 0.1 - 0.15 * s, 2.6]) - centre
        along, length = seen @ towards, np.sum(seen**2, axis=-1)
        inside = along**2 - length * (towards @ towards - _BALL_RADIUS**2)
        ball = (along - np.sqrt(np.maximum(inside, 0))) / length
        depths.append(np.where((inside > 0) & (ball > 0) & (ball < depth), ball, depth))
    return World(poses, np.stack(depths), rays)


def predict(truth: World, graph: PairGraph, seed: int = 0) -> PairPredictions:
    """Returns what a network would say, with scale, bend, noise and outliers of every pair."""
    rng = np.random.default_rng(seed)
    shape = truth.depth.shape[1:]
    views: tuple[list, list] = ([], [])
    confidences: tuple[list, list] = ([], [])
    for pair in graph.pairs.tolist():
        scale, bend = np.exp(0.3 * rng.standard_normal()), 1 + 0.02 * rng.standard_normal()
        camera = truth.world_from_cam[pair[0]]
        for side, frame in enumerate(pair):
            pose = truth.world_from_cam[frame]
            points = (truth.rays * truth.depth[frame][..., None]) @ pose[:3, :3].T + pose[:3, 3]
            points = (points - camera[:3, 3]) @ camera[:3, :3]
            confidence = 1 + np.exp(1.2 + 0.8 * smooth(rng, *shape))
            points = points * [bend, bend, 1] * (1 + 0.01 * smooth(rng, *shape)[..., None])
            noise = 0.03 / np.sqrt(confidence)[..., None] * rng.standard_normal((*shape, 3))
            points = points + noise * points[..., 2:] * [0.3, 0.3, 1]
            outlier = rng.uniform(size=shape) < 0.01
            points = scale * points * np.where(outlier, 1.15, 1)[..., None]
            views[side].append(points.astype(np.float32))
            confidences[side].append(np.where(outlier, 1.05, confidence).astype(np.float32))
    return PairPredictions(*(np.stack(v) for v in views), *(np.stack(c) for c in confidences))
