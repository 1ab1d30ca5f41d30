"""Preparing a split of a data set: from scenes to a folder, resumable, with a manifest.

`manifest.json` lists, by split, numbers of scenes, frames, bytes and shards, which scenes were
skipped and which frames dropped, each with the sentence that says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align3r_jax.errors import UserError
from align3r_jax.io import atomic
from data.prepare import frame_record, index, processed_files, settings, shards, work
from data.prepare.settings import Settings
from data.readers.training import SkippedScene, TrainingFrame, TrainingScene

MANIFEST = "manifest.json"
_MIB = 2**20


class Report(NamedTuple):
    """What became of a split. dropped: (scene, frame, reason)."""

    scenes: int
    frames: int
    bytes: int
    shards: int
    skipped: tuple[SkippedScene, ...]
    dropped: tuple[tuple[str, str, str], ...]


def prepare(
    chosen: Settings,
    split: str,
    scenes: Sequence[TrainingScene],
    skipped: Sequence[SkippedScene],
    output: Path,
    *,
    source: str,
    workers: int = 0,
    on_error: str = "drop",
    progress: Callable[[int], object] = lambda frames: None,
) -> Report:
    """Prepares one split below `output`, from where an earlier run stopped; returns the report.

    scenes, skipped: of the reader; source: where they come from, for the manifest.
    workers: processes, 0: none but this. on_error: "drop" leaves out a frame that cannot be
    read, "stop" raises.
    progress: told the number of frames done at once, those of earlier runs included.
    The folder is complete when this returns; the same call then changes nothing.

    Raises:
        UserError: the folder belongs to something else (`settings.begin`), another run writes it,
            the disk refuses, a worker died, on_error="stop" and a frame is bad, or nothing is left.
    """
    if chosen.format == "records":
        frame_record.check_installed()
    with atomic.told_to_user(output), settings.alone(output):
        settings.begin(output, chosen, split, scenes)
        for left in output.glob(".*.partial"):  # of a run that was killed
            left.unlink()
        make = _records if chosen.format == "records" else _processed
        flow = functools.partial(_outcomes, chosen, scenes, workers, on_error, progress)
        report = make(chosen, split, scenes, output, flow)
        report = report._replace(skipped=(*skipped, *report.skipped))
        if not report.scenes:
            reasons = [item.reason for item in report.skipped[:1]]
            raise UserError(
                f"Nothing of the {split} split of {chosen.dataset} could be prepared: "
                f"{len(report.skipped)} scenes are skipped. {' '.join(reasons)}"
            )
        if chosen.format == "records":
            _write_tfds(output, chosen)
        _write_manifest(output, chosen, split, source, report)
        return report


def _outcomes(
    chosen: Settings,
    scenes: Sequence[TrainingScene],
    workers: int,
    on_error: str,
    progress: Callable[[int], object],
    todo: Sequence[work.Place],
    job: work.Job,
    take: Callable[[work.Outcome], None],
) -> None:
    """Hands the outcome of every place to `take`, in order."""
    progress(sum(scene.num_frames for scene in scenes) - len(todo))
    with contextlib.closing(work.outcomes(scenes, iter(todo), job, chosen.size, workers)) as done:
        for outcome in done:
            if outcome.result is None and on_error == "stop":
                raise UserError(
                    f"{_named(scenes, outcome.place)}: {outcome.reason} (--on_error=drop leaves "
                    "such frames out)"
                )
            take(outcome)
            progress(1)


def _named(scenes: Sequence[TrainingScene], place: work.Place) -> str:
    return f"'{scenes[place.scene].name}', frame '{scenes[place.scene].frames[place.frame]}'"


# Records


def _records(
    chosen: Settings, split: str, scenes: Sequence[TrainingScene], output: Path, flow: Callable
) -> Report:
    packer = shards.Packer(output, split, scenes, int(chosen.shard_mb * _MIB))
    todo = list(work.places(scenes, packer.start))
    job = functools.partial(_encode, frame_record.Encoding.of(chosen))
    flow(todo, job, packer.add)
    entries = packer.finish()
    kept: dict[int, list[int]] = {}
    for entry in entries:
        for scene, frames in entry.pieces:
            kept.setdefault(scene, []).extend(frames)
    files = tuple((entry.file, entry.records) for entry in entries if entry.file is not None)
    _write_index(output, split, scenes, kept, files)
    return Report(
        len(kept),
        sum(entry.records for entry in entries),
        sum(entry.bytes for entry in entries),
        len(files),
        tuple(SkippedScene(scenes[s].name, why) for e in entries for s, why in e.skipped),
        tuple(
            (scenes[s].name, scenes[s].frames[f], why) for e in entries for s, f, why in e.dropped
        ),
    )


def _encode(
    encoding: frame_record.Encoding, scene: TrainingScene, number: int, frame: TrainingFrame
) -> bytes:
    return frame_record.encode(frame, scene.name, scene.frames[number], number, encoding)


def _write_index(
    output: Path,
    split: str,
    scenes: Sequence[TrainingScene],
    kept: dict[int, list[int]],
    files: tuple[tuple[str, int], ...],
) -> None:
    listed, first = [], 0
    for scene, places in kept.items():
        listed.append(index.of_frames(scenes[scene], first, places))
        first += len(places)
    if listed:
        index.write(output, split, index.Index(files, tuple(listed)))


def _write_tfds(output: Path, chosen: Settings) -> None:
    """Writes what TensorFlow Datasets needs to read the shards of all complete splits."""
    import tensorflow_datasets as tfds
    from etils import epath

    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(output.absolute()),
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
        dataset_name=shards.DATASET,
        filetype_suffix="array_record",
    )
    splits = []
    for split in index.complete_splits(output):
        files = index.read(output, split).shards
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[count for _, count in files],
                num_bytes=sum((output / name).stat().st_size for name, _ in files),
                filename_template=template.replace(split=split),
            )
        )
    with atomic.told_to_user(output):
        tfds.folder_dataset.write_metadata(
            data_dir=str(output.absolute()),
            features=frame_record.features(frame_record.Encoding.of(chosen)),
            split_infos=splits,
            filename_template=template,
            check_data=False,  # would need TensorFlow
            version=f"{settings.VERSION}.0.0",
            description=f"{chosen.dataset}, prepared for training: frames of scenes in order.",
        )


# The published layout


def _processed(
    chosen: Settings, split: str, scenes: Sequence[TrainingScene], output: Path, flow: Callable
) -> Report:
    folder = output / split
    every = list(work.places(scenes))
    todo = [p for p in every if not processed_files.is_written(folder, scenes[p.scene], p.frame)]
    job = functools.partial(_write_frame, folder, chosen.quality, chosen.prior)
    dropped: list[work.Outcome] = []
    flow(todo, job, lambda outcome: dropped.append(outcome) if outcome.reason else None)
    bad = {outcome.place for outcome in dropped}
    kept: dict[int, list[int]] = {}
    for place in every:
        if place not in bad:
            kept.setdefault(place.scene, []).append(place.frame)
    skipped = []
    for number, scene in enumerate(scenes):
        count = len(kept.get(number, ()))
        if count < shards.MIN_FRAMES:
            for frame in kept.pop(number, ()):
                processed_files.remove_frame(folder, scene, frame)
            reasons = [outcome.reason or "" for outcome in dropped if outcome.place.scene == number]
            skipped.append(SkippedScene(scene.name, shards.too_few(scene, count, reasons)))
    _write_index(output, split, scenes, kept, ())
    sizes = [processed_files.size_of(folder, scenes[s], f) for s in kept for f in kept[s]]
    named = [(scenes[o.place.scene], o.place.frame, o.reason or "") for o in dropped]
    return Report(
        len(kept), len(sizes), sum(sizes), 0, tuple(skipped),
        tuple((scene.name, scene.frames[frame], reason) for scene, frame, reason in named),
    )  # fmt: skip


def _write_frame(
    folder: Path, quality: int, prior: str | None, scene: TrainingScene, number: int,
    frame: TrainingFrame,
) -> bool:  # fmt: skip
    processed_files.write_frame(folder, quality, prior, scene, number, frame)
    return True


# The manifest


def _write_manifest(
    output: Path, chosen: Settings, split: str, source: str, report: Report
) -> None:
    path = output / MANIFEST
    try:
        splits: dict[str, Any] = json.loads(path.read_text())["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        splits = {}
    splits[split] = {
        "source": source,
        "scenes": report.scenes,
        "frames": report.frames,
        "bytes": report.bytes,
        "shards": report.shards,
        "scenes_skipped": [item._asdict() for item in report.skipped],
        "frames_dropped": [
            {"scene": scene, "frame": frame, "reason": reason}
            for scene, frame, reason in report.dropped
        ],
    }
    content = {
        "version": settings.VERSION, "settings": dataclasses.asdict(chosen), "splits": splits,
    }  # fmt: skip
    atomic.replace_file(path, json.dumps(content, indent=1).encode())
