"""Camera conventions of the data sets: each function returns world_from_cam with OpenCV axes.

float64 throughout; (..., 4, 4) unless said otherwise.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

# Blender and OpenGL: x right, y up, z backwards. Its own inverse.
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
# North-east-down (x forward, y right, z down) to OpenCV (x right, y down, z forward).
_OPENCV_FROM_NED = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)
# Cars: x forward, y left, z up.
CAM_FROM_CAR = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)
# Bonn: motion capture's axes, and camera to markers (its rotation is not quite one).
_BONN_AXES = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], np.float64)
_BONN_MARKERS_FROM_CAM = np.array(
    [
        [1.0157, 0.1828, -0.2389, 0.0113],
        [0.0009, -0.8431, -0.6413, -0.0098],
        [-0.3009, 0.6147, -0.8085, 0.0111],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


def from_extrinsics(cam_from_world: np.ndarray) -> np.ndarray:
    """E^-1 of (..., 3 or 4, 4) with OpenCV axes: Sintel, VKITTI2, Spring, PointOdyssey."""
    extrinsics = np.asarray(cam_from_world, np.float64)
    full = np.broadcast_to(np.eye(4), (*extrinsics.shape[:-2], 4, 4)).copy()
    full[..., :3, :] = extrinsics[..., :3, :]
    return np.linalg.inv(full)


def from_blender(world_from_cam: np.ndarray) -> np.ndarray:
    """M diag(1, -1, -1, 1): SceneFlow's `camera_data.txt`."""
    return np.asarray(world_from_cam, np.float64) @ FLIP


def from_ned_lines(lines: np.ndarray) -> np.ndarray:
    """T P T^-1 of TartanAir's lines `tx ty tz qx qy qz qw` (N, 7), both ends north-east-down."""
    lines = np.asarray(lines, np.float64)
    poses = np.tile(np.eye(4), (len(lines), 1, 1))
    poses[:, :3, :3] = Rotation.from_quat(lines[:, 3:]).as_matrix()
    poses[:, :3, 3] = lines[:, :3]
    return _OPENCV_FROM_NED @ poses @ _OPENCV_FROM_NED.T


def from_processed_pointodyssey(saved: np.ndarray) -> np.ndarray:
    """(E F)^-1 = F E^-1 of the `camera_pose` of processed PointOdyssey folders.

    The true pose up to a flip of the world, which relative poses do not see.
    """
    return np.linalg.inv(np.asarray(saved, np.float64))


def processed_pointodyssey(cam_from_world: np.ndarray) -> np.ndarray:
    """E F, what processed PointOdyssey folders hold as `camera_pose`."""
    return np.asarray(cam_from_world, np.float64) @ FLIP


def spring_reference(cam_from_world: np.ndarray) -> np.ndarray:
    """E F taken for world_from_cam.

    # parity: Align3R's preparation of Spring never inverts; `from_extrinsics` is right.
    """
    return np.asarray(cam_from_world, np.float64) @ FLIP


def from_waymo(world_from_car: np.ndarray, car_from_cam: np.ndarray) -> np.ndarray:
    """(world from car) (car from cam) A^-1, A the turn from car axes to OpenCV's."""
    return world_from_car @ car_from_cam @ np.linalg.inv(CAM_FROM_CAR)


def from_bonn_markers(world_from_markers: np.ndarray) -> np.ndarray:
    """A^-1 M A C: Bonn's `groundtruth.txt` holds the markers on the camera, not the camera.

    A: the axes of motion capture; C: markers from camera, of the calibration that the page of the
    data set gives, made a rotation.
    """
    markers_from_cam = _BONN_MARKERS_FROM_CAM.copy()
    left, _, right = np.linalg.svd(markers_from_cam[:3, :3])
    markers_from_cam[:3, :3] = left @ right
    return _BONN_AXES.T @ np.asarray(world_from_markers, np.float64) @ _BONN_AXES @ markers_from_cam
