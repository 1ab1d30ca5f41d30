"""Scene -> coloured world points, with what should not be in a cloud left out; PLY files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import trimesh

from align3r_jax.geometry import pointmap
from align3r_jax.structs import Scene


@dataclasses.dataclass(frozen=True)
class PointFilter:
    """Which pixels become points.

    min_confidence: pixels below are dropped (1.1 is the DUSt3R and MonST3R demos' threshold).
    edge: pixels whose inverse depth bends by more than this fraction are dropped (flying pixels
    at depth discontinuities); 0 keeps all. dynamic: "drop" leaves moving things out, because over
    time they smear; "only" keeps nothing else. max_points: a random subset beyond it, the same in
    every run.
    """

    min_confidence: float = 1.1
    edge: float = 0.04
    dynamic: Literal["drop", "keep", "only"] = "drop"
    max_points: int | None = 500_000


@dataclasses.dataclass(frozen=True)
class PointCloud:
    """points: (N, 3) float32, world. colours: (N, 3) uint8. frame: (N,) int32, ascending."""

    points: np.ndarray
    colours: np.ndarray
    frame: np.ndarray

    def __len__(self) -> int:
        return len(self.points)


def depth_edges(depth: np.ndarray, threshold: float) -> np.ndarray:
    """Returns (..., H, W) bool: |q[x-1] - 2 q[x] + q[x+1]| > threshold * q[x], or so along y.

    q = 1 / depth is affine in the pixel on every plane, however slanted, so a plane seen at a
    grazing angle has no edges, which a test on the depth's own steps would find.
    depth: (..., H, W); where it or a neighbour is not a positive number (or outside) there is
    nothing to compare with, hence no edge.
    """
    valid = np.isfinite(depth) & (depth > 0)
    inverse = np.where(valid, 1.0 / np.where(valid, depth, 1.0).astype(np.float64), np.nan)
    bend = np.zeros_like(inverse)
    for axis in (-1, -2):
        if inverse.shape[axis] < 3:
            continue
        inner = np.abs(np.diff(inverse, n=2, axis=axis))
        width = [(0, 0)] * inverse.ndim
        width[axis] = (1, 1)
        bend = np.fmax(bend, np.pad(inner, width))
    return bend > threshold * inverse


def kept_pixels(scene: Scene, rules: PointFilter) -> np.ndarray:
    """Returns (T, H, W) bool: the pixels that `rules` let into the cloud (before max_points)."""
    return np.stack([_kept(scene, rules, t) for t in range(len(scene.depth))])


def sampled_pixels(
    scene: Scene, rules: PointFilter | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (t, pixels) of each frame with points: (n,) ascending row-major numbers of pixels."""
    rules = rules or PointFilter()
    keep = kept_pixels(scene, rules)
    counts = keep.reshape(len(keep), -1).sum(1)
    wanted, generator = counts, np.random.default_rng(0)
    if rules.max_points is not None and counts.sum() > rules.max_points:
        # How many of a random subset fall on each frame; no list of all pixels is needed.
        wanted = generator.multivariate_hypergeometric(counts, rules.max_points)
    for t in np.flatnonzero(wanted):
        pixels = np.flatnonzero(keep[t])
        if wanted[t] < len(pixels):
            pixels = np.sort(generator.choice(pixels, wanted[t], replace=False))
        yield int(t), pixels


def frame_points(scene: Scene, t: int) -> np.ndarray:
    """Returns (H * W, 3) float32: all pixels of frame t in the world, X = pose . D K^-1 (x, y, 1).

    One frame at a time, so that the points of all pixels of a long video need not fit into memory;
    always the whole image, because another shape would compile again.
    """
    in_world = pointmap.in_world(scene.depth[t], scene.intrinsics[t], scene.world_from_cam[t])
    return np.asarray(in_world, np.float32).reshape(-1, 3)


def from_scene(scene: Scene, rules: PointFilter | None = None) -> PointCloud:
    """Returns the scene's pixels as world points, frame after frame; may be empty.

    X_world = world_from_cam . (depth * K^-1 (x, y, 1)), pixel centres at integers.
    """
    points, colours, frame = [], [], []
    for t, pixels in sampled_pixels(scene, rules):
        points.append(frame_points(scene, t)[pixels])
        colours.append(np.asarray(scene.colours[t]).reshape(-1, 3)[pixels])
        frame.append(np.full(len(pixels), t, np.int32))
    if not points:
        return PointCloud(
            np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.int32)
        )
    return PointCloud(np.concatenate(points), np.concatenate(colours), np.concatenate(frame))


def join(clouds: Sequence[PointCloud]) -> PointCloud:
    """Returns the points of all clouds (at least one), cloud after cloud."""
    fields = ("points", "colours", "frame")
    return PointCloud(*(np.concatenate([getattr(c, name) for c in clouds]) for name in fields))


def encode_ply(cloud: PointCloud) -> bytes:
    """Returns a binary little-endian PLY file: x y z float32, red green blue alpha uint8; world."""
    return trimesh.PointCloud(cloud.points, colors=cloud.colours).export(file_type="ply")


def _kept(scene: Scene, rules: PointFilter, t: int) -> np.ndarray:
    """Returns (H, W) bool for frame t."""
    depth = np.asarray(scene.depth[t])
    keep = np.isfinite(depth) & (depth > 0)
    keep &= np.asarray(scene.confidence[t]) >= rules.min_confidence
    if rules.edge > 0:
        keep &= ~depth_edges(depth, rules.edge)
    if rules.dynamic != "keep":
        moving = np.asarray(scene.dynamic_mask[t], bool)
        keep &= moving if rules.dynamic == "only" else ~moving
    return keep
