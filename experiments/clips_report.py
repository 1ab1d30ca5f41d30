"""What became of the clips of a run: a table for people, for programs (clips.json) and browsers."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align3r_jax.io import atomic, scene_folder

FORMAT = "align3r_jax clips, version 1"
_STYLE = (
    "body{font-family:sans-serif;margin:2em}td,th{padding:.3em 1em;text-align:left;"
    "border-bottom:1px solid #ddd}td.n{text-align:right}.failed{color:#a00}"
)


def line(name: str, outcome: Mapping[str, Any], done: int, total: int) -> str:
    """Returns a sentence on a clip that was just worked on."""
    said = f"{outcome['frames']} frames in {outcome['seconds']:.1f} s"
    if outcome["status"] == "failed":
        said = f"failed: {outcome['error']}"
    return f"[{done}/{total}] {name}: {said}"


def write(
    output: Path,
    sources: Mapping[str, Any],
    outcomes: Mapping[str, Mapping[str, Any]],
    holders: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes clips.json and index.html; every process may, each file appears whole.

    sources, outcomes, holders: by name of clip; who has no outcome is running or waiting.
    """
    rows = {}
    for name, source in sources.items():
        row: dict[str, Any] = {"status": "waiting"}
        if name in holders:
            row = {"status": "running", **holders[name]}
        row = {**row, **outcomes.get(name, {})}
        rows[name] = {"source": str(source.path), **row}
    counts = dict(Counter(row["status"] for row in rows.values()))
    text = json.dumps({"format": FORMAT, "counts": counts, "clips": rows}, indent=1) + "\n"
    with atomic.told_to_user(output):
        atomic.replace_file(output / "clips.json", text.encode())
        atomic.replace_file(output / "index.html", _page(rows, counts).encode())


def table(outcomes: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the outcomes as lines of text, those that failed last."""
    wide = max(len(name) for name in outcomes)
    lines = [f"{'clip':{wide}}  frames  seconds  status"]
    for name, found in sorted(outcomes.items(), key=lambda item: item[1]["status"] == "failed"):
        said = found["status"] + (f": {found['error']}" if "error" in found else "")
        frames = "-" if found["frames"] is None else found["frames"]
        lines.append(f"{name:{wide}}  {frames:>6}  {found['seconds']:>7.1f}  {said}")
    failed = sum(found["status"] == "failed" for found in outcomes.values())
    return "\n".join([*lines, f"{len(outcomes) - failed} finished, {failed} failed."])


def _page(rows: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int]) -> str:
    cells = []
    for name, row in rows.items():
        shown, link = html.escape(name), html.escape(f"{name}/{scene_folder.REPORT}", quote=True)
        if row["status"] == "finished":
            shown = f'<a href="{link}">{shown}</a>'
        said = html.escape(row["status"] + (f": {row['error']}" if "error" in row else ""))
        numbers = [row.get("frames"), row.get("seconds")]
        cells.append(
            f'<tr class="{row["status"]}"><td>{shown}</td>'
            + "".join(f'<td class="n">{"" if n is None else n}</td>' for n in numbers)
            + f"<td>{said}</td><td>{html.escape(row['source'])}</td></tr>"
        )
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Clips</title>'
        f"<style>{_STYLE}</style><h1>{len(rows)} clips: {said}</h1><table>"
        "<tr><th>clip</th><th>frames</th><th>seconds</th><th>status</th><th>source</th></tr>"
        + "\n".join(cells)
        + "</table></html>\n"
    )
