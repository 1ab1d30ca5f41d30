"""Clips that paths and globs name: where they lie, what they are called, how long they may take."""

from __future__ import annotations

import glob
import hashlib
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from align3r_jax import pairing, plan
from align3r_jax.config import ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.io import images, preprocess, video

# What lies beside videos: truth, priors, subtitles, notes.
_BESIDE = {".npz", ".npy", ".json", ".txt", ".csv", ".md", ".srt", ".html", ".log"}


class Source(NamedTuple):
    """A video file or folder of pictures; name: unique among the clips of a run."""

    path: Path
    name: str


def find(patterns: Sequence[str], flag: str) -> list[Source]:
    """Returns the clips that paths and globs name, each once, in natural order.

    Files that are pictures, and those that lie beside videos, are left out: a clip of pictures is a
    folder. Raises UserError if a pattern matches nothing; flag: what it calls them.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        matches = [path] if path.exists() else map(Path, glob.glob(str(path), recursive=True))
        clips = [match for match in matches if match.is_dir() or _may_be_video(match)]
        if not clips:
            raise UserError(
                f"--{flag}={pattern} matches no video and no folder of images; a clip of images is "
                "the folder that holds them."
            )
        found |= {clip.resolve(): clip for clip in clips}
    paths = sorted(found.values(), key=lambda path: images.natural_key(str(path)))
    return [Source(path, name) for path, name in zip(paths, names(paths))]


def names(paths: Sequence[Path]) -> list[str]:
    """Returns a name for every path that is one part of a path itself, different in any case.

    The stem; where stems repeat, the path below the folder that holds all, and should even that
    not tell them apart, with a few digits of its hash.
    """
    chosen = [_safe(path.stem if path.is_file() else path.name) for path in paths]
    if _repeated(chosen):
        top = os.path.commonpath([path.absolute().parent for path in paths])
        chosen = [_safe("_".join(path.absolute().relative_to(top).parts)) for path in paths]
    again = _repeated(chosen)
    return [
        f"{name}_{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:8]}"
        if name.casefold() in again
        else name
        for path, name in zip(paths, chosen)
    ]


def cost(source: Source, reading: dict, config: ReconstructConfig) -> float:
    """Returns about how long a clip takes, in no unit: pixels times (frames and pairs).

    reading: as `video.read_frames` takes it. Infinite for what cannot be read, so that it comes
    first and is told soon.
    """
    try:
        length = video.measure(source.path)
        count = _selected(length, reading)
        size = preprocess.plan_working_size(length.size, reading["size"], crop=reading["crop"])
        if plan.is_hierarchical(config, count):
            pairs = plan.joint_pairs(
                count, pairing.clip_size(count, config.pairs.clip_size), config
            )
        else:
            pairs = pairing.make_pairs(count, config.pairs).num_pairs
    except (UserError, OSError):
        return math.inf
    return float(math.prod(size.working) * (count + pairs))


def stamps(paths: Sequence[Path]) -> str:
    """Returns name, size and time of change of files, and of those in folders."""
    lines = []
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            found = file.stat()
            lines.append(f"{file.name} {found.st_size} {found.st_mtime_ns}")
    return "\n".join(lines)


def _selected(length: video.Length, reading: dict) -> int:
    count = length.frames if reading["end"] is None else min(reading["end"], length.frames)
    count = max(count - reading["start"], 0)
    if reading["fps"] is not None and length.rate:
        count = math.ceil(count * min(1.0, reading["fps"] / length.rate))
    count = -(-count // reading["stride"])
    return count if reading["max_frames"] is None else min(count, reading["max_frames"])


def _may_be_video(path: Path) -> bool:
    return path.suffix.lower() not in _BESIDE | set(images.SUFFIXES)


def _safe(name: str) -> str:
    """Without what means something else in a folder of results."""
    name = name.lstrip(".") or "clip"
    return f"{name}_" if name.endswith(".partial") or name in ("clips.json", "index.html") else name


def _repeated(chosen: Sequence[str]) -> set[str]:
    return {name for name, times in Counter(map(str.casefold, chosen)).items() if times > 1}
