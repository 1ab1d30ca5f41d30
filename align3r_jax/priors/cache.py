"""A disk cache by content: what was computed from the same inputs is read, not computed again.

One file per key, `<cache_dir>/<key>.npz`, written under a temporary name and renamed, so that an
interrupted run leaves nothing half-written. An entry that cannot be read is computed afresh.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from align3r_jax.io import atomic

_log = logging.getLogger(__name__)


def content_key(*parts: np.ndarray | str | bytes | int | float | bool | None) -> str:
    """Returns the SHA-256 (hex) of the parts in order: arrays by type, shape and bytes."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"array {part.dtype.str} {part.shape} ".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            data = part if isinstance(part, bytes) else repr(part).encode()
            digest.update(f"{type(part).__name__} {len(data)} ".encode() + data)
    return digest.hexdigest()


def get_or_compute(
    cache_dir: str | Path | None, key: str, compute: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns the arrays stored under `key`, or those of `compute()`, which are then stored.

    cache_dir: None computes every time. A cache that cannot be written (disk full, read only)
    costs a warning, not the result.
    """
    stored = read(cache_dir, key)
    if stored is not None:
        return stored
    computed = {name: np.asarray(array) for name, array in compute().items()}
    write(cache_dir, key, computed)
    return computed


def read(cache_dir: str | Path | None, key: str) -> dict[str, np.ndarray] | None:
    """Returns the arrays stored under `key`; None if there are none, or no `cache_dir`."""
    if cache_dir is None:
        return None
    path = _path(cache_dir, key)
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}  # checks every checksum
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        _log.warning("The cache entry '%s' is damaged (%s) and is made again.", path, error)
        return None


def write(cache_dir: str | Path | None, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Stores arrays under `key`, if there is a `cache_dir`; warns if that cannot be done."""
    if cache_dir is None:
        return
    path = _path(cache_dir, key)
    stored: dict[str, Any] = dict(arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.new_file(path) as file:
            np.savez(file, **stored)
    except OSError as error:
        _log.warning("The cache entry '%s' was not written (%s).", path, error)


def _path(cache_dir: str | Path, key: str) -> Path:
    return Path(cache_dir).expanduser() / f"{key}.npz"
