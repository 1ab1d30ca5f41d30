"""The data of the report's point cloud, small enough to sit in the page.

A point costs 11 bytes: 16 bits per axis inside the cloud's box, 8 per colour, 8 of confidence and
8 of inverse depth. `assets/cloud.js` draws them with plain WebGL.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from typing import Any, Literal

import numpy as np

from align3r_jax.geometry import rigid
from align3r_jax.io import gltf, pointcloud, preview
from align3r_jax.structs import Array, Scene

STATIC_POINTS = 180_000
MOVING_POINTS = 60_000
MAX_CAMERAS = 1000  # drawn, of very long videos
PIVOT_TO_CAMERAS = 0.25
PITCH = 0.12  # radians by which the page looks down at the cloud
HALF_PICTURE = math.tan(math.radians(45 / 2))  # height at distance 1, as in `assets/cloud.js`
FARTHEST = 30.0  # points beyond this many median distances from the pivot are left out


def viewing_frame(world_from_cam: np.ndarray, pivot: np.ndarray) -> np.ndarray:
    """Returns view_from_world (4, 4): pivot at the origin, y the cameras' mean up, -z their mean
    viewing direction (that of the first camera if they look all around).
    """
    pose = np.asarray(world_from_cam, np.float64)
    up = -pose[:, :3, 1].mean(0)
    up = up if np.linalg.norm(up) > 0.1 else -pose[0, :3, 1]
    up /= np.linalg.norm(up)
    forward = pose[:, :3, 2].mean(0)
    forward -= forward @ up * up
    if np.linalg.norm(forward) < 0.2:
        forward = pose[0, :3, 2] - pose[0, :3, 2] @ up * up
    if np.linalg.norm(forward) < 1e-3:  # cameras that look straight up or down
        forward = np.cross(pose[0, :3, 0], up)
    back = -forward / np.linalg.norm(forward)
    result = np.eye(4)
    result[:3, :3] = np.stack([np.cross(up, back), up, back])
    result[:3, 3] = -result[:3, :3] @ pivot
    return result


def build(
    scene: Scene,
    rules: pointcloud.PointFilter,
    frames: np.ndarray | None = None,
    budget: tuple[int, int] | None = None,
) -> tuple[dict[str, Any], str]:
    """Returns (metadata, base64 data) as `assets/cloud.js` reads them.

    frames: (F,) ascending numbers of the frames that the page shows (None: all); points come from
    these alone. budget: static and moving points at most (None: those of the report).
    Moving points follow the static ones, both ordered by frame: `staticStarts` and `movingStarts`
    (F + 1) say where those of each shown frame begin.
    """
    budget = budget or (STATIC_POINTS, MOVING_POINTS)
    frames = np.arange(len(scene.depth)) if frames is None else np.asarray(frames)
    part = _part_of(scene, frames)
    sure = _brightest(part.confidence)
    xyz, extra, starts = _points(part, rules, sure, budget)

    centres = np.asarray(scene.world_from_cam, np.float64)[:, :3, 3]
    middle = np.median(xyz, axis=0) if len(xyz) else centres.mean(0)
    # Turning about a place before the cloud's middle keeps the cameras in the picture as well.
    pivot = middle + PIVOT_TO_CAMERAS * (centres.mean(0) - middle)
    view_from_world = viewing_frame(scene.world_from_cam, pivot)
    xyz = _moved(view_from_world, xyz)
    reach = np.linalg.norm(xyz, axis=1)
    near = reach <= FARTHEST * np.median(reach) if len(xyz) else np.zeros(0, bool)
    before = np.concatenate([[0], np.cumsum(near)])  # near points among the first n
    xyz, extra = xyz[near], extra[near]
    radius = float(np.percentile(reach[near], 85)) if len(xyz) else 0.0
    low = xyz.min(0) if len(xyz) else np.zeros(3)
    extent = np.maximum(np.ptp(xyz, axis=0), 1e-9) if len(xyz) else np.ones(3)
    levels = np.round((xyz - low) / extent * 65535).astype("<u2")
    planes = [
        levels.tobytes(),
        extra[:, :3].tobytes(),
        extra[:, 3].tobytes(),
        extra[:, 4].tobytes(),
    ]

    size = gltf.frustum_size(scene)
    frusta = _moved(view_from_world, gltf.frusta(scene, size))
    colours = gltf.camera_colours(len(frusta))
    drawn = np.union1d(preview.even_indices(len(frusta), MAX_CAMERAS), frames)
    eye = frusta[:, 0].mean(0)
    forward = np.asarray(scene.world_from_cam)[:, :3, 2].mean(0)
    # From behind the cameras, and far enough to see most of the cloud.
    distance = max(
        1.35 * float(np.linalg.norm(eye)) + 2 * size, 1.5 * radius, 4 * size, _fitting(xyz)
    )
    meta = {
        "points": len(xyz),
        "low": low.tolist(),
        "extent": extent.tolist(),
        **{name: before[values].tolist() for name, values in starts.items()},
        "logConfidence": math.log(sure),  # of level 255
        "pixels": int(scene.depth[0].size),
        "pixelSide": _pixel_side(scene),
        "distance": distance,
        "pitch": PITCH,
        "shift": _centring(np.concatenate([xyz, frusta[:, 0]]), distance),
        "allAround": bool(np.linalg.norm(forward) < 0.35),
        "frusta": np.round(frusta[drawn], 4 - math.floor(math.log10(size))).tolist(),
        "cameraColours": colours[drawn].tolist(),
        "shownCameras": np.searchsorted(drawn, frames).tolist(),
        "ramps": {
            "depth": preview.colour_depth(1 / np.linspace(1, 2, 256)[None], (1.0, 2.0))[0].tolist(),
            "confidence": preview.colour_confidence(
                np.exp(np.linspace(0, 1, 256))[None], math.e
            )[0].tolist(),
        },
    }  # fmt: skip
    return meta, base64.b64encode(b"".join(planes)).decode()


def _points(
    part: Scene, rules: pointcloud.PointFilter, sure: float, budget: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """World points (N, 3), their attributes (N, 5) uint8, and where each frame's begin."""
    # Confidence 0: other frames see through the point. Of what moves by itself, of course they do.
    left = part.dynamic_mask & (part.confidence == 0)
    judged = dataclasses.replace(part, confidence=np.where(left, np.inf, part.confidence))
    depth_range = preview.inverse_depth_range(part.depth)
    parts: tuple[tuple[Literal["drop", "only"], int], ...] = (
        ("drop", budget[0]),
        ("only", budget[1]),
    )
    groups = [
        dict(pointcloud.sampled_pixels(
            judged, dataclasses.replace(rules, dynamic=dynamic, max_points=count)
        ))
        for dynamic, count in parts
    ]  # fmt: skip
    points = [[np.zeros((0, 3), np.float32)] for _ in groups]
    attributes = [[np.zeros((0, 5), np.uint8)] for _ in groups]
    for t in sorted(set().union(*groups)):
        in_world = pointcloud.frame_points(part, t)
        for k, pixels in ((k, group[t]) for k, group in enumerate(groups) if t in group):
            points[k].append(in_world[pixels])
            attributes[k].append(_attributes(part, t, pixels, depth_range, sure))
    counts = [[len(group.get(t, ())) for t in range(len(part.depth))] for group in groups]
    static, moving = (np.concatenate([[0], np.cumsum(count)]) for count in counts)
    starts = {"staticStarts": static, "movingStarts": static[-1] + moving}
    return np.concatenate(sum(points, [])), np.concatenate(sum(attributes, [])), starts


def _part_of(scene: Scene, frames: np.ndarray) -> Scene:
    """The scene of some frames, with what points are made of."""
    names = ("depth", "confidence", "dynamic_mask", "colours", "world_from_cam", "intrinsics")
    return dataclasses.replace(scene, **{name: getattr(scene, name)[frames] for name in names})


def _brightest(confidence: np.ndarray) -> float:
    """The confidence of level 255: the 99th percentile, but more than 1."""
    values = np.nan_to_num(confidence[:, ::4, ::4], nan=1.0, posinf=1e30)
    return max(float(np.percentile(values, 99)), 1.01)


def _attributes(
    scene: Scene, t: int, pixels: np.ndarray, depth_range: tuple[float, float], sure: float
) -> np.ndarray:
    """(n, 5) uint8: red, green, blue, 255 ln(confidence) / ln(sure), level of inverse depth."""
    far, near = depth_range
    confidence = np.asarray(scene.confidence[t]).reshape(-1)[pixels]
    inverse = (1 / np.asarray(scene.depth[t]).reshape(-1)[pixels] - far) / (near - far)
    unsure = np.log(np.maximum(np.nan_to_num(confidence, nan=1.0), 1.0)) / math.log(sure)
    levels = np.stack([unsure, inverse], axis=-1)
    return np.concatenate([
        np.asarray(scene.colours[t]).reshape(-1, 3)[pixels],
        np.round(255 * np.clip(levels, 0, 1)).astype(np.uint8),
    ], axis=1)  # fmt: skip


def _fitting(points: np.ndarray) -> float:
    """Returns the distance of the eye from which 95 % of the points are inside the picture."""
    if not len(points):
        return 0.0
    x, y, z = np.abs(points[:, 0]), np.abs(points[:, 1]), points[:, 2]
    return float(np.percentile(z + np.maximum(x / (HALF_PICTURE * 1.4), y / HALF_PICTURE), 95))


def _centring(points: np.ndarray, distance: float) -> float:
    """Returns by how much to lift the cloud so that it opens in the middle of the picture."""
    y = math.cos(PITCH) * points[:, 1] - math.sin(PITCH) * points[:, 2]
    ahead = distance - math.sin(PITCH) * points[:, 1] - math.cos(PITCH) * points[:, 2]
    seen = ahead > 0.05 * distance
    if not seen.any():
        return 0.0
    low, high = np.percentile(y[seen] / ahead[seen], [2, 98])
    return -distance * float(low + high) / 2


def _moved(target_from_source: Array, points: Array) -> np.ndarray:
    moved = rigid.apply(target_from_source.astype(np.float32), points.astype(np.float32))
    return np.asarray(moved)


def _pixel_side(scene: Scene) -> float:
    """Returns the side of a pixel's footprint at median depth, scene units."""
    depth = np.asarray(scene.depth)
    valid = depth[np.isfinite(depth) & (depth > 0)]
    return float(np.median(valid) if valid.size else 1.0) / float(scene.intrinsics[0, 0, 0])
