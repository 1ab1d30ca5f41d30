"""COLMAP models to write: `cameras`, `images` and `points3D`, text or binary.

COLMAP counts pixels from the image's outer corner, so every coordinate is half a pixel more than
here. Format: COLMAP's documentation, "Output Format".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from align3r_jax.io import point_tracks
from align3r_jax.io.pointcloud import PointCloud

_PINHOLE = 1  # the model's number in binary files: fx fy cx cy


class Model(NamedTuple):
    """What a model is made of.

    names: T file names of pictures, no blanks (text files end names there). image_size: (height,
    width). intrinsics: (T, 3, 3), pixel centres at integers; frames that share them share one
    camera. world_from_cam: (T, 4, 4), x right, y down, z forward. cloud: N world points. tracks:
    who sees which.
    """

    names: tuple[str, ...]
    image_size: tuple[int, int]
    intrinsics: np.ndarray
    world_from_cam: np.ndarray
    cloud: PointCloud
    tracks: point_tracks.Tracks


class _Image(NamedTuple):
    """rotation: quaternion w x y z of cam_from_world. points: (M,) indices of what it sees."""

    identifier: int
    rotation: list[float]
    translation: list[float]
    camera: int
    name: str
    pixels: np.ndarray
    points: np.ndarray


def encode(model: Model, *, binary: bool) -> dict[str, bytes]:
    """Returns file name -> content: `cameras`, `images` and `points3D`, `.bin` or `.txt`.

    Identifiers count from 1: image i + 1 is frame i, point k + 1 is point k of the cloud. Points
    are observed where they project to, so the `ERROR` of every point is 0: nothing here is a
    measurement that a bundle adjustment could improve on.
    """
    matrices, camera_of = np.unique(
        np.asarray(model.intrinsics, np.float64).reshape(-1, 9), axis=0, return_inverse=True
    )
    images = list(_images(model, camera_of.ravel()))
    # The observations of each point: (image, position in that image's list), frames ascending.
    order = np.argsort(model.tracks.point, kind="stable")
    position = np.concatenate([np.arange(len(image.points)) for image in images])
    members = np.stack([model.tracks.frame + 1, position], axis=1)[order]
    ends = np.cumsum(np.bincount(model.tracks.point, minlength=len(model.cloud)))
    tracks = np.split(members, ends[:-1]) if len(ends) else []
    suffix = ".bin" if binary else ".txt"
    writers = (
        (_binary_cameras, _binary_images, _binary_points)
        if binary
        else (_text_cameras, _text_images, _text_points)
    )
    cameras, pictures, points = writers
    return {
        f"cameras{suffix}": cameras(matrices.reshape(-1, 3, 3), model.image_size),
        f"images{suffix}": pictures(images),
        f"points3D{suffix}": points(model.cloud, tracks),
    }


def _images(model: Model, camera_of: np.ndarray) -> Iterator[_Image]:
    poses = np.asarray(model.world_from_cam, np.float64)
    cam_from_world = np.linalg.inv(poses)
    rotations = np.roll(Rotation.from_matrix(cam_from_world[:, :3, :3]).as_quat(), 1, axis=1)
    starts = np.searchsorted(model.tracks.frame, np.arange(len(model.names) + 1))
    for t, name in enumerate(model.names):
        points = model.tracks.point[starts[t] : starts[t + 1]]
        pixels, _ = point_tracks.project(model.cloud.points[points], poses[t], model.intrinsics[t])
        yield _Image(
            t + 1, rotations[t].tolist(), cam_from_world[t, :3, 3].tolist(),
            int(camera_of[t]) + 1, name, pixels + 0.5, points,
        )  # fmt: skip


def _parameters(matrix: np.ndarray) -> list[float]:
    return [*matrix[[0, 1], [0, 1]].tolist(), *(matrix[:2, 2] + 0.5).tolist()]


def _text_cameras(matrices: np.ndarray, image_size: tuple[int, int]) -> bytes:
    height, width = image_size
    lines = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[] (fx, fy, cx, cy)"]
    for k, matrix in enumerate(matrices):
        lines.append(f"{k + 1} PINHOLE {width} {height} {_numbers(_parameters(matrix))}")
    return _text(lines)


def _text_images(images: list[_Image]) -> bytes:
    lines = [
        "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME",
        "# POINTS2D[] as (X, Y, POINT3D_ID)",
    ]
    for image in images:
        pose = _numbers([*image.rotation, *image.translation])
        lines.append(f"{image.identifier} {pose} {image.camera} {image.name}")
        seen = zip(image.pixels.tolist(), (image.points + 1).tolist())
        lines.append(" ".join(f"{x:.4f} {y:.4f} {point}" for (x, y), point in seen))
    return _text(lines)


def _text_points(cloud: PointCloud, tracks: list[np.ndarray]) -> bytes:
    lines = ["# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)"]
    rows = zip(cloud.points.tolist(), cloud.colours.tolist(), tracks)
    for k, (point, (red, green, blue), track) in enumerate(rows):
        seen = " ".join(map(str, track.ravel().tolist()))
        lines.append(f"{k + 1} {_numbers(point)} {red} {green} {blue} 0 {seen}")
    return _text(lines)


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.12g}" for value in values)


def _text(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _binary_cameras(matrices: np.ndarray, image_size: tuple[int, int]) -> bytes:
    height, width = image_size
    parts = [struct.pack("<Q", len(matrices))]
    for k, matrix in enumerate(matrices):
        parts.append(struct.pack("<IiQQ4d", k + 1, _PINHOLE, width, height, *_parameters(matrix)))
    return b"".join(parts)


def _binary_images(images: list[_Image]) -> bytes:
    parts = [struct.pack("<Q", len(images))]
    for image in images:
        numbers = (image.identifier, *image.rotation, *image.translation, image.camera)
        parts.append(struct.pack("<I7dI", *numbers) + image.name.encode() + b"\0")
        seen = np.empty(len(image.points), [("pixel", "<f8", 2), ("point", "<u8")])
        seen["pixel"], seen["point"] = image.pixels, image.points + 1
        parts.append(struct.pack("<Q", len(seen)) + seen.tobytes())
    return b"".join(parts)


def _binary_points(cloud: PointCloud, tracks: list[np.ndarray]) -> bytes:
    head = np.zeros(
        len(cloud),
        [("id", "<u8"), ("point", "<f8", 3), ("colour", "u1", 3), ("error", "<f8"),
         ("length", "<u8")],
    )  # fmt: skip
    head["id"] = np.arange(len(cloud)) + 1
    head["point"], head["colour"] = cloud.points, cloud.colours
    head["length"] = [len(track) for track in tracks]
    parts = [struct.pack("<Q", len(cloud))]
    for row, track in zip(head, tracks):
        parts += [row.tobytes(), track.astype("<u4").tobytes()]
    return b"".join(parts)
