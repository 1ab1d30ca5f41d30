"""Camera pose from points in the world and where they are seen, on the host through OpenCV.

Deterministic: OpenCV's RANSAC starts from a fixed seed.
"""

from __future__ import annotations

import cv2
import numpy as np

NUM_FOCAL_CANDIDATES = 21
# Above this many points a regular subset is used: RANSAC tests every point in every round, and
# the final fit is a least squares over points that number far more than its six unknowns.
MAX_POINTS = 30_000
_MIN_POINTS = 4
_REPROJECTION_PX = 5.0
_RANSAC_CONFIDENCE = 0.99


def focal_candidates(height: int, width: int) -> np.ndarray:
    """Returns 21 focals in pixels, geometric from max(H, W) / 2 to 3 max(H, W)."""
    size = max(height, width)
    return np.geomspace(size / 2, size * 3, NUM_FOCAL_CANDIDATES)


def solve_pnp(
    points: np.ndarray,
    mask: np.ndarray,
    focal: float | None,
    principal_point: np.ndarray | None = None,
    iterations: int = 10,
) -> tuple[float, np.ndarray] | None:
    """The camera that sees world point X(p) at pixel p, for the pixels in the mask.

    RANSAC (EPnP on 5 points, inliers within 5 px, confidence 0.99), then the least squares
    sum over inliers (Xc - Zc x)^2 + (Yc - Zc y)^2 (SQPnP, Terzakis and Lourakis 2020), x, y
    being normalised pixel coordinates.

    Args:
        points: (H, W, 3) in the world.
        mask: (H, W) bool, pixels to use; points that are not finite are left out.
        focal: pixels; None tries `focal_candidates` and keeps the first with most inliers.
        principal_point: (2,) pixels; None = (W / 2, H / 2).
        iterations: rounds of RANSAC.

    Returns:
        (focal, world_from_cam (4, 4) float64), or None with fewer than 4 points or no solution.
    """
    points, mask = np.asarray(points), np.asarray(mask)
    height, width = mask.shape
    if principal_point is None:
        principal_point = np.array([width / 2, height / 2])
    rows, columns = np.nonzero(mask & np.isfinite(points).all(-1))
    if len(rows) > MAX_POINTS:
        kept = np.linspace(0, len(rows) - 1, MAX_POINTS).astype(np.int64)
        rows, columns = rows[kept], columns[kept]
    if len(rows) < _MIN_POINTS:
        return None
    world = points[rows, columns].astype(np.float64)
    pixels = np.stack([columns, rows], -1).astype(np.float64)

    best: tuple[float, np.ndarray] | None = None
    most_inliers = 0
    for candidate in focal_candidates(height, width) if focal is None else [float(focal)]:
        solution = _ransac(world, pixels, candidate, principal_point, iterations)
        if solution is not None and solution[0] > most_inliers:
            most_inliers, best = solution[0], (float(candidate), solution[1])
    return best


def _ransac(
    world: np.ndarray,
    pixels: np.ndarray,
    focal: float,
    principal_point: np.ndarray,
    iterations: int,
) -> tuple[int, np.ndarray] | None:
    """Returns (number of inliers, world_from_cam), or None."""
    intrinsics = np.array(
        [[focal, 0, principal_point[0]], [0, focal, principal_point[1]], [0, 0, 1]], np.float64
    )
    try:
        found, rotation_vector, translation, inliers = cv2.solvePnPRansac(
            world,
            pixels,
            intrinsics,
            None,
            flags=cv2.SOLVEPNP_SQPNP,
            iterationsCount=iterations,
            reprojectionError=_REPROJECTION_PX,
            confidence=_RANSAC_CONFIDENCE,
        )
    except cv2.error:  # degenerate points (all on a line, say) fail inside the minimal solver
        return None
    if not found or inliers is None:
        return None
    rotation = cv2.Rodrigues(rotation_vector)[0]
    world_from_cam = np.eye(4)
    world_from_cam[:3, :3] = rotation.T
    world_from_cam[:3, 3] = -rotation.T @ translation[:, 0]
    return (len(inliers), world_from_cam) if np.isfinite(world_from_cam).all() else None
