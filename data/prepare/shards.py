"""Records packed into shards of whole scenes, each shard written at once and never again.

A shard is an ArrayRecord file with a progress file beside it that says what lies in it, what was
left out and which frame comes next. Whoever goes on begins there, and as packing is a function of
the order of frames alone, the files come out the same as without an interruption.

A scene goes into a new shard if the one at hand would grow beyond the limit. A scene that is
larger than that itself spans shards, in order.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align3r_jax.io import atomic
from data.prepare.work import Outcome, Place
from data.readers.training import TrainingScene

DATASET = "prepared"  # name of the files and of the TFDS data set
PROGRESS = "progress"  # folder of the progress files
MIN_FRAMES = 2  # a pair


@dataclasses.dataclass
class Piece:
    """Frames of one scene in one shard: numbers in the scene, and their records."""

    scene: int
    frames: list[int] = dataclasses.field(default_factory=list)
    records: list[bytes] = dataclasses.field(default_factory=list)
    size: int = 0

    def append(self, frame: int, record: bytes) -> None:
        """Adds the next frame."""
        self.frames.append(frame)
        self.records.append(record)
        self.size += len(record)


@dataclasses.dataclass
class Entry:
    """One progress file.

    file: name of the shard, None if this entry has no records. pieces: (scene, frames) in the
    order of records. dropped: (scene, frame, reason); skipped: (scene, reason). next: where to go
    on; next_has: records of its scene so far.
    """

    file: str | None
    bytes: int
    pieces: list[tuple[int, list[int]]]
    dropped: list[tuple[int, int, str]]
    skipped: list[tuple[int, str]]
    next: tuple[int, int]
    next_has: int

    @property
    def records(self) -> int:
        return sum(len(frames) for _, frames in self.pieces)


def shard_name(split: str, number: int) -> str:
    """Name of a shard, as TFDS template `{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}`."""
    return f"{DATASET}-{split}.array_record-{number:05d}"


def too_few(scene: TrainingScene, count: int, reasons: Sequence[str]) -> str:
    """The sentence that says why a scene of which `count` frames are left is skipped."""
    first = f" The first that failed: {reasons[0]}" if reasons else ""
    return f"{count} of {scene.num_frames} frames can be used, {MIN_FRAMES} are needed.{first}"


def read_entries(output: Path, split: str) -> list[Entry]:
    """Returns the progress of a split: entries 0, 1, ... up to the first that is missing."""
    entries: list[Entry] = []
    while (path := _progress_path(output, split, len(entries))).is_file():
        content: dict[str, Any] = json.loads(path.read_text())
        if content["file"] is not None:
            shard = output / content["file"]
            if not shard.is_file() or shard.stat().st_size != content["bytes"]:
                break  # lost or cut short: written again from here on
        entries.append(Entry(**content))
    return entries


class Packer:
    """Takes outcomes in order and writes shards; made anew, it goes on where files end.

    limit: bytes at which a shard closes. start: the first frame that it has not got yet.
    """

    def __init__(self, output: Path, split: str, scenes: Sequence[TrainingScene], limit: int):
        self._output, self._split, self._scenes, self._limit = output, split, scenes, limit
        self.entries = read_entries(output, split)
        self._pieces: list[Piece] = []
        self._dropped: list[tuple[int, int, str]] = []
        self._skipped: list[tuple[int, str]] = []
        self.start, self._has = Place(0, 0), 0
        if self.entries:
            last = self.entries[-1]
            self.start, self._has = Place(*last.next), last.next_has
        self._scene = self.start.scene  # the one at hand; _has: its records in earlier shards

    def add(self, outcome: Outcome[bytes]) -> None:
        """Takes the next frame. Raises UserError if a shard cannot be written."""
        scene, frame = outcome.place
        while scene > self._scene:
            self._end_scene()
        if outcome.result is None:
            self._dropped.append((scene, frame, outcome.reason or ""))
            return
        if not self._pieces or self._pieces[-1].scene != scene:
            self._pieces.append(Piece(scene))
        self._pieces[-1].append(frame, outcome.result)
        if sum(piece.size for piece in self._pieces) < self._limit:
            return
        if len(self._pieces) > 1:  # the scene at hand moves to the next shard
            self._write(self._pieces[:-1], Place(scene, 0))
        piece = self._pieces[-1]
        if piece.size >= self._limit and self._has + len(piece.frames) >= MIN_FRAMES:
            self._write([piece], Place(scene, frame + 1))

    def finish(self) -> list[Entry]:
        """Ends the last scene, writes what is left and returns all entries."""
        end = Place(len(self._scenes), 0)
        while self._scene < end.scene:
            self._end_scene()
        if self._pieces or self._dropped or self._skipped:
            self._write(self._pieces, end)
        return self.entries

    def _end_scene(self) -> None:
        scene, mine = self._scene, self._pieces[-1:]
        mine = [piece for piece in mine if piece.scene == scene]
        count = self._has + sum(len(piece.frames) for piece in mine)
        if count < MIN_FRAMES:
            reasons = [reason for number, _, reason in self._dropped if number == scene]
            self._skipped.append((scene, too_few(self._scenes[scene], count, reasons)))
            self._pieces = [piece for piece in self._pieces if piece.scene != scene]
        self._scene, self._has = scene + 1, 0

    def _write(self, pieces: list[Piece], following: Place) -> None:
        """Writes pieces as the next shard: the file first, then the progress that counts it."""
        pieces = list(pieces)
        number = len(self.entries)
        name = shard_name(self._split, number) if pieces else None
        size = _write_shard(self._output / name, pieces) if name else 0
        here = [item for item in self._dropped if item[:2] < following]
        if following == Place(self._scene, 0):
            self._has = 0
        else:
            self._has += sum(len(p.frames) for p in pieces if p.scene == following.scene)
        entry = Entry(
            name, size, [(piece.scene, piece.frames) for piece in pieces], here, self._skipped,
            (following.scene, following.frame), self._has,
        )  # fmt: skip
        path = _progress_path(self._output, self._split, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.told_to_user(path):
            atomic.replace_file(path, json.dumps(dataclasses.asdict(entry)).encode())
        self.entries.append(entry)
        self._pieces = [piece for piece in self._pieces if piece not in pieces]
        self._dropped = self._dropped[len(here) :]
        self._skipped = []


def _progress_path(output: Path, split: str, number: int) -> Path:
    return output / PROGRESS / f"{split}-{number:05d}.json"


def _write_shard(path: Path, pieces: Sequence[Piece]) -> int:
    """Writes one file; returns its size. Raises UserError."""
    from array_record.python import array_record_module

    count = sum(len(piece.records) for piece in pieces)
    with atomic.told_to_user(path), atomic.replacing(path) as hidden:
        try:
            # Groups of one: every record can be read alone. Its parts are compressed already.
            writer = array_record_module.ArrayRecordWriter(str(hidden), "group_size:1,uncompressed")
            for piece in pieces:
                for record in piece.records:
                    writer.write(record)
            writer.close()
            reader = array_record_module.ArrayRecordReader(str(hidden))
            whole = reader.num_records() == count
            reader.close()
        # The writer has errors of its own for what the disk refuses.
        except (RuntimeError, ValueError) as error:
            raise _as_disk_error(error) from error
        if not whole:
            raise OSError(errno.EIO, "the shard is not whole after writing")
        return hidden.stat().st_size


def _as_disk_error(error: Exception) -> OSError:
    """The writer puts the system's words into a sentence of its own; this finds them there."""
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if os.strerror(code) in str(error):
            return OSError(code, os.strerror(code))
    return OSError(errno.EIO, str(error))
