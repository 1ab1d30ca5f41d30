"""What a weight file or folder is, told in milliseconds: names and sizes, no parameter is read.

Everything else is checked by `store.load` when the weights are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import safetensors

from align3r_jax.errors import UserError
from align3r_jax.weights import folder, kinds, torch_file

_FILES = (".safetensors", ".pth", ".pt")


class Look(NamedTuple):
    """What was seen.

    form: "converted", "hub folder", "safetensors" or "PyTorch". kind: a name of `kinds.KINDS`;
    None where only reading would tell. size: bytes. problem: why it cannot be used, or "".
    """

    form: str
    kind: str | None
    size: int
    problem: str = ""


def look(path: Path) -> Look:
    """Returns what lies at `path`, which must exist."""
    form = "PyTorch" if path.suffix != ".safetensors" else "safetensors"
    if path.is_dir():
        form = "converted" if folder.is_weights(path) else "hub folder"
    size = sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")))
    try:
        return Look(form, _kind(path, form), size)
    except (UserError, OSError) as error:
        return Look(form, None, size, str(error))


def converted(place: Path) -> list[Path]:
    """Returns the converted weights in a folder, which need not exist."""
    found = sorted(place.iterdir()) if place.is_dir() else []
    return [path for path in found if path.is_dir() and folder.is_weights(path)]


def _kind(path: Path, form: str) -> str | None:
    if form == "converted":
        return str(folder.read_manifest(path, contents=False)["kind"])
    files = [path] if path.is_file() else [p for p in path.iterdir() if p.suffix in _FILES]
    if not files:
        raise UserError(f"{path} holds no weight file (model.safetensors, *.pth).")
    names: set[str] = set()
    for file in files:
        if file.suffix == ".safetensors":
            names |= _names(file)
        else:
            torch_file.check(file)
    return kinds.recognise(names, path.name).name if names else None


def _names(path: Path) -> set[str]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return set(file.keys())
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path.name} is truncated or damaged ({error}).") from error
