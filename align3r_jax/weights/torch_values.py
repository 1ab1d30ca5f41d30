"""What a PyTorch pickle may build: tensors, dictionaries, plain settings. Nothing is imported.

Tensors become records first (their storages may follow the pickle) and arrays in `resolve`. No
builder copies what it is given: copies of shared values could outgrow the file without bound.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import math
import re
from collections.abc import Callable, Collection
from typing import Any

import ml_dtypes
import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.weights import pickle_reader

_STORAGE_DTYPES: dict[str, Any] = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2",
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
_DTYPE_NAMES = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip
_MAX_DEPTH = 64  # of nested containers; checkpoints have about 6
_MAX_DIMENSIONS = 16
# A tensor may repeat its storage (stride 0) up to this many elements: a few bytes must not be able
# to claim terabytes.
_MAX_REPEATED = 2**24


@dataclasses.dataclass(frozen=True)
class Storage:
    """A flat array of the file, known before its bytes are read."""

    key: str
    dtype: np.dtype
    size: int  # elements
    start: int = 0  # first element within the root storage `key` (views of the older format)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The view `storage[offset + sum(i_k * strides_k)]`, strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass
class ScalarType:
    """A NumPy dtype under construction: kind and bytes, byte order set by BUILD."""

    code: str
    order: str = "<"


def unpickle(
    stream: pickle_reader.Stream, source: str, roots: dict[str, tuple[np.dtype, int]] | None = None
) -> Any:
    """Returns the object of one pickle, tensors as records for `resolve`.

    `roots`, if given, collects dtype and size of every storage by key. `source` names the file in
    messages. Raises UserError for anything outside the table below.
    """

    def persistent_load(identifier: Any) -> Storage:
        if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
            raise ValueError("a persistent id that is no storage")
        _, kind, key, _, size = identifier[:5]
        if not isinstance(kind, pickle_reader.Allowed) or kind.name not in _STORAGE_DTYPES:
            raise ValueError("a storage of unknown type")
        if not isinstance(key, str) or not isinstance(size, int) or size < 0:
            raise ValueError("a storage without key or size")
        dtype = np.dtype(_STORAGE_DTYPES[kind.name])
        if roots is not None and roots.setdefault(key, (dtype, size)) != (dtype, size):
            raise ValueError(f"storage {key} declared twice, differently")
        if len(identifier) > 5 and identifier[5] is not None:
            _, start, length = identifier[5]
            if min(start, length) < 0 or start + length > size:
                raise ValueError(f"a view outside storage {key}")
            return Storage(key, dtype, length, start)
        return Storage(key, dtype, size)

    return pickle_reader.load(stream, _TABLE, persistent_load, _set_state, source)


def resolve(
    content: Any, read: Callable[[Storage], np.ndarray], source: str, skip: Collection[str] = ()
) -> Any:
    """Replaces the tensor records in `content` by arrays, in place where it can.

    `read(storage)` gives the flat array of a storage and is called once for each. Entries of the
    outermost dictionary named in `skip` are dropped unread. Raises UserError for deep nesting.
    """
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in skip}
    return _Resolver(read, source).resolve(content, 0)


class _Resolver:
    """Walks containers once each, so shared ones stay shared."""

    def __init__(self, read: Callable[[Storage], np.ndarray], source: str):
        self._read, self._source = read, source
        self._storages: dict[Storage, np.ndarray] = {}
        self._done: dict[int, Any] = {}
        # Identities stay unique only while the objects live; replaced tuples would be freed.
        self._alive: list[Any] = []

    def resolve(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, (str, bytes, int, float, np.generic)):
            return value
        if id(value) in self._done:
            return self._done[id(value)]
        if depth > _MAX_DEPTH:
            raise UserError(
                f"{self._source} nests containers deeper than {_MAX_DEPTH}; it holds no weights."
            )
        self._alive.append(value)
        self._done[id(value)] = result = value
        if isinstance(value, Tensor):
            result = self._array(value)
        elif isinstance(value, Storage):
            result = self._storage(value)
        elif isinstance(value, tuple):
            result = tuple(self.resolve(item, depth + 1) for item in value)
        elif isinstance(value, list):
            value[:] = [self.resolve(item, depth + 1) for item in value]
        elif isinstance(value, (dict, argparse.Namespace)):
            items = value if isinstance(value, dict) else vars(value)
            for key in items:  # the keys stay
                items[key] = self.resolve(items[key], depth + 1)
        else:  # a bare class of the table: a dtype or a storage type kept as a setting
            result = str(value)
        self._done[id(value)] = result
        return result

    def _storage(self, storage: Storage) -> np.ndarray:
        if storage not in self._storages:
            self._storages[storage] = self._read(storage)
        return self._storages[storage]

    def _array(self, tensor: Tensor) -> np.ndarray:
        storage = self._storage(tensor.storage)
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, storage.dtype)
        # A view, bounds were checked when the record was made.
        return np.lib.stride_tricks.as_strided(
            storage[tensor.offset :],
            tensor.shape,
            [stride * storage.dtype.itemsize for stride in tensor.strides],
            writeable=False,
        )


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """The tensor `storage[offset + sum(i_k * strides_k)]`; refuses what leaves the storage."""
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError("a tensor with inconsistent sizes and strides")
    numbers = (offset, *shape, *strides)
    if not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError("a tensor with sizes that are no natural numbers")
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without storage")
    count = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
    if count and last >= storage.size:
        raise ValueError(f"a tensor that leaves its storage ({last} >= {storage.size})")
    if math.prod(n or 1 for n in shape) > max(storage.size, _MAX_REPEATED):
        raise ValueError(f"a tensor of {storage.size} numbers repeated to more than 2**24")
    # The stride of a dimension of size 1 is free, hence unbounded: drop it.
    return Tensor(
        storage, offset, tuple(shape), tuple(s if n > 1 else 0 for n, s in zip(shape, strides))
    )


def _scalar_type(code: Any, *_: Any) -> ScalarType:
    if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]", code):
        raise ValueError("a NumPy scalar that is no number")
    return ScalarType(code)


def _scalar(kind: Any, data: Any) -> np.generic:
    dtype = np.dtype(kind.order + kind.code)
    if not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise ValueError("a NumPy scalar of the wrong length")
    return np.frombuffer(data, dtype)[0]


def _encode(text: str, encoding: str) -> bytes:
    """How pickle protocol 2 writes bytes; here only those of a NumPy scalar."""
    if encoding not in ("latin1", "latin-1") or len(text) > 16:
        raise ValueError("bytes that are no NumPy scalar")
    return text.encode("latin-1")


def _ordered() -> collections.OrderedDict:
    return collections.OrderedDict()


def _namespace() -> argparse.Namespace:
    return argparse.Namespace()


def _parts(*parts: Any) -> tuple[Any, ...]:
    return parts


def _first(value: Any, *_: Any) -> Any:
    return value


def _set_state(value: Any, state: Any) -> None:
    """BUILD: the attributes of a Namespace, the byte order of a NumPy dtype."""
    if isinstance(value, argparse.Namespace) and isinstance(state, dict):
        value.__dict__ = state  # not copied: a state given to many must not multiply
    elif isinstance(value, ScalarType):
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("a NumPy scalar with unknown byte order")
        value.order = state[1]
    elif not isinstance(value, collections.OrderedDict):
        # The attributes of a state dict (module versions) are of no use here.
        raise ValueError(f"attributes set on a {type(value).__name__}")


def _table() -> dict[tuple[str, str], pickle_reader.Allowed]:
    builders: dict[tuple[str, str], Callable[..., Any] | None] = {
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _first,
        ("torch", "Size"): _first,
        ("torch", "device"): _parts,
        ("collections", "OrderedDict"): _ordered,
        ("argparse", "Namespace"): _namespace,
        ("pathlib", "PosixPath"): _parts,
        ("pathlib", "WindowsPath"): _parts,
        ("numpy", "dtype"): _scalar_type,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy._core.multiarray", "scalar"): _scalar,
        ("_codecs", "encode"): _encode,
    }
    builders |= {("torch", name): None for name in (*_STORAGE_DTYPES, *_DTYPE_NAMES)}
    return {key: pickle_reader.Allowed(*key, build) for key, build in builders.items()}


_TABLE = _table()
