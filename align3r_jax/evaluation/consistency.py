"""Temporal consistency of depth: what one frame says of the next, carried there by true motion.

TAE = 1 / (2 (T - 1)) sum over k of AbsRel(f(d_k, p_k), d_k+1) + AbsRel(f(d_k+1, p_k^-1), d_k),
the temporal alignment error of Video Depth Anything (Chen et al., CVPR 2025, section 4): f carries
a depth map to the neighbouring frame with the true camera motion p and the true intrinsics,
AbsRel(a, b) = mean |a - b| / b over the pixels that count. The depth must be in the unit of the
poses, so predictions are first fitted to the truth (`depth.align`). The mean is over the
directions that have a pixel; tables of that paper hold 100 TAE.

Which pixels count is not said in the paper; here:

- a carried point belongs to the pixel nearest to where it lands; outside the image it is left out;
- of several points that land in one pixel the nearest counts (z-buffer);
- with true depth, a pixel takes part only if its *true* depth, carried, is within `tolerance` of
  the true depth where it lands: it is seen in both frames and stands still;
- pixels of `dynamic_mask`, and depth that is not positive and finite, take no part.

A perfect prediction does not score exactly 0: the landing point is rounded to a pixel. The value
of the true depth itself (`floor` of `evaluate`) says how much that is.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from align3r_jax.errors import UserError

TOLERANCE = 0.05
_Cameras = tuple[np.ndarray, np.ndarray, np.ndarray]  # K1, K2, cam2_from_cam1


@dataclasses.dataclass(frozen=True)
class ConsistencyMetrics:
    """tae: mean over directed neighbours; floor: that of the true depth, None without one.

    share: compared pixels / all pixels. directions: how many of the 2 (T - 1) had any.
    """

    tae: float
    floor: float | None
    share: float
    directions: int


def evaluate(
    depth: np.ndarray,
    world_from_cam: np.ndarray,
    intrinsics: np.ndarray,
    *,
    truth: np.ndarray | None = None,
    dynamic_mask: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
) -> ConsistencyMetrics:
    """TAE of depth (T, H, W) under true poses (T, 4, 4) and intrinsics (T, 3, 3) of its pixels.

    truth: (T, H, W) true depth, 0 = not measured. dynamic_mask: (T, H, W) bool. Raises UserError
    if shapes differ, there is one frame, or no neighbours share a pixel that counts.
    """
    depth = np.asarray(depth, np.float64)
    _check(depth, world_from_cam, intrinsics, truth, dynamic_mask)
    poses = np.asarray(world_from_cam, np.float64)
    still = np.ones(depth.shape, bool) if dynamic_mask is None else ~np.asarray(dynamic_mask, bool)
    usable = np.isfinite(depth) & (depth > 0) & still
    errors, floors, compared = [], [], 0
    for k in range(len(depth) - 1):
        for source, target in ((k, k + 1), (k + 1, k)):
            target_from_source = np.linalg.inv(poses[target]) @ poses[source]
            cameras = intrinsics[source], intrinsics[target], target_from_source
            part = usable[source]
            if truth is not None:
                seen = _seen_in_both(truth[source], truth[target], cameras, tolerance)
                part = part & seen
                carried = carry(truth[source], *cameras, part=seen & still[source])
                floors += _relative_errors(carried, truth[target], still[target])[:1]
            found = _relative_errors(carry(depth[source], *cameras, part=part), depth[target],
                                     usable[target])  # fmt: skip
            errors += found[:1]
            compared += found[1] if found else 0
    if not errors:
        raise UserError(
            "No two neighbouring frames share a pixel that can be compared: check that poses are "
            "world_from_cam in the unit of the depth, and that intrinsics are those of its size."
        )
    return ConsistencyMetrics(
        tae=float(np.mean(errors)),
        floor=float(np.mean(floors)) if floors else None,
        share=compared / (2 * depth[1:].size),
        directions=len(errors),
    )


def carry(
    depth: np.ndarray,
    intrinsics1: np.ndarray,
    intrinsics2: np.ndarray,
    cam2_from_cam1: np.ndarray,
    part: np.ndarray,
) -> np.ndarray:
    """f: depth (H, W) of camera 1 as camera 2 would see it, (H, W) float64, inf where nothing is.

    X = cam2_from_cam1 (depth K1^-1 (x, 1)); its z at the pixel nearest to K2 X / z, the smallest
    of all that land there. part: (H, W) bool, the pixels that are carried.
    """
    landing, z, _ = _land(depth, intrinsics1, intrinsics2, cam2_from_cam1, part)
    carried = np.full(depth.size, np.inf)
    np.minimum.at(carried, landing, z)
    return carried.reshape(depth.shape)


def _land(depth, intrinsics1, intrinsics2, cam2_from_cam1, part):
    """Flat target pixel, z there, and flat source pixel of every point that lands in the image."""
    height, width = depth.shape
    rows, columns = np.nonzero(part)
    values = np.asarray(depth, np.float64)[rows, columns]
    pixels = np.stack([columns, rows, np.ones_like(rows)]).astype(np.float64)
    rays = np.linalg.inv(np.asarray(intrinsics1, np.float64)) @ pixels
    points = cam2_from_cam1[:3, :3] @ (rays * values) + cam2_from_cam1[:3, 3:]
    z = points[2]
    image = np.asarray(intrinsics2, np.float64) @ points
    ahead = z > 0
    x, y = (np.rint(image[k] / np.where(ahead, z, 1.0)) for k in (0, 1))
    inside = ahead & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    landing = y[inside].astype(np.int64) * width + x[inside].astype(np.int64)
    return landing, z[inside], (rows * width + columns)[inside]


def _seen_in_both(
    first: np.ndarray, second: np.ndarray, cameras: _Cameras, tolerance: float
) -> np.ndarray:
    """Pixels of the first frame whose true point the second frame sees at its depth."""
    known = np.isfinite(first) & (first > 0)
    landing, z, origin = _land(first, *cameras, part=known)
    there = np.asarray(second, np.float64).reshape(-1)[landing]
    agrees = np.isfinite(there) & (there > 0)
    agrees &= np.abs(z - there) <= tolerance * np.where(agrees, there, 1.0)
    seen = np.zeros(known.size, bool)
    seen[origin[agrees]] = True
    return seen.reshape(known.shape)


def _relative_errors(carried, target, usable):
    """[mean |a - b| / b, number of pixels], or [] if there is no pixel."""
    both = np.isfinite(carried) & usable & np.isfinite(target) & (target > 0)
    if not both.any():
        return []
    expected = np.asarray(target, np.float64)[both]
    return [float((np.abs(carried[both] - expected) / expected).mean()), int(both.sum())]


def _check(depth, world_from_cam, intrinsics, truth, dynamic_mask):
    wanted = {
        "poses": (world_from_cam, (len(depth), 4, 4)),
        "intrinsics": (intrinsics, (len(depth), 3, 3)),
        "true depth": (truth, depth.shape),
        "dynamic masks": (dynamic_mask, depth.shape),
    }
    for name, (value, shape) in wanted.items():
        if value is not None and np.shape(value) != shape:
            raise UserError(
                f"Temporal consistency of depth {depth.shape} needs {name} of shape {shape}, got "
                f"{np.shape(value)}."
            )
    if len(depth) < 2:
        raise UserError("Temporal consistency needs at least 2 frames, got 1.")
