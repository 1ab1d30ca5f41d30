"""Reads PyTorch files (`.pth`, `.pt`) without PyTorch and without executing anything in them.

Two containers: the zip archive of PyTorch 1.6 and later (`<root>/data.pkl`, storages as
`<root>/data/<key>`) and the older stream of pickles followed by the storages. What may be built:
tensors, dictionaries, lists, tuples, numbers, text, `argparse.Namespace`, NumPy scalars; dtypes
become text, devices and paths the tuple of their parts (`torch_values.py`). All else is refused by
name.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.weights import torch_values

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DAMAGED_ZIP = (
    zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError,
    OSError, struct.error,
)  # fmt: skip


def read_torch(path: str | Path, skip: Collection[str] = ()) -> Any:
    """Returns the content of a PyTorch file with tensors as NumPy arrays.

    Tensors that share a storage share memory here too; the arrays may be read-only. `skip` names
    entries of the outermost dictionary that are left out, and whose tensors are not read (the
    optimizer of a training checkpoint is twice the size of its network). Raises UserError when the
    file is no PyTorch file, is truncated or corrupt, or asks for a class that weight files do not
    need.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    with path.open("rb") as file:
        head = file.read(64)
        if head[:4] == b"PK\x03\x04":
            return _read_zip(path, skip)
        if head[:1] == b"\x80":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
                return _read_legacy(stream, path.name, skip)
    raise UserError(f"{path.name} is no PyTorch file: {describe_head(head)}.")


def check(path: str | Path) -> None:
    """Raises UserError unless this is a PyTorch file that is as long as it says; reads no tensor.

    Of the older stream only the first bytes are looked at.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(64)
    if head[:1] == b"\x80":
        return
    if head[:4] != b"PK\x03\x04":
        raise UserError(f"{path.name} is no PyTorch file: {describe_head(head)}.")
    try:
        with zipfile.ZipFile(path) as archive:
            _zip_root(path, {info.filename: info for info in archive.infolist()})
    except _DAMAGED_ZIP as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path.name} is truncated or damaged; download it again.") from error


def describe_head(head: bytes) -> str:
    """Says in words what a file that is no weight file starts with."""
    if not head:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, fetch the real file with 'git lfs pull'"
    if head.lstrip()[:1] == b"<":
        return "it is a web page, the download did not deliver the file"
    return f"it starts with {head[:8]!r}"


def _read_zip(path: Path, skip: Collection[str]) -> Any:
    damaged = f"{path.name} is a truncated or damaged PyTorch file; copy or download it again"
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            root = _zip_root(path, members)

            def member(name: str) -> bytes:
                if name not in members:
                    raise UserError(f"{damaged} (it lacks {name}).")
                return archive.read(members[name])

            if members.get(f"{root}byteorder") and member(f"{root}byteorder") != b"little":
                raise UserError(
                    f"{path.name} was written on a big-endian machine, which is not supported."
                )
            content = torch_values.unpickle(io.BytesIO(member(f"{root}data.pkl")), path.name)

            def read(storage: torch_values.Storage) -> np.ndarray:
                data = member(f"{root}data/{storage.key}")
                if len(data) != storage.size * storage.dtype.itemsize:
                    raise UserError(
                        f"{damaged} (storage {storage.key} has {len(data)} bytes instead of "
                        f"{storage.size * storage.dtype.itemsize})."
                    )
                return np.frombuffer(data, storage.dtype)

            return torch_values.resolve(content, read, path.name, skip)
    except UserError:
        raise
    except _DAMAGED_ZIP as error:
        raise UserError(f"{damaged} ({error}).") from error


def _zip_root(path: Path, members: dict[str, zipfile.ZipInfo]) -> str:
    """The folder of `data.pkl` in the archive; refuses other archives and compressed ones."""
    pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise UserError(
            f"{path.name} is a zip archive but no PyTorch file: it holds {len(pickles)} members "
            "named data.pkl, expected 1."
        )
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in members:
        raise UserError(
            f"{path.name} is a TorchScript program, not weights; save the state_dict() of the "
            "network instead."
        )
    infos = members.values()
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise UserError(
            f"{path.name} has compressed members, which PyTorch never writes; unpack the archive "
            "and save the weights with PyTorch again."
        )
    if sum(info.file_size for info in infos) > path.stat().st_size:
        raise UserError(f"{path.name} declares more data than it has; download it again.")
    return root


def _read_legacy(stream: mmap.mmap, name: str, skip: Collection[str]) -> Any:
    """Pickles of magic, version, system, content, storage keys; then each storage."""
    if torch_values.unpickle(stream, name) != _LEGACY_MAGIC:
        raise UserError(
            f"{name} is a pickle but no PyTorch file (its first value is not PyTorch's magic "
            "number)."
        )
    torch_values.unpickle(stream, name)
    system = torch_values.unpickle(stream, name)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise UserError(f"{name} was written on a big-endian machine, which is not supported.")
    roots: dict[str, tuple[np.dtype, int]] = {}
    content = torch_values.unpickle(stream, name, roots)
    keys = torch_values.unpickle(stream, name)
    arrays: dict[str, np.ndarray] = {}
    listed = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not listed or sorted(keys) != sorted(roots):
        raise UserError(f"{name} lists other storages than its tensors use; download it again.")
    for key in keys:
        dtype, size = roots[key]
        declared = int.from_bytes(stream.read(8), "little")
        start = stream.tell()
        if declared != size or start + size * dtype.itemsize > len(stream):
            raise UserError(
                f"{name} is truncated or damaged at storage {key}; copy or download it again."
            )
        stream.seek(start + size * dtype.itemsize)
        # Copied: a view of the mapped file would die with it.
        arrays[key] = np.frombuffer(stream, dtype, size, start).copy()

    def read(storage: torch_values.Storage) -> np.ndarray:
        return arrays[storage.key][storage.start : storage.start + storage.size]

    return torch_values.resolve(content, read, name, skip)
