"""The rows of `experiments.benchmark`: stages of one video, rates and shares of the ceilings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from experiments.benchmark_measure import Ceilings, Cost, Measured, Spent

# Stages in the order of the main flow; what else is in a table is a part of one, or a kernel alone.
STAGES = (
    "decode video", "prior", "encode", "decode pairs", "flow", "initialise", "align", "scene",
    "write",
)  # fmt: skip
HEADS, ITERATION = "heads", "one Adam iteration"


@dataclasses.dataclass(frozen=True)
class Row:
    """One stage of a video of `items` frames or pairs (`item`), worked off in `batches`.

    run: batches that were run in `seconds_run` (wall) and `cpu_seconds_run`, compiling apart; if
    fewer than all, the stage's time is that of all by the rule of three. flops, bytes: of one
    batch, None where nobody counts them; counted: who did. part_of: the stage it belongs to,
    "alone" for a kernel that no stage is made of.
    """

    stage: str
    items: int
    item: str
    seconds_run: float
    cpu_seconds_run: float
    compile_seconds: float | None = None
    run: int = 1
    batches: int = 1
    flops: float | None = None
    bytes: float | None = None
    counted: str = ""
    peak_mb: float | None = None
    peak_device_mb: float | None = None
    program_mb: float | None = None
    part_of: str = ""

    @property
    def seconds(self) -> float:
        """Of all batches."""
        return self.seconds_run * self.batches / self.run

    @property
    def cpu_seconds(self) -> float:
        """Of all batches."""
        return self.cpu_seconds_run * self.batches / self.run

    @property
    def sampled(self) -> bool:
        """Whether the times are those of some batches, multiplied."""
        return self.run < self.batches

    def as_dict(self, ceilings: Ceilings) -> dict[str, Any]:
        """Returns fields, totals, rates and shares; a share is None where nothing was counted."""
        found = dataclasses.asdict(self)
        found |= {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "sampled": self.sampled}
        found["gflop"] = None if self.flops is None else self.flops * self.batches / 1e9
        found["gbytes"] = None if self.bytes is None else self.bytes * self.batches / 1e9
        for name, count, wall, cpu in (
            ("flop", self.flops, ceilings.flops, ceilings.flops_per_cpu),
            ("bytes", self.bytes, ceilings.bytes, ceilings.bytes_per_cpu),
        ):
            done = None if count is None else count * self.run
            found[f"{name}_per_second"] = _over(done, self.seconds_run)
            found[f"{name}_share"] = _over(done, self.seconds_run * wall)
            found[f"{name}_share_per_cpu"] = _over(done, self.cpu_seconds_run * cpu)
        flop, moved = found["flop_share"], found["bytes_share"]
        found["bound"] = "host" if flop is None and moved is None else "FLOP"
        if moved is not None and (flop is None or moved > flop):
            found["bound"] = "bytes"
        return found


def of_spent(stage: str, items: int, item: str, spent: Spent, **more: Any) -> Row:
    """Returns the row of a measured section; more: other fields of `Row`."""
    given = {
        "seconds_run": spent.seconds,
        "cpu_seconds_run": spent.cpu_seconds,
        "compile_seconds": spent.compile_seconds,
        "peak_mb": spent.peak_mb,
        "peak_device_mb": spent.peak_device_mb,
    }
    return Row(stage, items, item, **(given | more))


def of_measured(stage: str, items: int, item: str, found: Measured, **more: Any) -> Row:
    """Returns the row of a program that was run by itself."""
    times = {"seconds_run": found.seconds, "cpu_seconds_run": found.cpu_seconds}
    return Row(stage, items, item, **(times | of_cost(found.cost) | more))


def of_cost(cost: Cost) -> dict[str, Any]:
    """Returns the fields of a row that a program's cost fills."""
    return {
        "flops": cost.flops,
        "bytes": cost.bytes,
        "counted": cost.counted,
        "compile_seconds": cost.compile_seconds,
        "program_mb": cost.program_mb,
    }


def summary(rows: Sequence[Row], frames: int, ceilings: Ceilings) -> dict[str, Any]:
    """Returns what a whole video takes.

    seconds: of all stages, compiling apart. pairs_per_second: encoding counted in. network_share:
    of encoding and decoding, of the measured matrix product; video_share: of all stages.
    """
    stages = {row.stage: row for row in rows if not row.part_of}
    network = [stages[name] for name in ("encode", "decode pairs") if name in stages]
    seconds = sum(row.seconds for row in stages.values())
    cpu_seconds = sum(row.cpu_seconds for row in stages.values())
    flops = sum((row.flops or 0.0) * row.batches for row in stages.values())
    inside = sum((row.flops or 0.0) * row.batches for row in network)
    inside_seconds = sum(row.seconds for row in network)
    inside_cpu = sum(row.cpu_seconds for row in network)
    pairs = stages["decode pairs"].items if "decode pairs" in stages else 0
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "compile_seconds": sum(row.compile_seconds or 0.0 for row in stages.values()),
        "frames_per_second": frames / seconds,
        "pairs": pairs,
        "pairs_per_second": _over(pairs, inside_seconds),
        "pairs_per_cpu_second": _over(pairs, inside_cpu),
        "network_tflop": inside / 1e12,
        "network_share": _over(inside, inside_seconds * ceilings.flops),
        "network_share_per_cpu": _over(inside, inside_cpu * ceilings.flops_per_cpu),
        "video_share": _over(flops, seconds * ceilings.flops),
        "video_share_per_cpu": _over(flops, cpu_seconds * ceilings.flops_per_cpu),
        "sampled": any(row.sampled for row in stages.values()),
    }


def _over(count: float | None, by: float) -> float | None:
    return None if not count or by <= 0 or not math.isfinite(by) else count / by
