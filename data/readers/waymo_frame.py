"""One frame of the Waymo Open Dataset (perception, version 1): what its protocol buffer holds.

A reader of the wire format for the few fields that are needed, instead of the package of the data
set, which needs TensorFlow. The numbers of the fields are those of the set's `dataset.proto`:

    Frame        1 context, 3 pose, 4 images, 5 lasers
    Context      2 camera_calibrations, 3 laser_calibrations
    camera       1 name, 2 intrinsic (fu fv cu cv k1 k2 p1 p2 k3), 3 extrinsic, 4 width, 5 height
    laser        1 name, 2 beam_inclinations, 3 and 4 their ends, 5 extrinsic
    CameraImage  1 name, 2 image (JPEG), 3 pose
    Laser        1 name, 2 first return, 3 second return
    RangeImage   2 ranges, 3 camera projections, 4 poses: matrices (1 data, 2 shape), zlib
    Transform    1 sixteen doubles, row by row
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

TOP_LASER = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Camera(NamedTuple):
    """One picture. intrinsic: nine numbers of the lens. world_from_car: (4, 4) at the exposure,
    None if not told. size: (H, W). image: the JPEG."""

    intrinsic: np.ndarray
    car_from_camera: np.ndarray
    world_from_car: np.ndarray | None
    size: tuple[int, int]
    image: bytes


class Laser(NamedTuple):
    """One scanner's first returns, rows from the highest beam down.

    ranges: (H, W, 4), metres first, not positive where nothing came back. projections: (H, W, 6)
    integers, twice (camera, x, y), camera 0 where there is none. poses: (H, W, 6) roll, pitch,
    yaw, x, y, z of the car in the world when the beam was sent, or None: all ranges are of the
    pose of the frame. inclinations: (H,) radians, row by row. car_from_laser: (4, 4).
    """

    ranges: np.ndarray
    projections: np.ndarray
    poses: np.ndarray | None
    inclinations: np.ndarray
    car_from_laser: np.ndarray


class Frame(NamedTuple):
    """world_from_car: (4, 4) of the frame. cameras: by number, 1 to 5. lasers: by number."""

    world_from_car: np.ndarray
    cameras: dict[int, Camera]
    lasers: dict[int, Laser]


def parse(data: bytes, camera: int) -> Frame:
    """Returns a frame with the picture of one camera and all lasers in the order of their numbers.

    Raises ValueError that says what is missing or damaged.
    """
    frame = _fields(data)
    context = _fields(_only(frame, 1, "context"))
    images = {_number(image, 1): image for image in map(_fields, frame.get(4, []))}
    calibrations = {_number(item, 1): item for item in map(_fields, context.get(2, []))}
    if camera not in images or camera not in calibrations:
        raise ValueError(f"camera {camera} is not among {sorted(set(images) & set(calibrations))}")
    scanners = {_number(item, 1): item for item in map(_fields, context.get(3, []))}
    lasers = {_number(item, 1): item for item in map(_fields, frame.get(5, []))}
    without = sorted(set(lasers) - set(scanners))
    if without:
        raise ValueError(f"laser {without[0]} has no calibration")
    return Frame(
        _transform(_only(frame, 3, "pose")),
        {camera: _camera(images[camera], calibrations[camera])},
        {number: _laser(lasers[number], scanners[number]) for number in sorted(lasers)},
    )


def _camera(image: _Message, calibration: _Message) -> Camera:
    intrinsic = _doubles(calibration, 2)
    if len(intrinsic) != 9:
        raise ValueError(f"a camera has {len(intrinsic)} intrinsics instead of 9")
    return Camera(
        intrinsic,
        _transform(_only(calibration, 3, "extrinsic of a camera")),
        _transform(image[3][-1]) if 3 in image else None,
        (_number(calibration, 5), _number(calibration, 4)),
        bytes(_only(image, 2, "picture")),
    )


def _laser(laser: _Message, calibration: _Message) -> Laser:
    first = _fields(_only(laser, 2, "first return of a laser"))
    ranges = _matrix(_only(first, 2, "ranges of a laser"), floats=True)
    projections = _matrix(_only(first, 3, "camera projections of a laser"), floats=False)
    poses = _matrix(first[4][-1], floats=True) if first.get(4, [b""])[-1] else None
    rows = ranges.shape[:2]
    for name, array, depth in (
        ("ranges", ranges, 4), ("projections", projections, 6), ("poses", poses, 6)
    ):  # fmt: skip
        if array is not None and array.shape != (*rows, depth):
            raise ValueError(f"the {name} of a laser are {array.shape}, not {(*rows, depth)}")
    inclinations = _doubles(calibration, 2)
    if len(inclinations) == 0:
        low, high = _doubles(calibration, 3)[-1], _doubles(calibration, 4)[-1]
        inclinations = low + (np.arange(rows[0]) + 0.5) / rows[0] * (high - low)
    if len(inclinations) != rows[0]:
        raise ValueError(f"a laser has {len(inclinations)} beams but {rows[0]} rows of ranges")
    car_from_laser = _transform(_only(calibration, 5, "extrinsic of a laser"))
    return Laser(ranges, projections, poses, inclinations[::-1], car_from_laser)


# A message: number of the field -> its values in order; bytes for all but varints.
_Message = dict[int, list]


def _fields(data: bytes | memoryview) -> _Message:
    found: _Message = {}
    data, position = memoryview(data), 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
        else:
            if kind == _BYTES:
                size, position = _varint(data, position)
            elif kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
            else:
                raise ValueError(f"a field of the unknown kind {kind}")
            value, position = data[position : position + size], position + size
            if position > len(data):
                raise ValueError("a field is longer than its message")
        found.setdefault(key >> 3, []).append(value)
    return found


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("a number does not end")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _only(message: _Message, field: int, what: str) -> memoryview:
    values = message.get(field, [])
    if not values or not isinstance(values[-1], memoryview):
        raise ValueError(f"there is no {what}")
    return values[-1]


def _number(message: _Message, field: int) -> int:
    values = message.get(field, [0])
    if not isinstance(values[-1], int):
        raise ValueError(f"field {field} is no number")
    return values[-1]


def _joined(message: _Message, field: int) -> bytes:
    """Repeated numbers of fixed size, one by one or packed: the bytes are the same."""
    return b"".join(message.get(field, []))


def _doubles(message: _Message, field: int) -> np.ndarray:
    return np.frombuffer(_joined(message, field), "<f8")


def _transform(data: memoryview) -> np.ndarray:
    values = _doubles(_fields(data), 1)
    if len(values) != 16 or not np.isfinite(values).all():
        raise ValueError(f"a transform has {len(values)} numbers, or they are not finite")
    return values.reshape(4, 4)


def _matrix(compressed: memoryview, *, floats: bool) -> np.ndarray:
    try:
        message = _fields(zlib.decompress(compressed))
    except zlib.error as error:
        raise ValueError(f"a range image is damaged ({error})") from error
    shape = _integers(_fields(_only(message, 2, "shape of a range image")), 1)
    values = np.frombuffer(_joined(message, 1), "<f4") if floats else _integers(message, 1)
    if values.size != np.prod(shape):
        raise ValueError(f"a range image has {values.size} values for the shape {shape.tolist()}")
    return values.reshape(shape)


def _integers(message: _Message, field: int) -> np.ndarray:
    values = message.get(field, [])
    parts = [[value] if isinstance(value, int) else _varints(value) for value in values]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def _varints(data: memoryview) -> np.ndarray:
    """All numbers of packed varints at once: sum of (byte & 127) 128^k over the bytes of each."""
    octets = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(octets < 0x80)
    if octets.size and (ends.size == 0 or ends[-1] != octets.size - 1):
        raise ValueError("packed numbers do not end")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    values = np.zeros(ends.size, np.uint64)
    for k in range(int(lengths.max(initial=0))):
        has = lengths > k
        values[has] |= (octets[starts[has] + k] & 0x7F).astype(np.uint64) << np.uint64(7 * k)
    return values.view(np.int64)
