"""A number of points for a whole scene, spread evenly over space rather than over pixels."""

from __future__ import annotations

import dataclasses

import numpy as np

from align3r_jax.io import pointcloud
from align3r_jax.structs import Scene

_CANDIDATES = 8  # random points per point wanted, of which cells keep one
_MOST_CANDIDATES = 4_000_000
_CELLS = 1 << 21  # along an axis: three of them fit into 63 bits


def from_scene(
    scene: Scene, count: int, rules: pointcloud.PointFilter | None = None
) -> pointcloud.PointCloud:
    """Returns at most `count` points that `rules` let in, evenly spread over space.

    They are drawn from a random subset of the pixels, eight times as large; both draws are the same
    in every run. `rules.max_points` does not count. See `thin`.
    """
    candidates = max(count, min(_CANDIDATES * count, _MOST_CANDIDATES))
    rules = dataclasses.replace(rules or pointcloud.PointFilter(), max_points=candidates)
    return thin(pointcloud.from_scene(scene, rules), count)


def thin(cloud: pointcloud.PointCloud, count: int) -> pointcloud.PointCloud:
    """Returns `count` points of the cloud (or all, if it has no more), one per cubic cell.

    The cells are as large as they must be for not more than `count` of them to hold points; each
    keeps a random one, and random points of the rest fill up the count. The draw is the same in
    every run; the order of the points stays.
    """
    if len(cloud) <= count:
        return cloud
    order = np.random.default_rng(0).permutation(len(cloud))
    points = cloud.points[order].astype(np.float64)
    points -= points.min(axis=0)
    extent = float(points.max()) or 1.0
    smallest, largest = extent / (_CELLS - 1), 2 * extent
    chosen = np.zeros(1, int)
    for _ in range(30):
        cell = np.sqrt(smallest * largest)
        first = _first_of_cells(points, cell)
        if len(first) > count:
            smallest = cell
            continue
        largest, chosen = cell, first
        if len(first) >= 0.99 * count:
            break
    rest = np.ones(len(order), bool)
    rest[chosen] = False
    chosen = np.concatenate([chosen, np.flatnonzero(rest)[: count - len(chosen)]])
    kept = np.sort(order[chosen])
    return pointcloud.PointCloud(cloud.points[kept], cloud.colours[kept], cloud.frame[kept])


def _first_of_cells(points: np.ndarray, cell: float) -> np.ndarray:
    """Returns the index of the first point of every cell that holds one."""
    x, y, z = np.floor(points / cell).astype(np.int64).T
    return np.unique((x * _CELLS + y) * _CELLS + z, return_index=True)[1]
