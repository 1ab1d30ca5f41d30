"""Draws points into an image with a depth buffer, in NumPy: no display, no GPU.

A point is a square of side `size` in the scene that faces the camera, at least a pixel:

    (x, y) = (f X / Z + cx, g Y / Z + cy),  side = size * f / Z pixels,

and where squares overlap the nearest one is seen.
"""

from __future__ import annotations

import dataclasses

import numpy as np

LARGEST = 24  # pixels; a point that would be larger is seen from too near to mean anything


@dataclasses.dataclass(frozen=True)
class Camera:
    """world_from_cam: (4, 4). intrinsics: (3, 3), pixels of (height, width)."""

    world_from_cam: np.ndarray
    intrinsics: np.ndarray
    height: int
    width: int


def draw(
    points: np.ndarray,
    sizes: np.ndarray,
    colours: np.ndarray,
    camera: Camera,
    background: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ((H, W, 3) uint8 picture, (H, W) int32 number of the point seen, -1 for none).

    points: (N, 3) world. sizes: (N,) scene units, 0 for one pixel. colours: (N, 3) uint8.
    background: (3,) or (H, W, 3) uint8.
    """
    pixel_x, pixel_y, depth = project(points, camera)
    height, width = camera.height, camera.width
    focal = float(camera.intrinsics[0, 0])
    inside = (depth > 0) & (pixel_x > -LARGEST / 2) & (pixel_x < width - 1 + LARGEST / 2)
    inside &= (pixel_y > -LARGEST / 2) & (pixel_y < height - 1 + LARGEST / 2)
    number = np.flatnonzero(inside)
    # Far to near: of several values written to a pixel the last, the nearest point's, stays.
    number = number[np.argsort(-depth[number])]
    pixel_x, pixel_y, depth = pixel_x[number], pixel_y[number], depth[number]
    side = np.clip(np.rint(sizes[number] * (focal / depth)), 1, LARGEST).astype(np.int32)

    # The margin takes what sticks out, so that no square needs to be cut.
    padded_width = width + 2 * LARGEST
    seen = np.full((height + 2 * LARGEST) * padded_width, -1, np.int32)
    for length in np.unique(side):
        group = np.flatnonzero(side == length).astype(np.int32)
        shift = LARGEST - (length - 1) / 2
        corner = np.rint(pixel_y[group] + shift).astype(np.int32) * padded_width
        corner += np.rint(pixel_x[group] + shift).astype(np.int32)
        offset_y, offset_x = np.divmod(np.arange(length * length, dtype=np.int32), length)
        places = corner[:, None] + (offset_y * padded_width + offset_x)
        layer = np.full_like(seen, -1)
        layer[places] = group[:, None]
        np.maximum(seen, layer, out=seen)
    seen = seen.reshape(-1, padded_width)[LARGEST:-LARGEST, LARGEST:-LARGEST].reshape(-1)

    hit = seen >= 0
    winner = np.full_like(seen, -1)
    winner[hit] = number[seen[hit]]
    picture = np.broadcast_to(background, (height, width, 3)).astype(np.uint8).reshape(-1, 3)
    picture[hit] = colours[winner[hit]]
    return picture.reshape(height, width, 3), winner.reshape(height, width)


def project(points: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns x, y (pixels, centres at integers) and depth Z, each (N,) float32; behind: Z <= 0."""
    cam_from_world = np.linalg.inv(np.asarray(camera.world_from_cam, np.float64))
    # One product into image coordinates times depth.
    matrix = (np.asarray(camera.intrinsics, np.float64) @ cam_from_world[:3]).astype(np.float32)
    x, y, depth = (points @ matrix[:, :3].T + matrix[:, 3]).T
    positive = np.where(depth > 0, depth, 1.0)
    with np.errstate(over="ignore"):  # infinitely far outside
        return x / positive, y / positive, depth
