"""What a result says of itself, frame by frame and without any truth: numbers for charts and
warnings.

All of it is counted on a lattice of some thousand pixels of each frame: seconds for long videos.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np

from align3r_jax.structs import Scene

UNSURE = 1.1  # confidence below which a pixel becomes no point (DUSt3R's and MonST3R's demos)
_LATTICE = 48  # pixels along the longer side
_THUMBNAIL = 24  # pixels along the longer side of what cuts are looked for in


@dataclasses.dataclass(frozen=True)
class Measures:
    """confidence: (T,) median over the frame. unsure: (T,) share of pixels below `UNSURE`.
    moving: (T,) share of the dynamic mask. focal: (T,) mean of fx and fy, working pixels.
    overlap: (T-1,) share of the static pixels of frames t and t+1 that lie inside the other's
    picture, the smaller of both directions; NaN where nothing has depth.
    change: (T-1,) mean difference of the neighbours' blurred colours, of 1.
    parallax: pixels by which a static point at median depth shifts along the whole camera path.
    prior_error: (T,) Abs Rel of the depth prior against the aligned depth, see `prior_errors`;
    None without a prior.
    """

    confidence: np.ndarray
    unsure: np.ndarray
    moving: np.ndarray
    focal: np.ndarray
    overlap: np.ndarray
    change: np.ndarray
    parallax: float
    prior_error: np.ndarray | None


def measure(scene: Scene, prior_depth: np.ndarray | None = None) -> Measures:
    """Returns the measures of a scene. prior_depth: (T, Hd, Wd), its scale is free."""
    scene = _on_host(scene)
    confidence = np.nan_to_num(scene.confidence, nan=0.0, posinf=1e6).reshape(len(scene.depth), -1)
    return Measures(
        confidence=np.median(confidence, axis=1).astype(np.float64),
        unsure=(confidence < UNSURE).mean(1),
        moving=scene.dynamic_mask.reshape(len(scene.depth), -1).mean(1),
        focal=(scene.intrinsics[:, 0, 0] + scene.intrinsics[:, 1, 1]) / 2,
        overlap=overlaps(scene),
        change=changes(scene.colours),
        parallax=parallax(scene),
        prior_error=None
        if prior_depth is None
        else prior_errors(scene.depth, np.asarray(prior_depth)),
    )


def parallax(scene: Scene) -> float:
    """Returns f |c| / Z in working pixels: c the diagonal of the box around all camera centres, f
    and Z the medians of focal and valid depth. NaN if nothing has depth, and of a single frame.
    """
    centres = np.asarray(scene.world_from_cam, np.float64)[:, :3, 3]
    depth = _lattice(scene.depth)
    valid = depth[np.isfinite(depth) & (depth > 0)]
    if not valid.size or len(centres) < 2:
        return float("nan")
    focal = float(np.median(np.asarray(scene.intrinsics)[:, 0, 0]))
    return focal * float(np.linalg.norm(np.ptp(centres, axis=0))) / float(np.median(valid))


def overlaps(scene: Scene) -> np.ndarray:
    """Returns (T-1,): how much of each of two neighbours the other one sees, see `Measures`."""
    forward, backward = _seen_by_next(scene), _seen_by_next(_reversed(scene))[::-1]
    return np.minimum(forward, backward)


def changes(colours: np.ndarray) -> np.ndarray:
    """Returns (T-1,) mean |a - b| of neighbouring frames shrunk to thumbnails, from 0 to 1.

    colours: (T, H, W, 3) uint8.
    """
    height, width = colours.shape[1:3]
    scale = _THUMBNAIL / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = [cv2.resize(np.asarray(c), size, interpolation=cv2.INTER_AREA) for c in colours]
    return np.abs(np.diff(np.stack(small).astype(np.float64), axis=0)).mean((1, 2, 3)) / 255


def prior_errors(depth: np.ndarray, prior_depth: np.ndarray) -> np.ndarray:
    """Returns (T,) mean min(|s P - D| / D, 1), s = median(D / P) of the frame; NaN without both.

    depth D: (T, H, W). prior_depth P: (T, Hd, Wd), read at the nearest pixel.
    """
    rows, columns = _lattice_indices(depth.shape[1:])
    near_rows = rows * prior_depth.shape[1] // depth.shape[1]
    near_columns = columns * prior_depth.shape[2] // depth.shape[2]
    result = np.full(len(depth), np.nan)
    for t in range(len(depth)):
        aligned = np.asarray(depth[t], np.float64)[rows[:, None], columns]
        prior = np.asarray(prior_depth[t], np.float64)[near_rows[:, None], near_columns]
        both = np.isfinite(aligned) & (aligned > 0) & np.isfinite(prior) & (prior > 0)
        if both.any():
            aligned, prior = aligned[both], prior[both]
            error = np.abs(np.median(aligned / prior) * prior - aligned) / aligned
            result[t] = np.minimum(error, 1.0).mean()
    return result


def _seen_by_next(scene: Scene) -> np.ndarray:
    """(T-1,): the share of the static lattice of frame t that lands inside frame t + 1."""
    height, width = scene.depth.shape[1:]
    rows, columns = _lattice_indices((height, width))
    grid = np.stack(np.broadcast_arrays(columns, rows[:, None], 1), axis=-1).astype(np.float64)
    depth = np.asarray(_lattice(scene.depth), np.float64)[:-1]
    counts = ~_lattice(scene.dynamic_mask)[:-1] & np.isfinite(depth) & (depth > 0)
    # NumPy, not `warp.transfer`: compiling for each length of video costs more than the sums.
    poses, intrinsics = (
        np.asarray(array, np.float64) for array in (scene.world_from_cam, scene.intrinsics)
    )
    next_from_cam = np.linalg.inv(poses[1:]) @ poses[:-1]
    homography = intrinsics[1:] @ next_from_cam[:, :3, :3] @ np.linalg.inv(intrinsics[:-1])
    epipole = np.einsum("tij,tj->ti", intrinsics[1:], next_from_cam[:, :3, 3])
    landing = np.einsum("tij,hwj->thwi", homography, grid)
    landing += epipole[:, None, None] / np.where(counts, depth, 1.0)[..., None]
    ahead = landing[..., 2] > 0
    pixel = landing[..., :2] / np.where(ahead, landing[..., 2], 1.0)[..., None]
    inside = ahead & (np.abs(pixel - [(width - 1) / 2, (height - 1) / 2])
                      <= [width / 2, height / 2]).all(-1)  # fmt: skip
    known = counts.sum((1, 2))
    return np.where(known, (inside & counts).sum((1, 2)) / np.maximum(known, 1), np.nan)


def _on_host(scene: Scene) -> Scene:
    """The scene in NumPy: JAX would compile slices anew for each length of video."""
    kinds = {"depth": np.float32, "confidence": np.float32, "dynamic_mask": bool,
             "colours": np.uint8, "world_from_cam": np.float64,
             "intrinsics": np.float64}  # fmt: skip
    arrays: dict[str, Any] = {
        name: np.asarray(getattr(scene, name), kind) for name, kind in kinds.items()
    }
    return dataclasses.replace(scene, **arrays)


def _reversed(scene: Scene) -> Scene:
    return dataclasses.replace(
        scene,
        depth=scene.depth[::-1],
        dynamic_mask=scene.dynamic_mask[::-1],
        world_from_cam=scene.world_from_cam[::-1],
        intrinsics=scene.intrinsics[::-1],
    )


def _lattice_indices(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    step = max(1, max(size) // _LATTICE)
    rows, columns = (np.arange(step // 2, side, step) for side in size)
    return rows, columns


def _lattice(maps: np.ndarray) -> np.ndarray:
    """(T, h, w) of (T, H, W)."""
    rows, columns = _lattice_indices(maps.shape[1:])
    return np.asarray(maps)[:, rows[:, None], columns]
