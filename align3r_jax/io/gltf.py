"""scene.glb: the coloured points and one wire frustum per camera, joined by the camera's path.

glTF is right-handed with y up and its cameras look along -z, OpenCV has y down and looks along
+z. The file's frame is that of the first camera turned into glTF's convention,

    gltf_from_world = diag(1, -1, -1, 1) . inv(world_from_cam[0]),

so that a viewer which starts on the +z axis, as most do, sees what the first frame saw.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping

import numpy as np
import trimesh

from align3r_jax.io import pointcloud
from align3r_jax.structs import Scene

GLTF_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
FRUSTUM_EDGES = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1))


def gltf_from_world(scene: Scene) -> np.ndarray:
    """Returns (4, 4) float64: the rigid transform from the scene's world into the file's frame."""
    return GLTF_FROM_OPENCV @ np.linalg.inv(np.asarray(scene.world_from_cam[0], np.float64))


def frustum_size(scene: Scene) -> float:
    """Returns the depth at which frusta are drawn: 6 % of the median depth, or a third of the
    camera's extent if that is smaller (but not below 1.5 % of the depth); scene units.
    """
    depth = np.asarray(scene.depth)
    depth = depth[np.isfinite(depth) & (depth > 0)]
    median = float(np.median(depth)) if depth.size else 1.0
    centres = np.asarray(scene.world_from_cam)[:, :3, 3]
    extent = float(np.linalg.norm(np.ptp(centres, axis=0)))
    return max(min(0.06 * median, extent / 3), 0.015 * median)


def frusta(scene: Scene, size: float) -> np.ndarray:
    """Returns (T, 5, 3) float32 world points: camera centre, then the four image corners
    (top left, top right, bottom right, bottom left) at depth `size`.
    """
    height, width = np.asarray(scene.depth).shape[1:]
    # The image spans half a pixel more than the outer pixel centres.
    corners = np.array([[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5],
                        [-0.5, height - 0.5]])  # fmt: skip
    homogeneous = np.concatenate([corners, np.ones((4, 1))], axis=1)
    inverse = np.linalg.inv(np.asarray(scene.intrinsics, np.float64))
    rays = np.einsum("tij,kj->tki", inverse, homogeneous)
    in_camera = np.concatenate([np.zeros_like(rays[:, :1]), size * rays], axis=1)
    pose = np.asarray(scene.world_from_cam, np.float64)
    in_world = np.einsum("tij,tkj->tki", pose[:, :3, :3], in_camera) + pose[:, None, :3, 3]
    return in_world.astype(np.float32)


def camera_colours(count: int) -> np.ndarray:
    """Returns (count, 3) uint8: hue runs with time from blue (first) to red (last)."""
    hues = np.linspace(0.62, 0.0, max(count, 1))[:count]
    return np.array([[round(255 * c) for c in colorsys.hsv_to_rgb(h, 0.85, 0.95)] for h in hues],
                    np.uint8).reshape(-1, 3)  # fmt: skip


def encode_glb(
    scene: Scene, cloud: pointcloud.PointCloud | Mapping[str, pointcloud.PointCloud]
) -> bytes:
    """Returns a binary glTF 2.0 file: nodes `points` (if any), `camera_0000` ..., `path`.

    Several clouds become one node each, under their names.
    """
    transform = gltf_from_world(scene)
    result = trimesh.Scene()
    for name, part in (cloud if isinstance(cloud, Mapping) else {"points": cloud}).items():
        if len(part):
            points = trimesh.PointCloud(part.points, colors=part.colours)
            result.add_geometry(points, node_name=name, geom_name=name, transform=transform)
    corners = frusta(scene, frustum_size(scene))
    colours = camera_colours(len(corners))
    for t, (vertices, colour) in enumerate(zip(corners, colours)):
        wire = _lines(vertices, FRUSTUM_EDGES, colour)
        name = f"camera_{t:04d}"
        result.add_geometry(wire, node_name=name, geom_name=name, transform=transform)
    if len(corners) > 1:
        steps = [(t, t + 1) for t in range(len(corners) - 1)]
        path = _lines(corners[:, 0], steps, np.array([120, 120, 120], np.uint8))
        result.add_geometry(path, node_name="path", geom_name="path", transform=transform)
    return result.export(file_type="glb")


def _lines(vertices: np.ndarray, edges, colour: np.ndarray) -> trimesh.path.Path3D:
    entities = [trimesh.path.entities.Line(list(edge)) for edge in edges]
    colours = np.tile(np.append(colour, 255), (len(entities), 1)).astype(np.uint8)
    return trimesh.path.Path3D(entities=entities, vertices=vertices, colors=colours, process=False)
