"""TFRecord files without TensorFlow: where the records lie, and one of them.

A record is its length (8 bytes, little endian), a masked CRC-32C of these 8 bytes, the data, and a
masked CRC-32C of the data. The mask turns the checksum right by 15 bits and adds a constant.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import NamedTuple

from align3r_jax.errors import UserError

_HEADER = 12  # length and its checksum
_FOOTER = 4
_POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed
_MASK = 0xA282EAD8


class Record(NamedTuple):
    """Where the data of one record lies in its file, in bytes."""

    offset: int
    length: int


def index(path: Path) -> tuple[Record, ...]:
    """Returns the records of a file in their order, by its headers alone.

    Raises UserError if the file is unreadable, cut short, or no TFRecord (checksum of a length).
    """
    records, position = [], 0
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            while position < size:
                file.seek(position)
                header = file.read(_HEADER)
                if len(header) < _HEADER:
                    raise UserError(f"'{path}' is cut short after record {len(records)}.")
                (length,) = struct.unpack_from("<Q", header)
                if struct.unpack_from("<I", header, 8)[0] != masked_crc32c(header[:8]):
                    raise UserError(
                        f"'{path}' is damaged, or no TFRecord file: the checksum at byte "
                        f"{position} (record {len(records)}) does not fit."
                    )
                records.append(Record(position + _HEADER, length))
                position += _HEADER + length + _FOOTER
                if position > size:
                    raise UserError(
                        f"'{path}' is cut short within record {len(records) - 1}: {size} bytes "
                        f"instead of {position} or more. Download it again."
                    )
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error}).") from error
    return tuple(records)


def read(path: Path, record: Record) -> bytes:
    """Returns the data of one record. Raises UserError if the file is unreadable or was cut.

    The checksum of the data is left alone: it is slow without a compiled CRC-32C, and what lies in
    the records of Waymo (JPEG, zlib) carries its own.
    """
    try:
        with path.open("rb") as file:
            file.seek(record.offset)
            data = file.read(record.length)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error}).") from error
    if len(data) != record.length:
        raise UserError(f"'{path}' has changed: a record at byte {record.offset} is cut short.")
    return data


def masked_crc32c(data: bytes) -> int:
    """(c >> 15 | c << 17) + 0xa282ead8 modulo 2^32, c the CRC-32C (Castagnoli) of the data."""
    table = _table()
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ table[(value ^ byte) & 0xFF]
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + _MASK) & 0xFFFFFFFF


@functools.cache
def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return tuple(table)
