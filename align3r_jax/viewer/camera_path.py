"""Where the camera of a fly-through is at every moment: around the scene, or along the video.

Moments are counted in frames of the video, `moment = 3.5` is half-way between frames 3 and 4.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation, Slerp

from align3r_jax.io import gltf, preview
from align3r_jax.structs import Scene
from align3r_jax.viewer import point_view, splat

Path = Literal["orbit", "follow", "recorded"]
PATHS: tuple[Path, ...] = get_args(Path)

SHORTEST = 6.0  # seconds; a shorter clip is played several times
FIELD_OF_VIEW = 42.0  # degrees, along the shorter side
SWING_YAW, SWING_PITCH = 24.0, 5.0  # degrees, to each side of the orbit's middle
ORBIT_PITCH = 6.0  # degrees from above
IN_VIEW = 96.0  # per cent of the points that the orbit keeps in the picture
SMOOTH_SECONDS = 0.35
BACK, ABOVE = 0.45, 0.16  # of the median depth: where the follower is, seen from the camera


def moments(
    path: Path, num_frames: int, rate: float, fps: float, seconds: float | None, speed: float
) -> np.ndarray:
    """Returns (M,) the moment of the video at each picture, in [0, num_frames).

    The orbit plays the video from the start again, the other paths go there and back, so that the
    camera never jumps. seconds: None for as many whole passes as last `SHORTEST`, which makes the
    result run on seamlessly when it is repeated. rate: the video's frames per second. speed: times
    that rate.
    """
    there_and_back = path != "orbit" and num_frames > 1
    period = 2 * (num_frames - 1) if there_and_back else num_frames
    lasts = period / (rate * speed)
    total = seconds if seconds is not None else lasts * max(1, np.ceil(SHORTEST / lasts))
    phase = np.arange(max(1, round(total * fps))) * (rate * speed / fps) % period
    if there_and_back:
        return np.minimum(phase, period - phase)
    return phase


def cameras(
    path: Path, scene: Scene, points: np.ndarray, moments: np.ndarray, height: int, width: int
) -> list[splat.Camera]:
    """Returns the camera of every picture. points: (N, 3) what the orbit should keep in view."""
    if path == "orbit":
        return _orbit(scene, points, len(moments), height, width)
    if path == "follow":
        return _follow(scene, moments, height, width)
    return _recorded(scene, moments, height, width)


def look_at(position: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Returns world_from_cam (4, 4) of a camera at `position` whose axis goes through `target`."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, up)
    if np.linalg.norm(right) < 1e-6:
        right = np.cross(forward, np.roll(up, 1))
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = position
    return pose


def overview(scene: Scene, points: np.ndarray, height: int, width: int) -> tuple[np.ndarray, float]:
    """Returns (view_from_world, distance): from `distance` along its +z axis, most of the points
    and all cameras are seen with `FIELD_OF_VIEW`.

    view_from_world: (4, 4), y up, the pivot at the origin (`point_view.viewing_frame`).
    """
    centres = np.asarray(scene.world_from_cam, np.float64)[:, :3, 3]
    points = points[:: max(1, len(points) // 50_000)].astype(np.float64)
    middle = np.median(points, axis=0) if len(points) else centres.mean(0)
    pivot = middle + point_view.PIVOT_TO_CAMERAS * (centres.mean(0) - middle)
    view_from_world = point_view.viewing_frame(scene.world_from_cam, pivot)
    size = gltf.frustum_size(scene)
    marks = gltf.frusta(scene, size).reshape(-1, 3)
    needed = size + _distance_to_see(view_from_world, marks, height, width).max()
    if len(points):
        seen = _distance_to_see(view_from_world, points, height, width)
        needed = max(needed, float(np.percentile(seen, IN_VIEW)))
    return view_from_world, float(max(needed, 1e-3 * _median_depth(scene)))


def _distance_to_see(view_from_world, points, height, width) -> np.ndarray:
    """(N,) z of the nearest camera on the z axis that has the point in its picture."""
    x, y, z = (points @ view_from_world[:3, :3].T + view_from_world[:3, 3]).T
    slope = np.tan(np.radians(FIELD_OF_VIEW / 2)) / min(height, width)
    return z + np.maximum(np.abs(x) / (width * slope), np.abs(y) / (height * slope))


def _orbit(scene: Scene, points: np.ndarray, count: int, height: int, width: int):
    view_from_world, distance = overview(scene, points, height, width)
    world_from_view = np.linalg.inv(view_from_world)
    forward = np.asarray(scene.world_from_cam)[:, :3, 2].mean(0)
    phase = 2 * np.pi * np.arange(count) / max(count, 1)
    # Seen from one side, a scene shows holes from behind: swing. Seen from all around: turn.
    all_around = np.linalg.norm(forward) < 0.35
    yaw = phase if all_around else np.radians(SWING_YAW) * np.sin(phase)
    pitch = np.radians(ORBIT_PITCH + SWING_PITCH * np.sin(phase + np.pi / 3))
    around = np.stack([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], 1)
    intrinsics = _intrinsics(_focal(height, width), height, width)
    up = np.array([0.0, 1.0, 0.0])
    return [
        splat.Camera(world_from_view @ look_at(distance * p, np.zeros(3), up), intrinsics,
                     height, width)
        for p in around
    ]  # fmt: skip


def _follow(scene: Scene, moments: np.ndarray, height: int, width: int):
    poses = _interpolate(scene, moments)
    # In frames, and of a short clip not so many that nothing would be left of its motion.
    rate = preview.playback_rate(scene.times)
    sigma = min(SMOOTH_SECONDS * rate, (len(scene.depth) - 1) / 10)
    step = np.median(np.abs(np.diff(moments))) if len(moments) > 1 else 1.0
    # A repeated video goes on at its end as it began.
    smooth = ndimage.gaussian_filter1d(poses, sigma / max(step, 1e-9), axis=0, mode="wrap")
    depth = _median_depth(scene)
    intrinsics = _intrinsics(_focal(height, width), height, width)
    result = []
    for pose in smooth:
        up, forward = -_unit(pose[:3, 1]), _unit(pose[:3, 2])
        position = pose[:3, 3] + depth * (ABOVE * up - BACK * forward)
        target = pose[:3, 3] + depth * forward
        result.append(splat.Camera(look_at(position, target, up), intrinsics, height, width))
    return result


def _recorded(scene: Scene, moments: np.ndarray, height: int, width: int):
    """The video's own cameras; the whole of its picture is in the picture."""
    rows, columns = np.asarray(scene.depth).shape[1:]
    scale = min(height / rows, width / columns)
    result = []
    for moment, pose in zip(moments, _interpolate(scene, moments)):
        intrinsics = np.asarray(scene.intrinsics[int(moment)], np.float64).copy()
        intrinsics[:2, :2] *= scale
        # Middle to middle; pixel centres lie at integers.
        intrinsics[0, 2] = (intrinsics[0, 2] - (columns - 1) / 2) * scale + (width - 1) / 2
        intrinsics[1, 2] = (intrinsics[1, 2] - (rows - 1) / 2) * scale + (height - 1) / 2
        result.append(splat.Camera(pose, intrinsics, height, width))
    return result


def _interpolate(scene: Scene, moments: np.ndarray) -> np.ndarray:
    """(M, 4, 4) world_from_cam between the frames: linear centres, rotations along the arc."""
    poses = np.asarray(scene.world_from_cam, np.float64)
    if len(poses) == 1:
        return np.repeat(poses, len(moments), axis=0)
    frames = np.arange(len(poses))
    moments = np.minimum(moments, frames[-1])  # the orbit's last frame has no next one
    result = np.tile(np.eye(4), (len(moments), 1, 1))
    result[:, :3, :3] = Slerp(frames, Rotation.from_matrix(poses[:, :3, :3]))(moments).as_matrix()
    for axis in range(3):
        result[:, axis, 3] = np.interp(moments, frames, poses[:, axis, 3])
    return result


def _median_depth(scene: Scene) -> float:
    depth = np.asarray(scene.depth).reshape(-1)[:: max(1, scene.depth.size // 1_000_000)]
    valid = depth[np.isfinite(depth) & (depth > 0)]
    return float(np.median(valid)) if valid.size else 1.0


def _focal(height: int, width: int) -> float:
    return min(height, width) / 2 / np.tan(np.radians(FIELD_OF_VIEW / 2))


def _intrinsics(focal: float, height: int, width: int) -> np.ndarray:
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
