"""The files of `experiments.benchmark`: JSON, Markdown, and bars of where the time goes."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align3r_jax.errors import UserError
from align3r_jax.io import atomic
from experiments.benchmark_rows import STAGES

FILES = ("benchmark.json", "benchmark.md", "benchmark.svg")
_FORMAT = "align3r_jax benchmark, version 1"
_COLOURS = ("#8c8c8c", "#b07aa1", "#2f7ed8", "#1b4f8a", "#59a14f", "#edc948", "#d8772f", "#9c755f",
            "#bab0ac")  # fmt: skip
_HEADER = ("stage", "items", "wall s", "s each", "CPU s", "compile s", "GFLOP", "GFLOP/s",
           "of matmul", "GB/s", "of copy", "peak MB", "")  # fmt: skip
_LEFT, _BAR, _TALL, _STEP = 190, 470, 20, 52


class Report:
    """What was measured so far; every new case is written at once, whole files or none.

    machine, settings: facts; with `resume` an earlier file's cases are taken, which must be of the
    same. Raises UserError if they are not, or the file is damaged.
    """

    def __init__(
        self, folder: Path, machine: dict[str, Any], settings: dict[str, Any], resume: bool
    ) -> None:
        self._folder = folder
        self._content = {
            "format": _FORMAT, "machine": machine, "settings": settings, "cases": [],
        }  # fmt: skip
        path = folder / FILES[0]
        if resume and path.exists():
            earlier = _read(path)
            for name in ("format", "machine", "settings"):
                if earlier.get(name) != self._content[name]:
                    raise UserError(
                        f"{path} was measured with another {name}: {earlier.get(name)} instead of "
                        f"{self._content[name]}; leave --resume out, or name another --output."
                    )
            self._content["cases"] = earlier["cases"]

    def has(self, preset: str, frames: int) -> bool:
        """Whether a case is there already."""
        return any(case["preset"] == preset and case["frames"] == frames for case in self._cases)

    def case(self, preset: str, frames: int) -> dict[str, Any]:
        """Returns a case that is there."""
        return next(c for c in self._cases if c["preset"] == preset and c["frames"] == frames)

    def add(self, case: dict[str, Any]) -> None:
        """Takes a case in and writes all files anew."""
        self._cases.append(case)
        self._cases.sort(key=lambda item: (item["preset"], item["frames"]))
        texts = (json.dumps(self._content, indent=1), text(self._content), chart(self._cases))
        with atomic.told_to_user(self._folder):
            for name, content in zip(FILES, texts):
                atomic.replace_file(self._folder / name, (content + "\n").encode())

    @property
    def _cases(self) -> list[dict[str, Any]]:
        cases: Any = self._content["cases"]
        return cases


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        assert isinstance(content["cases"], list)
        return content
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{path} is damaged ({error}); leave --resume out.") from error


def text(content: dict[str, Any]) -> str:
    """Returns the whole report as Markdown."""
    machine = content["machine"]
    lines = [
        "# Benchmark",
        "",
        f"{machine['device']} ({machine['platform']}), {machine['cores']} cores, jax "
        f"{machine['jax']}; networks in {content['settings']['dtype']}, batches of "
        f"{content['settings']['pair_batch']}. Shares are of ceilings measured in the same run, "
        "per second of wall time / per CPU-second; ~: some batches were run and multiplied; "
        "compiling is not in the times.",
    ]
    for case in content["cases"]:
        lines += ["", case_text(case)]
    return "\n".join(lines)


def case_text(case: dict[str, Any]) -> str:
    """Returns one case as a heading, a table and a summary."""
    found, limits = case["summary"], case["ceilings"]
    lines = [
        f"## {case['preset']}, {case['frames']} frames of {case['width']}x{case['height']}, "
        f"{case['mode']}, prior {case['prior']}",
        "",
        f"Ceilings: matrix product {limits['flops'] / 1e9:,.0f} GFLOP/s "
        f"({limits['flops_per_cpu'] / 1e9:,.0f} per CPU-second), copy {limits['bytes'] / 1e9:.1f} "
        f"GB/s ({limits['bytes_per_cpu'] / 1e9:.1f}).",
        "",
        f"| {' | '.join(_HEADER)} |",
        "|---" * len(_HEADER) + "|",
        *(_line(row) for row in case["rows"]),
        "",
        f"Video: {_tilde(found)}{found['seconds']:.1f} s ({found['cpu_seconds']:.1f} CPU-s), "
        f"{found['frames_per_second']:.2f} frames/s, compiling {found['compile_seconds']:.1f} s.",
    ]
    if found["network_share"] is not None:
        lines[-1] += (
            f" Encoding and decoding {found['pairs']} pairs: {found['network_tflop']:.3g} TFLOP, "
            f"{found['pairs_per_second']:.2f} pairs/s ({found['pairs_per_cpu_second']:.2f} per "
            f"CPU-second), {_percent(found, 'network_share')} of the matrix product; end to end "
            f"{_percent(found, 'video_share')}."
        )
    if "peer" in case:
        lines += ["", *_peer_lines(case["peer"])]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    remark = f"{row['run']} of {row['batches']} batches" if row["sampled"] else ""
    if row["part_of"]:
        belongs = "no stage" if row["part_of"] == "alone" else f"in {row['part_of']}"
        remark = ", ".join(filter(None, [belongs, remark if row["run"] > 1 else ""]))
    peak = row["peak_device_mb"] or row["peak_mb"] or row["program_mb"]
    cells = (
        row["stage"],
        f"{row['items']} {row['item']}s",
        _tilde(row) + _figure(row["seconds"]),
        _figure(row["seconds"] / row["items"]) if row["items"] else "–",
        _tilde(row) + _figure(row["cpu_seconds"]),
        "–" if row["compile_seconds"] is None else f"{row['compile_seconds']:.1f}",
        _figure(row["gflop"]),
        _figure(row["flop_per_second"], 1e9),
        _percent(row, "flop_share"),
        _figure(row["bytes_per_second"], 1e9),
        _percent(row, "bytes_share"),
        "–" if peak is None else f"{peak:,.0f}",
        remark,
    )
    return f"| {' | '.join(cells)} |"


def _peer_lines(peer: dict[str, Any]) -> list[str]:
    lines = [
        f"Peer: {peer['name']}, PyTorch {peer['torch']} on {peer['device']}, {peer['weights']}.",
        "",
        "| stage | peer, s | peer, CPU s | ours, s | ours, CPU s | ratio | CPU ratio |",
        "|---" * 7 + "|",
    ]
    for row in peer["rows"]:
        if row["failed"]:
            lines.append(f"| {row['stage']} | {row['failed']} | | | | | |")
            continue
        mark = "~" if row["run"] < row["of"] else ""
        lines.append(
            f"| {row['stage']} | {mark}{_figure(row['seconds'])} | "
            f"{mark}{_figure(row['cpu_seconds'])} | {_figure(row['our_seconds'])} | "
            f"{_figure(row['our_cpu_seconds'])} | {row['ratio']:.2f} | {row['cpu_ratio']:.2f} |"
        )
    return lines


def _tilde(facts: dict[str, Any]) -> str:
    return "~" if facts["sampled"] else ""


def _figure(value: float | None, unit: float = 1.0) -> str:
    """Three digits; – for what nobody counted."""
    if value is None:
        return "–"
    value = value / unit
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1e-3 else f"{value:.0e}"


def _percent(facts: dict[str, Any], name: str) -> str:
    wall, cpu = facts[name], facts[f"{name}_per_cpu"]
    if wall is None:
        return "–"
    return f"{100 * wall:.0f} / {100 * cpu:.0f} %" if cpu is not None else f"{100 * wall:.0f} %"


# ---- the picture


def chart(cases: Sequence[dict[str, Any]]) -> str:
    """Returns an SVG: a bar per case, its stages as shares of the CPU time.

    CPU time, where the host alone computes: wall time elsewhere.
    """
    shown = [stage for stage in STAGES if any(_seconds(case).get(stage) for case in cases)]
    height = 64 + _STEP * len(cases)
    title = "Where the time of a video goes, by stage"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _BAR + 130} {height}" '
        f'role="img" aria-label="{title}" font-family="sans-serif" font-size="12">'
        f"<title>{title}</title>"
    ]
    for k, stage in enumerate(shown):
        x, y = 12 + (k % 5) * 150, 8 + 20 * (k // 5)
        parts.append(_box(x, y, 12, 12, _colour(stage)) + _label(x + 18, y + 10, stage))
    for k, case in enumerate(cases):
        y = 60 + _STEP * k
        times = _seconds(case)
        total = sum(times.values())
        size = f"{case['frames']} frames of {case['width']}x{case['height']}"
        parts.append(_label(12, y + 8, case["preset"]) + _label(12, y + 24, size))
        x = float(_LEFT)
        for stage in shown:
            share = times.get(stage, 0.0) / total
            parts.append(_box(x, y, _BAR * share, _TALL, _colour(stage)))
            if share > 0.07:
                middle = x + _BAR * share / 2
                parts.append(_label(middle, y + 14, f"{100 * share:.0f} %", "middle", "#fff"))
            x += _BAR * share
        unit = "CPU-s" if _on_host(case) else "s"
        mark = _tilde(case["summary"])
        parts.append(_label(_LEFT + _BAR + 8, y + 14, f"{mark}{_figure(total)} {unit}"))
    return "".join(parts) + "</svg>"


def _on_host(case: dict[str, Any]) -> bool:
    return all(row["peak_device_mb"] is None for row in case["rows"])


def _seconds(case: dict[str, Any]) -> dict[str, float]:
    """Stage -> its time; parts and kernels left out."""
    name = "cpu_seconds" if _on_host(case) else "seconds"
    return {row["stage"]: row[name] for row in case["rows"] if not row["part_of"]}


def _colour(stage: str) -> str:
    return _COLOURS[STAGES.index(stage)]


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{colour}"/>'


def _label(x: float, y: float, words: str, anchor: str = "start", colour: str = "#777") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{html.escape(words)}</text>"
    )
