"""Waymo's lidar as sparse depth of its cameras.

A range r at row i, column j of a W wide range image is, in the frame of its scanner,
    r (cos e cos a, cos e sin a, sin e),  a = pi (2 (W - j - 1/2) / W - 1) - atan2(E10, E00),
with the inclination e of beam i and the scanner's place E in the car. Where the image tells the
pose of the car when a beam was sent, that pose takes the point to the world, else the frame's.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from align3r_jax.io import train_crop
from data.readers import poses
from data.readers.waymo_frame import Camera, Frame, Laser

LONG_SIDE = 512  # of the pictures that the sparse depth is for


def seen_points(frame: Frame, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points that a camera sees, (N, 3) world metres, and where, (N, 2) pixels x y.

    The pixels are those that the data set records, with the lens and the rolling shutter in them;
    they count from the left edge of the first pixel. Scanner by scanner, row by row.
    """
    parts = [
        _seen(laser, frame.world_from_car, number) for _, laser in sorted(frame.lasers.items())
    ]
    if not parts:
        return np.zeros((0, 3)), np.zeros((0, 2))
    points, pixels = zip(*parts)
    return np.concatenate(points), np.concatenate(pixels)


def _seen(laser: Laser, world_from_car: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = (laser.projections[..., k] == number for k in (0, 3))
    rows, columns = np.nonzero((laser.ranges[..., 0] > 0) & (first | second))
    places = laser.projections[rows, columns]
    pixels = np.where(first[rows, columns, None], places[:, 1:3], places[:, 4:])
    width = laser.ranges.shape[1]
    turn = np.arctan2(laser.car_from_laser[1, 0], laser.car_from_laser[0, 0])
    around = np.pi * (2 * (width - columns - 0.5) / width - 1) - turn
    up, distance = laser.inclinations[rows], laser.ranges[rows, columns, 0].astype(np.float64)
    level = distance * np.cos(up)
    points = np.stack([level * np.cos(around), level * np.sin(around), distance * np.sin(up)], -1)
    points = _moved(laser.car_from_laser, points)
    if laser.poses is None:
        points = _moved(world_from_car, points)
    else:
        pose = laser.poses[rows, columns].astype(np.float64)
        # Yaw, pitch, roll about the axes as they have turned so far: Rz Ry Rx.
        points = Rotation.from_euler("ZYX", pose[:, 2::-1]).apply(points) + pose[:, 3:]
    return points, pixels.astype(np.float64)


def camera_pose(camera: Camera, frame: Frame, *, parity: bool = False) -> np.ndarray:
    """world_from_cam (4, 4), OpenCV axes, when the picture was taken.

    # parity: the published preparation takes the car's pose of the frame, up to 0.1 s away.
    """
    world_from_car = camera.world_from_car
    if parity or world_from_car is None:
        world_from_car = frame.world_from_car
    return poses.from_waymo(world_from_car, camera.car_from_camera)


def view(
    image: np.ndarray,
    frame: Frame,
    number: int,
    *,
    parity: bool = False,
) -> tuple[train_crop.View, np.ndarray]:
    """Returns the picture with its sparse "depth" at a long side of 512, and world_from_cam.

    image: (H, W, 3) of camera `number`; smaller ones keep their size. Of several points in one
    pixel the last wins, as published. The lens is undone.
    # parity: with the lens left in, pixels rounded at the smaller size, clipped at the border.
    """
    camera = frame.cameras[number]
    fx, fy, cx, cy = camera.intrinsic[:4]
    intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    world_from_cam = camera_pose(camera, frame, parity=parity)
    points, pixels = seen_points(frame, number)
    depth = _moved(np.linalg.inv(world_from_cam), points)[:, 2]
    height, width = image.shape[:2]
    small = train_crop.View(image, {}, intrinsics)
    if max(height, width) > LONG_SIDE:
        goal = (1, LONG_SIDE) if width >= height else (LONG_SIDE, 1)
        small = train_crop.resize_to_cover(small, goal)
    scale = small.intrinsics[0, 0] / fx
    if parity:
        pixels = pixels * scale
        lens = np.zeros(5)
    else:
        # What is recorded is the pixel a point falls into; it moves as the intrinsics do.
        cut = np.array([width, height]) * scale - small.shape[::-1]
        pixels = (pixels + 0.5) * scale - 0.5 - cut / 2
        lens = camera.intrinsic[4:]
    return sparse_view(small, pixels, depth, lens), world_from_cam


def sparse_view(
    view: train_crop.View, pixels: np.ndarray, depth: np.ndarray, lens: np.ndarray
) -> train_crop.View:
    """Returns the view as a pinhole sees it, with the (N,) depths at their (N, 2) pixels.

    lens: k1 k2 p1 p2 k3 of Brown and Conrady as OpenCV has them; all 0 leaves the picture alone.
    Depth that is not positive is left out, what rounds across the border lands on it, what the
    lens had bent into the view is left out.
    """
    height, width = view.shape
    keep = depth > 0
    pixels, depth, image = pixels[keep], depth[keep], view.image
    if lens.any():
        image = without_lens(image, view.intrinsics, lens)
        if len(pixels):
            pixels = cv2.undistortPoints(pixels[:, None], view.intrinsics, lens, P=view.intrinsics)[
                :, 0
            ]
        keep = (pixels > -0.5).all(-1) & (pixels < (width - 0.5, height - 0.5)).all(-1)
        pixels, depth = pixels[keep], depth[keep]
    columns, rows = np.clip(np.round(pixels), 0, (width - 1, height - 1)).astype(int).T
    sparse = np.zeros((height, width), np.float32)
    sparse[rows, columns] = depth  # the last of several
    return train_crop.View(image, view.maps | {"depth": sparse}, view.intrinsics)


def without_lens(values: np.ndarray, intrinsics: np.ndarray, lens: np.ndarray) -> np.ndarray:
    """Returns (H, W, ...) as a pinhole with these intrinsics sees it, bilinear, 0 outside."""
    return cv2.undistort(values, intrinsics, lens)


def _moved(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ transform[:3, :3].T + transform[:3, 3]
