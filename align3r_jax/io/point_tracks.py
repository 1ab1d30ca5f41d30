"""Which frames see which points: the observations that structure-from-motion files hold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from align3r_jax.io import pointcloud
from align3r_jax.structs import Scene

LONGEST = 16  # frames of a point beside its own, evenly spread over those that see it
_ROWS = 1 << 14  # points thinned together
TOLERANCE = 0.02  # of the depth, by which a point may miss the surface that a frame sees there


class Tracks(NamedTuple):
    """M observations, sorted by frame, then point. point, frame: (M,) int64 indices."""

    point: np.ndarray
    frame: np.ndarray


def find(
    scene: Scene,
    cloud: pointcloud.PointCloud,
    rules: pointcloud.PointFilter | None = None,
    *,
    moving: np.ndarray | None = None,
) -> Tracks:
    """Returns the frames in which the cloud's points are seen.

    A frame sees a point if it falls on a pixel whose depth agrees with the point's (`TOLERANCE`)
    and which `rules` let into clouds. The frame that a point was made of always counts, of the
    others at most `LONGEST`.

    moving: (N,) bool, points that move by themselves: their own frame alone sees them.
    """
    keep = pointcloud.kept_pixels(scene, rules or pointcloud.PointFilter())
    seen = np.zeros((len(cloud), len(keep)), bool)
    height, width = keep.shape[1:]
    for t in range(len(keep)):
        pixels, z = project(cloud.points, scene.world_from_cam[t], scene.intrinsics[t])
        with np.errstate(invalid="ignore"):
            inside = (z > 0) & ((pixels > -0.5) & (pixels < [width - 0.5, height - 0.5])).all(-1)
        x, y = np.rint(pixels[inside]).astype(int).T
        surface = np.asarray(scene.depth[t], np.float64)[y, x]
        agrees = np.abs(surface - z[inside]) <= TOLERANCE * z[inside]
        seen[inside, t] = agrees & keep[t, y, x]
    if moving is not None:
        seen[moving] = False
    own = np.arange(len(cloud)), cloud.frame
    seen[own] = False
    for k in range(0, len(seen), _ROWS):
        _thin(seen[k : k + _ROWS])
    seen[own] = True
    frame, point = np.nonzero(seen.T)
    return Tracks(point, frame)


def _thin(seen: np.ndarray) -> None:
    """Keeps at most LONGEST of the frames of each point (row), evenly spread over them."""
    rank = np.cumsum(seen, axis=1, dtype=np.int32) - 1
    count = np.maximum(seen.sum(1, keepdims=True), 1)
    # Of up to LONGEST frames every one falls into a share of its own.
    seen &= rank * LONGEST // count != (rank - 1) * LONGEST // count


def project(
    points: np.ndarray, world_from_cam: np.ndarray, intrinsics: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels (N, 2), centres at integers, and depths (N,) of world points in one camera.

    float64 throughout: the files hold doubles, and what is read back is projected with them.
    """
    pose, matrix = np.asarray(world_from_cam, np.float64), np.asarray(intrinsics, np.float64)
    in_camera = (np.asarray(points, np.float64) - pose[:3, 3]) @ pose[:3, :3]
    z = in_camera[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return in_camera[:, :2] / z[:, None] * matrix[[0, 1], [0, 1]] + matrix[:2, 2], z
