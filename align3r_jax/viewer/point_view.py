"""The data of the report's turning point cloud, small enough to sit in the page.

Points are quantised to 16 bits per axis inside their box and 8 bits per colour, 9 bytes each.
Why not the self-contained export of a viewer package: it costs some 60 MB of dependencies and an
embedded copy of the viewer for what `assets/points.js` does in 250 lines of plain WebGL.
"""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import numpy as np

from align3r_jax.geometry import rigid
from align3r_jax.io import gltf, pointcloud, preview
from align3r_jax.structs import Array, Scene

STATIC_POINTS = 130_000
MOVING_POINTS = 60_000
PIVOT_TO_CAMERAS = 0.25
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


def build(scene: Scene, rules: pointcloud.PointFilter) -> tuple[dict[str, Any], str]:
    """Returns (metadata, base64 data) as `assets/points.js` reads them.

    Moving points follow the static ones, ordered by frame: `movingStarts` (T + 1) says where the
    points of each frame begin, so that the page shows only those of the current one.
    """
    parts = [
        pointcloud.from_scene(
            scene, dataclasses.replace(rules, dynamic="drop", max_points=STATIC_POINTS)
        ),
        pointcloud.from_scene(
            scene, dataclasses.replace(rules, dynamic="only", max_points=MOVING_POINTS)
        ),
    ]
    points = np.concatenate([part.points for part in parts])
    colours = np.concatenate([part.colours for part in parts])
    frame = np.concatenate([np.full(len(parts[0]), -1, np.int32), parts[1].frame])

    centres = np.asarray(scene.world_from_cam, np.float64)[:, :3, 3]
    middle = np.median(points, axis=0) if len(points) else centres.mean(0)
    # Turning about a place before the cloud's middle keeps the cameras in the picture as well.
    pivot = middle + PIVOT_TO_CAMERAS * (centres.mean(0) - middle)
    view_from_world = viewing_frame(scene.world_from_cam, pivot)
    points = _moved(view_from_world, points)
    reach = np.linalg.norm(points, axis=1)
    near = reach <= FARTHEST * np.median(reach) if len(points) else np.zeros(0, bool)
    points, colours, frame = points[near], colours[near], frame[near]

    radius = float(np.percentile(reach[near], 85)) if len(points) else 0.0
    low = points.min(0) if len(points) else np.zeros(3)
    extent = np.maximum(np.ptp(points, axis=0), 1e-9) if len(points) else np.ones(3)
    levels = np.round((points - low) / extent * 65535).astype("<u2")
    data = base64.b64encode(levels.tobytes() + colours.tobytes()).decode()

    size = gltf.frustum_size(scene)
    frusta = _moved(view_from_world, gltf.frusta(scene, size))
    eye = frusta[:, 0].mean(0)
    forward = np.asarray(scene.world_from_cam)[:, :3, 2].mean(0)
    meta = {
        "points": len(points),
        "low": low.tolist(),
        "extent": extent.tolist(),
        "movingStarts": np.searchsorted(frame, np.arange(len(frusta) + 1)).tolist(),
        "pointSize": _point_size(scene, int((frame < 0).sum())),
        # From behind the cameras, and far enough to see most of the cloud.
        "distance": max(1.35 * float(np.linalg.norm(eye)) + 2 * size, 1.5 * radius, 4 * size),
        "allAround": bool(np.linalg.norm(forward) < 0.35),
        "fps": preview.playback_rate(scene.times),
        "frusta": np.round(frusta, 5).tolist(),
        "cameraColours": gltf.camera_colours(len(frusta)).tolist(),
    }
    return meta, data


def _moved(target_from_source: Array, points: Array) -> np.ndarray:
    moved = rigid.apply(target_from_source.astype(np.float32), points.astype(np.float32))
    return np.asarray(moved)


def _point_size(scene: Scene, count: int) -> float:
    """Returns the side of a point: a pixel's footprint, larger if the cloud holds fewer points
    than a frame has pixels; scene units.
    """
    depth = np.asarray(scene.depth)
    valid = depth[np.isfinite(depth) & (depth > 0)]
    pitch = float(np.median(valid) if valid.size else 1.0) / float(scene.intrinsics[0, 0, 0])
    return pitch * max(1.0, (depth[0].size / max(count, 1)) ** 0.5) * 2.0
