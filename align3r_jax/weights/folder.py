"""The folder of converted weights: what is in it, that it is whole, and that it appears at once.

    config.json   settings of the network, parameters (path -> type, shape, sha256), checksum,
                  sha256 of every other file
    parameters/   the Orbax checkpoint; or
    weights.safetensors   the same tree, names = paths (how the shipped networks are stored)

The checksum identifies settings and values: it is the same for both layouts and for any machine.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from align3r_jax.errors import UserError
from align3r_jax.io import atomic

FORMAT = "align3r_jax weights, version 1"
CONFIG_FILE = "config.json"
CHECKPOINT = "parameters"
PACKED_FILE = "weights.safetensors"


def describe(flat: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """Returns path -> [type, shape, sha256 of the bytes in C order] of flattened parameters."""
    return {
        path: [str(array.dtype), list(array.shape), _digest(array)]
        for path, array in sorted(flat.items())
    }


def checksum(network: Mapping[str, Any], parameters: Mapping[str, list[Any]]) -> str:
    """Returns the sha256 of settings and described parameters, as hexadecimal text."""
    text = json.dumps([network, parameters], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(array: np.ndarray) -> str:
    # Through bytes: bfloat16 has no buffer interface of its own.
    plain = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(plain.data).hexdigest()


def is_weights(folder: Path) -> bool:
    """Whether a folder was written by this module (it may still be damaged)."""
    path = folder / CONFIG_FILE
    return path.is_file() and _has_format(path)


def _has_format(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and str(content.get("format", "")).startswith(
        "align3r_jax weights"
    )


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes `config.json`: `manifest`, the format and the sha256 of every file in `folder`."""
    files = {
        str(path.relative_to(folder)): _file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    content = {"format": FORMAT, **manifest, "files": files}
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def read_manifest(folder: Path, *, contents: bool = True) -> dict[str, Any]:
    """Returns `config.json` after checking that every file is as it was written.

    contents: False only checks that every file is there, without reading it. Raises UserError for
    another version, a missing or changed file, or an edited config.json.
    """
    content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if content["format"] != FORMAT:
        raise UserError(
            f"{folder} was written as '{content['format']}', this version reads '{FORMAT}'; "
            "convert the weights again."
        )
    try:
        if checksum(content["network"], content["parameters"]) != content["checksum"]:
            raise UserError(f"{folder / CONFIG_FILE} was edited or damaged; {_AGAIN}")
        for name, digest in content["files"].items():
            path = folder / name
            if not path.is_file():
                raise UserError(f"The weights {folder} lack the file {name}; {_AGAIN}")
            if contents and _file_digest(path) != digest:
                raise UserError(f"{path} is damaged: its checksum differs; {_AGAIN}")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG_FILE} was edited or damaged; {_AGAIN}") from error
    return content


_AGAIN = "convert or copy the weights again."


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_output(path: Path, overwrite: bool) -> None:
    """Raises UserError if weights may not go to `path`: call it before the work.

    `overwrite` allows replacing earlier weights, and only those.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise UserError(f"The output {path} exists; name another one or pass --overwrite.")
    if path.is_dir() and not is_weights(path):
        raise UserError(
            f"The output {path} holds something that is no converted weights, and --overwrite "
            "would remove it; name another one."
        )


@contextlib.contextmanager
def written_at_once(path: Path, size: int) -> Iterator[Path]:
    """Gives a hidden sibling of `path` to create; it takes the place of `path` if all goes well.

    Whatever was at `path` before is removed only then. After any failure, Ctrl-C included, `path`
    is as it was and nothing is left beside it. size: bytes to come, about. Raises UserError when
    they do not fit on the disk, or when the file system fails.
    """
    path = path.absolute()
    try:
        with atomic.replacing(path) as hidden:
            free = shutil.disk_usage(path.parent).free
            if free < size:
                raise OSError(errno.ENOSPC, f"{size / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")
            yield hidden
    except UserError:
        raise
    # The libraries wrap what the system says in exceptions of their own.
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"The weights could not be written to {path} ({str(error).splitlines()[0][:300]}); "
            "free some space or name another place."
        ) from error
