"""COLMAP reconstructions: `cameras` and `images`, text or binary (the points are not needed)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from align3r_jax.errors import UserError
from align3r_jax.io.camera_file import CameraFile, distortion_note, distortion_shift, matrix


class _Model(NamedTuple):
    """A camera model: its parameters in the order of the file; fisheye models have no pinhole."""

    name: str
    parameters: tuple[str, ...]
    fisheye: bool = False


_RADIAL = ("f", "cx", "cy", "k1", "k2")
_OPENCV = ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2")
# The numbers are those of the binary files.
_MODELS = {
    0: _Model("SIMPLE_PINHOLE", _RADIAL[:3]),
    1: _Model("PINHOLE", _OPENCV[:4]),
    2: _Model("SIMPLE_RADIAL", _RADIAL[:4]),
    3: _Model("RADIAL", _RADIAL),
    4: _Model("OPENCV", _OPENCV),
    5: _Model("OPENCV_FISHEYE", (*_OPENCV[:6], "k3", "k4"), fisheye=True),
    6: _Model("FULL_OPENCV", (*_OPENCV, "k3", "k4", "k5", "k6")),
    7: _Model("FOV", (*_OPENCV[:4], "omega"), fisheye=True),
    8: _Model("SIMPLE_RADIAL_FISHEYE", _RADIAL[:4], fisheye=True),
    9: _Model("RADIAL_FISHEYE", _RADIAL, fisheye=True),
    10: _Model("THIN_PRISM_FISHEYE", (*_OPENCV, "k3", "k4", "sx1", "sy1"), fisheye=True),
}
_BY_NAME = {model.name: model for model in _MODELS.values()}
_SUBFOLDERS = ("", "sparse/0", "sparse", "0", "colmap/sparse/0")


class _Camera(NamedTuple):
    model: _Model
    width: int
    height: int
    values: dict[str, float]


class _Image(NamedTuple):
    name: str
    camera: int
    world_from_cam: np.ndarray


def find(folder: Path) -> Path | None:
    """Returns where in `folder` the model lies (the folder, `sparse/0`, ...); None if nowhere."""
    for name in _SUBFOLDERS:
        for suffix in (".bin", ".txt"):
            if (folder / name / f"cameras{suffix}").is_file():
                return folder / name
    return None


def read_colmap(folder: str | Path) -> CameraFile:
    """Returns the cameras of `cameras.bin` and `images.bin`, or of the `.txt` files.

    Poses are in the world of the reconstruction. A folder without `images` gives one camera for
    every frame. Lens distortion is left out; if it moves the corners of the image by more than a
    thousandth of its long side, a note says so.

    Raises:
        UserError: missing or damaged files, fisheye lenses, several cameras without images.
    """
    folder = Path(folder)
    suffix = ".bin" if (folder / "cameras.bin").is_file() else ".txt"
    read_cameras, read_images = (
        (_binary_cameras, _binary_images) if suffix == ".bin" else (_text_cameras, _text_images)
    )
    cameras = _read(folder / f"cameras{suffix}", read_cameras)
    path = folder / f"images{suffix}"
    images = _read(path, read_images) if path.is_file() else []
    for identifier, camera in cameras.items():
        if camera.model.fisheye:
            raise UserError(
                f"Camera {identifier} of {folder} is a {camera.model.name}, which no pinhole comes "
                "near; undistort the video (colmap image_undistorter) and give those cameras."
            )
    if not images:
        if len(cameras) != 1:
            raise UserError(
                f"{folder} holds {len(cameras)} cameras but no images{suffix} that says which "
                "frame was taken with which."
            )
        images = [_Image("", next(iter(cameras)), np.full((4, 4), np.nan))]
    unknown = sorted({image.camera for image in images} - set(cameras))
    if unknown:
        raise UserError(f"{path} names camera {unknown[0]}, which cameras{suffix} does not hold.")
    everywhere = images[0].name == ""
    used = [cameras[image.camera] for image in images]
    return CameraFile(
        format="COLMAP",
        names=None if everywhere else tuple(image.name for image in images),
        everywhere=everywhere,
        intrinsics=np.stack([_intrinsics(camera) for camera in used]),
        image_sizes=np.array([(camera.height, camera.width) for camera in used], np.float64),
        world_from_cam=None if everywhere else np.stack([image.world_from_cam for image in images]),
        notes=tuple(note for k, camera in cameras.items() for note in _notes(k, camera)),
    )


def _intrinsics(camera: _Camera) -> np.ndarray:
    return matrix(*_pinhole(camera.values))


def _pinhole(values: dict[str, float]) -> tuple[float, float, float, float]:
    fx = values["f"] if "f" in values else values["fx"]
    return fx, values.get("fy", fx), values["cx"], values["cy"]


def _notes(identifier: int, camera: _Camera) -> tuple[str, ...]:
    shift = distortion_shift(camera.values, *_pinhole(camera.values), camera.height, camera.width)
    name = f"COLMAP camera {identifier} ({camera.model.name})"
    return distortion_note(shift, camera.height, camera.width, name)


def _camera(model: _Model, width: int, height: int, values: list[float]) -> _Camera:
    camera = _Camera(model, width, height, dict(zip(model.parameters, values, strict=True)))
    focals = _pinhole(camera.values)[:2]
    if not (np.isfinite(values).all() and min(focals) > 0 and min(width, height) > 0):
        raise ValueError(f"a {model.name} camera with the parameters {values}")
    return camera


def _image(name: str, camera: int, quaternion: list[float], translation: list[float]) -> _Image:
    """quaternion: w x y z and translation of cam_from_world."""
    rotation = Rotation.from_quat(np.roll(quaternion, -1)).as_matrix().T
    world_from_cam = np.eye(4)
    world_from_cam[:3, :3] = rotation
    world_from_cam[:3, 3] = -rotation @ np.asarray(translation)
    if not np.isfinite(world_from_cam).all():
        raise ValueError(f"the pose of {name}")
    return _Image(name, camera, world_from_cam)


def _read(path, reader):
    try:
        return reader(path.read_bytes())
    except (OSError, ValueError, IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read as a file of COLMAP ({error}).") from error


def _lines(content: bytes) -> list[list[str]]:
    """Fields of all lines that are no comment; empty lines count (an image without points)."""
    lines = content.decode("utf-8").splitlines()
    return [line.split() for line in lines if not line.lstrip().startswith("#")]


def _text_cameras(content: bytes) -> dict[int, _Camera]:
    cameras = {}
    for fields in _lines(content):
        if fields:
            model = _BY_NAME[fields[1]]
            width, height = int(fields[2]), int(fields[3])
            cameras[int(fields[0])] = _camera(model, width, height, list(map(float, fields[4:])))
    return cameras


def _text_images(content: bytes) -> list[_Image]:
    images = []
    lines = _lines(content)
    position = 0
    while position < len(lines):
        fields = lines[position]
        position += 1
        if not fields:
            continue
        numbers = list(map(float, fields[1:8]))
        name = " ".join(fields[9:])
        if not name:
            raise ValueError(f"no name in '{' '.join(fields)[:60]}'")
        images.append(_image(name, int(fields[8]), numbers[:4], numbers[4:]))
        # The next line holds the image's points (x, y, id each); files of known poses leave it out.
        if position < len(lines) and _is_points(lines[position]):
            position += 1
    return images


def _is_points(fields: list[str]) -> bool:
    try:
        return len(fields) % 3 == 0 and all(np.isfinite(float(field)) for field in fields)
    except ValueError:
        return False


def _binary_cameras(content: bytes) -> dict[int, _Camera]:
    (count,) = struct.unpack_from("<Q", content)
    position, cameras = 8, {}
    for _ in range(count):
        identifier, number, width, height = struct.unpack_from("<iiQQ", content, position)
        model = _MODELS[number]
        values = struct.unpack_from(f"<{len(model.parameters)}d", content, position + 24)
        cameras[identifier] = _camera(model, width, height, list(values))
        position += 24 + 8 * len(values)
    return cameras


def _binary_images(content: bytes) -> list[_Image]:
    (count,) = struct.unpack_from("<Q", content)
    position, images = 8, []
    for _ in range(count):
        _, *numbers, camera = struct.unpack_from("<i7di", content, position)
        end = content.index(b"\0", position + 64)
        name = content[position + 64 : end].decode("utf-8")
        (points,) = struct.unpack_from("<Q", content, end + 1)
        position = end + 9 + 24 * points
        images.append(_image(name, camera, numbers[:4], numbers[4:]))
    return images
