"""Folders that `experiments.prepare_data` wrote, of either format, for training.

Scenes are listed from the index; nothing else is opened until a frame is loaded. Any frame is read
alone and at once. Every process opens shards for itself when it first needs them.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

from align3r_jax.errors import UserError
from data.prepare import frame_record, index, processed_files, settings
from data.readers import poses, processed_training
from data.readers.training import (
    SkippedScene,
    TrainingFrame,
    TrainingOptions,
    TrainingReader,
    TrainingScene,
)

_OPEN_SHARDS = 64  # of one process; systems allow 256 to 1024 files


def scenes(root: Path, options: TrainingOptions) -> tuple[list[TrainingScene], list[SkippedScene]]:
    """Returns the scenes of a prepared split; those skipped then are in its manifest.

    Raises UserError if the folder is not prepared, or otherwise than the options ask for.
    """
    chosen = settings.of_folder(settings.read(root))
    if chosen is None:
        raise UserError(f"The settings in '{root / settings.FILE}' cannot be read.")
    if options.parity != chosen.parity:
        raise UserError(
            f"'{root}' was prepared with parity={chosen.parity}, asked for is {options.parity}: "
            "what decoding decided cannot be changed any more. Prepare another folder."
        )
    found = index.read(root, options.split)
    if chosen.format == "processed":
        return _folders(root, options, chosen, found)
    if options.prior not in (None, chosen.prior):
        held = f"the prior '{chosen.prior}'" if chosen.prior else "no prior"
        raise UserError(
            f"The records in '{root}' hold {held}, "
            f"asked for is '{options.prior}'. Prepare a folder with --prior={options.prior}."
        )
    frame_record.check_installed()
    files = Files(
        str(root),
        tuple(name for name, _ in found.shards),
        tuple(_starts([count for _, count in found.shards])),
    )
    encoding = frame_record.Encoding.of(chosen)
    listed = [
        TrainingScene(
            chosen.dataset,
            scene.name,
            scene.frames,
            functools.partial(
                _load, files, encoding, options.prior is not None, scene.name, scene.first
            ),
            scene.pairs,
        )
        for scene in found.scenes
    ]
    return sorted(listed, key=lambda scene: scene.name), []


@dataclasses.dataclass(frozen=True)
class Files:
    """The shards of a split.

    names: of the files in `root`. starts: number of the first record of each, through all of them.
    """

    root: str
    names: tuple[str, ...]
    starts: tuple[int, ...]

    def read(self, number: int) -> bytes:
        """Returns a record by its number through all shards. Raises UserError, naming the file."""
        shard = bisect.bisect_right(self.starts, number) - 1
        path = os.path.join(self.root, self.names[shard])
        try:
            return _reader(path, os.getpid()).read([number - self.starts[shard]])[0]
        # The reader has errors of its own beside those of the system.
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            raise UserError(
                f"The shard '{path}' cannot be read ({error}). Delete it and run "
                "experiments.prepare_data again: it writes what is missing."
            ) from error


@functools.lru_cache(maxsize=_OPEN_SHARDS)
def _reader(path: str, process: int) -> Any:
    """An open shard, for random access. process: a fork must not share the parent's."""
    from array_record.python import array_record_module

    del process
    if not os.path.isfile(path):
        raise FileNotFoundError("it is missing")
    return array_record_module.ArrayRecordReader(
        path, options="readahead_buffer_size:0,max_parallelism:0"
    )


def _load(
    files: Files,
    encoding: frame_record.Encoding,
    with_prior: bool,
    scene: str,
    first: int,
    frame: int,
) -> TrainingFrame:
    loaded, found = frame_record.decode(files.read(first + frame), encoding, with_prior)
    if found != scene:
        raise UserError(
            f"Shards and index of '{files.root}' do not belong together: record {first + frame} is "
            f"of scene '{found}', expected '{scene}'."
        )
    return loaded.check(f"{files.root}, {scene}, frame {frame}")


def _folders(
    root: Path, options: TrainingOptions, chosen: settings.Settings, found: index.Index
) -> tuple[list[TrainingScene], list[SkippedScene]]:
    """Scenes of format=processed; priors may have been added since."""
    turned = chosen.dataset == "pointodyssey"
    pose = poses.from_processed_pointodyssey if turned else processed_training.as_stored
    listed, skipped = [], []
    for entry in found.scenes:
        folder = root / options.split / entry.name
        try:
            scene = processed_training.processed_scene(
                folder, entry.name, chosen.dataset, options, pose
            )
            if scene.frames != tuple(processed_files.file_name(name) for name in entry.frames):
                raise UserError(
                    f"'{folder}' holds {scene.num_frames} frames that are not the "
                    f"{len(entry.frames)} it was prepared with."
                )
        except UserError as error:
            skipped.append(SkippedScene(entry.name, str(error)))
            continue
        listed.append(dataclasses.replace(scene, frames=entry.frames, pairs=entry.pairs))
    return sorted(listed, key=lambda scene: scene.name), skipped


def _starts(counts: list[int]) -> list[int]:
    starts = [0]
    for count in counts[:-1]:
        starts.append(starts[-1] + count)
    return starts


TRAINING = TrainingReader(
    "records", "a folder written by experiments.prepare_data (it holds preparation.json)", scenes
)
