"""What a prepared folder was asked to be; kept in it as `preparation.json`.

A folder holds one data set under one set of settings, and any of its splits. Whoever continues it
must ask for the same and find the same scenes: `begin` refuses everything else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from align3r_jax.errors import UserError
from align3r_jax.io import atomic
from data.readers.training import TrainingOptions, TrainingScene

FILE = "preparation.json"
VERSION = 1  # of everything that is written; a change of it refuses older folders
FORMATS = ("records", "processed")
IMAGES = ("jpeg", "png")
DEPTHS = ("float32", "log16")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides about the content.

    size: long side in pixels (`resize`), 0: frames as they are. quality: of JPEG. depth: "float32"
    is exact, "log16" smaller (`log_depth`). prior: name of the prior files beside the pictures.
    shard_mb: records close a shard at so many MiB. variant, parity: as `TrainingOptions`.
    """

    dataset: str
    format: str = "records"
    size: int = 512
    image: str = "jpeg"
    quality: int = 75
    depth: str = "float32"
    prior: str | None = None
    variant: str | None = None
    parity: bool = False
    shard_mb: float = 256

    def check(self) -> Settings:
        """Returns self. Raises UserError for values that are unknown or do not go together."""
        for name, known in (("format", FORMATS), ("image", IMAGES), ("depth", DEPTHS)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name}='{getattr(self, name)}' is unknown; known are {', '.join(known)}."
                )
        if self.format == "processed" and (self.image, self.depth) != ("jpeg", "float32"):
            raise UserError(
                "The processed layout is JPEG pictures and float32 depth (PFM); image and depth "
                "can be chosen for format=records only."
            )
        if self.size != 0 and self.size < 16:
            raise UserError(f"size={self.size}: expected a long side from 16, or 0 for none.")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality={self.quality}: expected 1 to 100.")
        if not self.shard_mb > 0:
            raise UserError(f"shard_mb={self.shard_mb:g}: expected a size in MiB above 0.")
        return self

    def options(self, split: str) -> TrainingOptions:
        """How the raw data is read."""
        return TrainingOptions(split, self.prior, self.parity, self.variant).check()


def begin(
    output: Path, settings: Settings, split: str, scenes: Sequence[TrainingScene]
) -> dict[str, Any]:
    """Begins or continues a split; returns what `preparation.json` holds then.

    Raises UserError if the folder holds something else, was prepared with other settings or
    another version, or the split was begun with other scenes.
    """
    found = read(output) if (output / FILE).is_file() else None
    if found is None:
        if output.is_dir() and any(item.name != _LOCK for item in output.iterdir()):
            raise UserError(
                f"'{output}' is not empty and was not begun by prepare_data (no {FILE}). Name a "
                "new folder."
            )
        found = {"version": VERSION, "settings": dataclasses.asdict(settings), "splits": {}}
    if of_folder(found) != settings:
        before, now = found["settings"], dataclasses.asdict(settings)
        differ = ", ".join(
            f"{name}={before.get(name)} (now {value})"
            for name, value in now.items()
            if before.get(name) != value
        )
        raise UserError(
            f"'{output}' was begun with other settings: {differ}. Use the same ones, or name "
            "another folder."
        )
    listed = {"scenes": len(scenes), "fingerprint": _fingerprint(scenes)}
    begun = found["splits"].setdefault(split, listed)
    if begun != listed:
        raise UserError(
            f"The {split} scenes are no longer those that '{output}' was begun with "
            f"({begun['scenes']} then, {len(scenes)} now, or their frames differ). Restore the "
            "source, or name another folder."
        )
    output.mkdir(parents=True, exist_ok=True)
    atomic.replace_file(output / FILE, json.dumps(found, indent=1).encode())
    return found


def read(output: Path) -> dict[str, Any]:
    """Returns what `preparation.json` of a folder holds. Raises UserError if there is none."""
    path = output / FILE
    try:
        found = json.loads(path.read_text())
        version = found["version"]
        found["settings"]["dataset"], found["splits"]
    except OSError as error:
        raise UserError(
            f"'{output}' is no folder that experiments.prepare_data wrote: {FILE} is missing."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is damaged ({error}). Prepare the folder again.") from error
    if version != VERSION:
        raise UserError(
            f"'{output}' was prepared by version {version} of prepare_data, this is version "
            f"{VERSION}. Prepare it again."
        )
    return found


def of_folder(found: dict[str, Any]) -> Settings | None:
    """Returns the settings that `read` found; None if they are not of this version."""
    try:
        return Settings(**found["settings"])
    except TypeError:
        return None


_LOCK = ".lock"


@contextlib.contextmanager
def alone(output: Path) -> Iterator[None]:
    """Keeps other processes of this machine from writing the folder meanwhile.

    Raises UserError if one does.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"Another run is writing '{output}'. Wait for it or end it.") from error
        yield


def _fingerprint(scenes: Sequence[TrainingScene]) -> str:
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update("\0".join((scene.name, *scene.frames, "")).encode())
    return digest.hexdigest()
