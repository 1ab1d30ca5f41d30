"""Writes Waymo frames in the public format: the protocol buffer's bytes and the TFRecord around."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

# CRC-32C of all 256 bytes, by long division, for the test's own checksums.
_POLYNOMIAL = 0x82F63B78


def crc32c(data):
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def masked(data):
    value = crc32c(data)
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def tfrecord(records):
    """The bytes of a file of these records; the data's own checksums are left 0."""
    parts = []
    for data in records:
        length = struct.pack("<Q", len(data))
        parts += [length, struct.pack("<I", masked(length)), data, bytes(4)]
    return b"".join(parts)


def varint(value):
    value &= (1 << 64) - 1  # negative numbers take ten bytes
    out = bytearray()
    while True:
        out.append((value & 0x7F) | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)


def number(field, value):
    return varint(field << 3) + varint(value)


def message(field, *parts):
    data = b"".join(parts)
    return varint(field << 3 | 2) + varint(len(data)) + data


def doubles(field, values, *, packed=False):
    values = np.ravel(values).astype("<f8")
    if packed:
        return message(field, values.tobytes())
    return b"".join(varint(field << 3 | 1) + struct.pack("<d", value) for value in values)


def transform(field, matrix):
    return message(field, doubles(1, matrix))


def matrix(field, values):
    """A zlib-compressed MatrixFloat or MatrixInt32."""
    shape = message(2, *(number(1, side) for side in values.shape))
    if values.dtype.kind == "f":
        data = message(1, values.astype("<f4").tobytes())
    else:
        data = message(1, *(varint(int(value)) for value in values.ravel()))
    return message(field, zlib.compress(data + shape))


def range_image(ranges, projections, poses=None):
    parts = [matrix(2, ranges), matrix(3, projections)]
    return b"".join(parts if poses is None else [*parts, matrix(4, poses)])


def frame(world_from_car, cameras, lasers):
    """cameras: (name, intrinsic, extrinsic, image, pose or None); lasers: (name, inclinations or
    (min, max), extrinsic, bytes of the first return)."""
    calibrations, images, scanners, returns = [], [], [], []
    for name, intrinsic, extrinsic, image, pose in cameras:
        height, width = image.shape[:2]
        calibrations.append(
            message(
                2, number(1, name), doubles(2, intrinsic), transform(3, extrinsic),
                number(4, width), number(5, height),
            )
        )  # fmt: skip
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=95, subsampling=0)
        at = b"" if pose is None else transform(3, pose)
        images.append(message(4, number(1, name), message(2, stream.getvalue()), at))
    for name, beams, extrinsic, first in lasers:
        if isinstance(beams, tuple):
            angles = doubles(3, beams[0]) + doubles(4, beams[1])
        else:
            angles = doubles(2, beams, packed=True)
        scanners.append(message(3, number(1, name), angles, transform(5, extrinsic)))
        returns.append(message(5, number(1, name), message(2, first)))
    context = message(1, message(1, b"a sequence"), *calibrations, *scanners)
    # Fields that the reader does not know stand between: a time, a label, a 32-bit number.
    unknown = number(2, 1550083467346370) + message(6, b"\x0a\x00") + varint(99 << 3 | 5) + b"abcd"
    return context + unknown + transform(3, world_from_car) + b"".join(images + returns)
