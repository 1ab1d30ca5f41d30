"""Writes PyTorch files byte by byte, so that tests need no PyTorch. Opcodes as `torch.save` emits.

Arrays become tensors with a storage of their own; `View` puts several tensors on one storage;
`Raw` inserts opcodes as they are (for hostile files).
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

KINDS = {
    np.dtype("f8"): "DoubleStorage",
    np.dtype("f4"): "FloatStorage",
    np.dtype("f2"): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype("i8"): "LongStorage",
    np.dtype("i4"): "IntStorage",
    np.dtype("u1"): "ByteStorage",
    np.dtype("?"): "BoolStorage",
}


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A tensor on a flat array, strides in elements. `declared`: its size in the pickle."""

    storage: np.ndarray
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    declared: int | None = None


@dataclasses.dataclass(frozen=True)
class Raw:
    opcodes: bytes


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, qualified: str) -> bytes:
    return f"c{module}\n{qualified}\n".encode()


class _Pickle:
    def __init__(self, legacy: bool):
        self._legacy = legacy
        self.storages: dict[int, tuple[str, np.ndarray]] = {}

    def emit(self, value: Any) -> bytes:
        if isinstance(value, Raw):
            return value.opcodes
        if isinstance(value, (View, np.ndarray)):
            return self._tensor(value)
        if isinstance(value, np.generic):
            return self._scalar(value)
        if value is None or isinstance(value, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if isinstance(value, int):
            size = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, str):
            return text(value)
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self.emit, value)) + b"t"
        if isinstance(value, list):
            return b"](" + b"".join(map(self.emit, value)) + b"e"
        if isinstance(value, argparse.Namespace):
            return name("argparse", "Namespace") + b")\x81" + self.emit(vars(value)) + b"b"
        items = b"".join(self.emit(key) + self.emit(item) for key, item in value.items())
        if isinstance(value, collections.OrderedDict):  # with the attributes of a state dict
            built = name("collections", "OrderedDict") + b")R(" + items + b"u"
            return built + self.emit({"_metadata": {"": {"version": 1}}}) + b"b"
        return b"}(" + items + b"u"

    def _tensor(self, value: View | np.ndarray) -> bytes:
        if isinstance(value, np.ndarray):
            strides = tuple(stride // value.itemsize for stride in np.empty_like(value).strides)
            value = View(np.ascontiguousarray(value).reshape(-1), 0, value.shape, strides)
        key, storage = self.storages.setdefault(
            id(value.storage), (str(len(self.storages)), value.storage)
        )
        identifier = (
            "storage", Raw(name("torch", KINDS[storage.dtype])), key, "cuda:0",
            storage.size if value.declared is None else value.declared,
        ) + ((None,) if self._legacy else ())  # fmt: skip
        arguments = (
            Raw(self.emit(identifier) + b"Q"), value.offset, value.shape, value.strides, False,
            Raw(name("collections", "OrderedDict") + b")R"),
        )  # fmt: skip
        return name("torch._utils", "_rebuild_tensor_v2") + self.emit(arguments) + b"R"

    def _scalar(self, value: np.generic) -> bytes:
        dtype = name("numpy", "dtype") + self.emit((value.dtype.str[1:], False, True)) + b"R"
        dtype += self.emit((3, "<", None, None, None, -1, -1, 0)) + b"b"
        data = name("_codecs", "encode") + self.emit((value.tobytes().decode("latin1"), "latin1"))
        arguments = (Raw(dtype), Raw(data + b"R"))
        return name("numpy._core.multiarray", "scalar") + self.emit(arguments) + b"R"


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + _Pickle(legacy=False).emit(value) + b"."


def write_zip(path: Path, value: Any, compression: int = zipfile.ZIP_STORED) -> Path:
    pickle = _Pickle(legacy=False)
    content = b"\x80\x02" + pickle.emit(value) + b"."
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", b"little")
        for key, storage in pickle.storages.values():
            archive.writestr(f"archive/data/{key}", storage.tobytes())
        archive.writestr("archive/version", b"3\n")
    return path


def write_legacy(path: Path, value: Any) -> Path:
    pickle = _Pickle(legacy=True)
    content = b"\x80\x02" + pickle.emit(value) + b"."
    with path.open("wb") as file:
        file.write(pickled(0x1950A86A20F9469CFC6C) + pickled(1001))
        file.write(pickled({"protocol_version": 1001, "little_endian": True}) + content)
        file.write(pickled([key for key, _ in pickle.storages.values()]))
        for _, storage in pickle.storages.values():
            file.write(struct.pack("<q", storage.size) + storage.tobytes())
    return path
