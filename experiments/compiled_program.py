"""What a compiled program of several devices exchanges, read from its HLO text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_LINE = re.compile(
    r"%(?P<name>[\w.-]+) = (?P<result>\([^=]*?\)|\S+) "
    r"(?P<kind>" + "|".join(_KINDS) + r")(?P<start>-start)?\((?P<operands>[^)]*)\)(?P<rest>.*)"
)
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%(?P<name>[\w.-]+) \(.*\{\s*$")
_BODY = re.compile(r"body=%(?P<body>[\w.-]+)")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')


class Collective(NamedTuple):
    """One exchange. bytes: of its result on one device (all-gather: of the gathered array;
    reduce-scatter: of the array before). members: the devices of the first group that takes part.
    times: how often it runs (trip counts of loops around it)."""

    kind: str
    bytes: int
    members: tuple[int, ...]
    times: int
    source: str

    @property
    def group(self) -> int:
        """How many devices exchange with each other."""
        return len(self.members)

    @property
    def moved(self) -> float:
        """Bytes that one device sends in all runs, by the ring algorithms: (g - 1) / g of the array
        for gather, scatter and all-to-all, twice that for all-reduce, all of it for permute."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.times * factor * self.bytes


def collectives(text: str) -> list[Collective]:
    """Returns the exchanges of a compiled program (`compiled.as_text()`), loops counted.

    Raises ValueError for a form of replica groups that is not understood.
    """
    found = []
    text = re.sub(r"/\*.*?\*/", "", text)  # long tuples number their parts in comments
    runs = _runs(text)
    for computation, line in _lines(text):
        match = _LINE.search(line)
        if match is None:
            continue
        sizes = [_size(*shape) for shape in _SHAPE.findall(match["result"])]
        members = _members(match["rest"], line)
        # The result of an asynchronous start holds the operands beside the results.
        count = sum(sizes) if not match["start"] else sum(sizes[len(sizes) // 2 :])
        if match["kind"] == "reduce-scatter":
            count *= len(members)
        source = re.search(r'op_name="([^"]*)"', line)
        found.append(
            Collective(
                match["kind"], count, members, runs.get(computation, 1),
                source[1] if source else "",
            )
        )  # fmt: skip
    return found


def by_kind(found: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """Returns kind -> {"count", "bytes" that a device sends}, over all runs."""
    counts: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for item in found:
        counts[item.kind] += item.times
        moved[item.kind] += item.moved
    return {kind: {"count": counts[kind], "bytes": moved[kind]} for kind in _KINDS if counts[kind]}


def _size(kind: str, shape: str) -> int:
    if kind not in _BYTES:
        raise ValueError(f"The element type {kind!r} of a collective is unknown.")
    return _BYTES[kind] * math.prod(int(n) for n in shape.split(",") if n)


def _members(rest: str, line: str) -> tuple[int, ...]:
    """The first group of devices, from one of the ways in which groups are written."""
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? ?\{((?:'[\w.-]+'(?:, ?)?)+)\}",
        rest,
    )
    if mesh:
        sizes = {k: int(v) for k, v in re.findall(r"'([\w.-]+)'=(\d+)", mesh[1])}
        ids = _iota(mesh[2]) if mesh[2] else np.arange(math.prod(sizes.values()))
        chosen = re.findall(r"'([\w.-]+)'", mesh[3])
        corner = tuple(slice(None) if axis in chosen else 0 for axis in sizes)
        return tuple(ids.reshape(list(sizes.values()))[corner].ravel().tolist())
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest)
    if iota:
        return tuple(_iota(iota[2]).ravel()[: int(iota[1])].tolist())
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", rest)
    if listed:
        return tuple(int(n) for n in listed[1].split(","))
    raise ValueError(f"The replica groups of this line are not understood: {line.strip()[:300]}")


def _iota(text: str) -> np.ndarray:
    """`[2,4]T(1,0)`: the numbers from 0 in this shape, its axes exchanged."""
    shape, _, order = text.partition("T")
    sides = [int(n) for n in re.findall(r"\d+", shape)]
    ids = np.arange(math.prod(sides)).reshape(sides)
    return ids.transpose([int(n) for n in re.findall(r"\d+", order)]) if order else ids


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Yields (name of the computation, one of its lines)."""
    computation = ""
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            computation = header["name"]
        else:
            yield computation, line


def _runs(text: str) -> dict[str, int]:
    """Computation -> how often it runs, from the known trip counts of the loops around it."""
    parents: dict[str, tuple[str, int]] = {}
    for computation, line in _lines(text):
        body = _BODY.search(line)
        if body and " while(" in line:
            trips = _TRIPS.search(line)
            parents[body["body"]] = (computation, int(trips[1]) if trips else 1)
    runs: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in runs:
            outer, trips = parents.get(name, ("", 1))
            runs[name] = trips * of(outer) if outer else 1
        return runs[name]

    for name in parents:
        of(name)
    return runs
