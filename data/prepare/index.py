"""The index of a prepared split: which scene lies where, so that listing scenes opens nothing.

`index-SPLIT.json` has the shards in order with their numbers of records, and of every scene the
name, the number of its first record (counted through all shards) and its frames: their names and
their places in the source, as dropped frames leave gaps. Pairs that the source prescribes are in
`index-SPLIT-pairs.npz`, in numbers of the frames that are left.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import atomic
from data.prepare import settings as settings_lib
from data.readers.training import TrainingScene


class IndexScene(NamedTuple):
    """name; first: number of the first record; frames: names; places: in the source, rising."""

    name: str
    first: int
    frames: tuple[str, ...]
    places: tuple[int, ...]
    pairs: np.ndarray | None = None


class Index(NamedTuple):
    """shards: (file name, records) in order; empty for processed folders."""

    shards: tuple[tuple[str, int], ...]
    scenes: tuple[IndexScene, ...]


def of_frames(scene: TrainingScene, first: int, places: Sequence[int]) -> IndexScene:
    """Returns the entry of a scene of which the frames at `places` are left."""
    pairs = None
    if scene.pairs is not None:
        new = np.full(scene.num_frames, -1, np.int32)
        new[list(places)] = np.arange(len(places), dtype=np.int32)
        pairs = new[np.asarray(scene.pairs, np.int64).reshape(-1, 2)]
        pairs = pairs[(pairs >= 0).all(axis=1)]
    names = tuple(scene.frames[place] for place in places)
    return IndexScene(scene.name, first, names, tuple(places), pairs)


def write(output: Path, split: str, index: Index) -> None:
    """Writes the index; its presence says that the split is complete. Raises UserError."""
    content = {
        "shards": index.shards,
        "scenes": [
            {"name": s.name, "first": s.first, "frames": s.frames, "places": s.places}
            for s in index.scenes
        ],
    }
    path = _path(output, split)
    with atomic.told_to_user(path):
        given = [s.pairs for s in index.scenes if s.pairs is not None]
        if given:
            counts = [-1 if s.pairs is None else len(s.pairs) for s in index.scenes]
            with atomic.new_file(_pairs_path(output, split)) as file:
                np.savez_compressed(file, counts=np.array(counts), pairs=np.concatenate(given))
        atomic.replace_file(path, json.dumps(content).encode())


def complete_splits(output: Path) -> list[str]:
    """Returns the splits of a prepared folder that have their index."""
    return [
        split for split in settings_lib.read(output)["splits"] if _path(output, split).is_file()
    ]


def read(output: Path, split: str) -> Index:
    """Returns the index. Raises UserError if the split is missing, unfinished or damaged."""
    path = _path(output, split)
    if not path.is_file():
        begun = settings_lib.read(output)["splits"]
        state = "is not finished; run experiments.prepare_data again" if split in begun else (
            f"is not in it; it has {', '.join(begun) or 'none'}"
        )  # fmt: skip
        raise UserError(f"The split '{split}' of the prepared folder '{output}' {state}.")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        pairs = _read_pairs(_pairs_path(output, split), len(content["scenes"]))
        return Index(
            tuple((str(name), int(count)) for name, count in content["shards"]),
            tuple(
                IndexScene(
                    scene["name"], scene["first"], tuple(scene["frames"]),
                    tuple(scene["places"]), mine,
                )
                for scene, mine in zip(content["scenes"], pairs)
            ),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The index '{path}' cannot be read ({error}). Delete it and run "
            "experiments.prepare_data again; shards are kept."
        ) from error


def _read_pairs(path: Path, count: int) -> list[np.ndarray | None]:
    if not path.is_file():
        return [None] * count
    with np.load(path, allow_pickle=False) as stored:
        counts, pairs = stored["counts"], stored["pairs"]
    ends = np.cumsum(np.maximum(counts, 0))
    return [None if number < 0 else pairs[end - number : end] for number, end in zip(counts, ends)]


def _path(output: Path, split: str) -> Path:
    return output / f"index-{split}.json"


def _pairs_path(output: Path, split: str) -> Path:
    return output / f"index-{split}-pairs.npz"
