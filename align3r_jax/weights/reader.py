"""Reads released weight files: names and shapes as published, and the configuration they imply.

| input | configuration from |
|---|---|
| `.pth` of DUSt3R, MonST3R, Align3R (`model`, `args`) | the constructor call in `args.model` |
| `.pth` of CroCo v2 (`model`, `croco_kwargs`) | `croco_kwargs` |
| `.pth`, `.pt` of Depth Anything V2, Depth Pro, RAFT, SEA-RAFT | names and shapes |
| a bare state dict | names and shapes |
| `.safetensors`, or a folder with one (or with the index of several) | `config.json` beside it |
| a file that `store.export` wrote | its metadata |

The format of a file is seen from its first bytes and the kind of its network from the names of the
parameters, neither from the name of the file.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from align3r_jax.errors import UserError
from align3r_jax.weights import kinds, torch_file
from align3r_jax.weights import settings as settings_lib
from align3r_jax.weights.kinds import Kind

CONFIG_FILE = "config.json"
CONFIG_ENTRY = "align3r_jax"  # of the metadata of our own safetensors files
_INDEX = "model.safetensors.index.json"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# Twice the size of the network and of no use here.
_SKIPPED = ("optimizer", "scaler", "lr_scheduler", "scheduler")
_SHOWN = 8


class ReadWeights(NamedTuple):
    """state: name -> array as published; config: what it implies; source: where it came from.

    kind: of the network, by the names in the state.
    """

    state: dict[str, np.ndarray]
    config: Any
    source: dict[str, Any]
    kind: Kind


@dataclasses.dataclass
class _File:
    """One file (or sharded set) before its names are understood."""

    state: dict[str, np.ndarray]
    arguments: dict[str, Any]
    source: dict[str, Any]
    config_text: str | None = None


def read_weights(
    path: str | Path,
    wanted: str | Sequence[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> ReadWeights:
    """Returns the weights of a network of any kind in `kinds.KINDS`.

    path: a file, or a folder as on model hubs. wanted: the kinds that can be used, None: all.
    arguments: settings that the weights do not tell, for files without a configuration (they win
    over what the name of the file tells).
    Nothing in the file is executed. Raises UserError when there is no such file, it is damaged or
    hostile, belongs to another kind of network, holds numbers that are not finite, or contradicts
    its configuration.
    """
    path = Path(path)
    file = _read_folder(path) if path.is_dir() else _read_file(path)
    kind = kinds.recognise(file.state, path.name)
    kinds.check_wanted(kind, wanted, path.name)
    _refuse_non_finite(file.state, path)
    if file.config_text is not None:
        config = settings_lib.decode_network(file.config_text, path.name, kind)
    else:
        table = kind.table_module
        named = (
            table.arguments_from_name(path.name) if hasattr(table, "arguments_from_name") else {}
        )
        hints = {**named, **(arguments or {}), **file.arguments}
        config = table.infer_config(file.state, hints)
    return ReadWeights(file.state, config, file.source, kind)


def _read_folder(folder: Path) -> _File:
    if (folder / _INDEX).is_file():
        file = _File(_read_sharded(folder), {}, {"file": folder.name, "format": "safetensors"})
        return _with_config_file(file, folder)
    named = folder / "model.safetensors"
    found = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and p.is_file())
    if named.is_file():
        found = [named]
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise UserError(
            f"The folder {folder} should hold one weight file (model.safetensors, *.pth), found "
            f"{names}; name the file itself."
        )
    return _read_file(found[0])


def _read_file(path: Path) -> _File:
    if _is_safetensors(path):
        state, metadata = _read_safetensors(path)
        file = _File(state, {}, {"file": path.name, "format": "safetensors"})
        if CONFIG_ENTRY in metadata:
            file.config_text = metadata[CONFIG_ENTRY]
            return file
        return _with_config_file(file, path.parent)
    content = torch_file.read_torch(path, skip=_SKIPPED)
    file = _File(_state_of(content, path), {}, {"file": path.name, "format": "PyTorch"})
    if not isinstance(content, dict):
        return file
    settings = content.get("args")
    if isinstance(settings, argparse.Namespace):
        settings = vars(settings)
    if isinstance(settings, dict) and isinstance(settings.get("model"), str):
        file.source["model"], file.arguments = settings_lib.parse_call(settings["model"], path.name)
    elif isinstance(content.get("croco_kwargs"), dict):
        file.source["model"], file.arguments = "CroCo", content["croco_kwargs"]
    if isinstance(content.get("epoch"), int):
        file.source["epoch"] = content["epoch"]
    return file


def _with_config_file(file: _File, folder: Path) -> _File:
    if (folder / CONFIG_FILE).is_file():
        file.arguments = settings_lib.read_config(folder / CONFIG_FILE)
    return file


def _is_safetensors(path: Path) -> bool:
    """Whether the file starts as safetensors do: 8 bytes of size, then {."""
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    with path.open("rb") as file:
        head = file.read(64)
    # Before all else: the size may well begin with 0x80, as a pickle does.
    if head[8:9] == b"{":
        return True
    if path.suffix == ".safetensors":
        raise UserError(f"{path.name} is no safetensors file: {torch_file.describe_head(head)}.")
    return False


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return state, dict(file.metadata() or {})
    except (safetensors.SafetensorError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path.name} is a truncated, damaged or unusual safetensors file ({error}); copy or "
            "download it again."
        ) from error


def _read_sharded(folder: Path) -> dict[str, np.ndarray]:
    """The union of the files that the index names."""
    places = settings_lib.read_config(folder / _INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in places.values()
    ):
        raise UserError(f"{folder / _INDEX} has no map of names to files; download it again.")
    state: dict[str, np.ndarray] = {}
    for name in sorted(set(places.values())):
        if not _is_safetensors(folder / name):
            raise UserError(f"{folder / name} is no safetensors file; download it again.")
        state |= _read_safetensors(folder / name)[0]
    absent = sorted(set(places) - set(state))
    if absent:
        raise UserError(
            f"{folder / _INDEX} promises entries that its files lack: {_listed(absent)}."
        )
    return state


def _state_of(content: Any, path: Path) -> dict[str, np.ndarray]:
    """The state dict of a PyTorch checkpoint: an entry of it, or the whole."""
    state = content
    if isinstance(content, dict):
        state = content.get("model", content.get("state_dict", content))
    if not isinstance(state, dict) or not any(isinstance(v, np.ndarray) for v in state.values()):
        raise UserError(
            f"{path.name} holds no state dict (expected it in the entry 'model', in 'state_dict' "
            "or as the whole file); save the state_dict() of the network."
        )
    others = [str(name)[:80] for name, value in state.items() if not isinstance(value, np.ndarray)]
    if others:
        raise UserError(
            f"{path.name}: the entries {_listed(others)} of its state dict are no tensors."
        )
    return {str(name): value for name, value in state.items()}


def _refuse_non_finite(state: Mapping[str, np.ndarray], path: Path) -> None:
    broken = [
        name
        for name, value in state.items()
        if not np.issubdtype(value.dtype, np.integer) and not np.isfinite(value).all()
    ]
    if broken:
        raise UserError(
            f"{path.name} holds NaN or infinite numbers in {_listed(broken)}; the training that "
            "wrote it diverged, or the file is damaged."
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
