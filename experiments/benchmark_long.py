"""Time, memory and accuracy of the main command on videos of growing length.

    python -m experiments.benchmark_long --output=outputs/long [--frames=50,100,250,500,1000]

Renders one long procedural video (`data.procedural.make_long`, 128x96) and reconstructs its first
N frames with the default settings and `--max_memory`, every N in a process of its own whose
resident memory is sampled ten times a second. Writes `benchmark_long.json`, the table
`benchmark_long.md` and two charts (SVG). All lengths together: about an hour and a half on two
cores; docs/long_videos.md holds what came out.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from align3r_jax import plan
from align3r_jax.errors import UserError
from align3r_jax.viewer import plots
from data.procedural import make_long, make_sample
from experiments import cli

OUTPUT = flags.DEFINE_string("output", "outputs/long", "Folder for the video and the results.")
FRAMES = flags.DEFINE_list(
    "frames", ["50", "100", "250", "500", "1000"], "Lengths to run, in frames."
)
HEIGHT = flags.DEFINE_integer("height", 96, "Of the video, in pixels.", lower_bound=32)
WIDTH = flags.DEFINE_integer("width", 128, "Of the video, in pixels.", lower_bound=32)
MAX_MEMORY = flags.DEFINE_string("max_memory", "4GB", "What every run may use: 4GB, 6GiB.")
KEEP = flags.DEFINE_bool("keep", True, "Take lengths that are in benchmark_long.json from there.")


def measure(video: Path, output: Path, frames: int, max_memory: str) -> dict[str, Any]:
    """Runs the main command on the first `frames` frames; returns what it took and how good it is.

    Raises UserError with the command's last line if it fails.
    """
    command = [
        sys.executable, "-m", "experiments.reconstruct", f"--video={video}", f"--output={output}",
        f"--max_frames={frames}", f"--max_memory={max_memory}", "--overwrite",
        f"--size={WIDTH.value}",
    ]  # fmt: skip
    started = time.perf_counter()
    with open(output.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        peak = [0]
        watcher = threading.Thread(target=_watch, args=(process, peak))
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        watcher.join()
    if process.returncode:
        last = output.with_suffix(".log").read_text().strip().splitlines()[-1:]
        raise UserError(f"{frames} frames: the command failed: {' '.join(last)}")
    summary = json.loads((output / "summary.json").read_text())
    errors = {name: entry["value"] for name, entry in summary["errors"].items()}
    standing = summary["errors"]["ATE"]["baseline"]
    return {
        "frames": frames,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": peak[0],
        "plan": summary["plan"],
        "stages": summary["stages"],
        "errors": errors,
        "standing_ate": standing,
    }


def _watch(process: subprocess.Popen, peak: list[int]) -> None:
    """Samples the resident memory of a process until it ends."""
    page = os.sysconf("SC_PAGE_SIZE")
    while process.returncode is None:
        try:
            resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * page
        except (OSError, IndexError):
            return
        peak[0] = max(peak[0], resident)
        time.sleep(0.1)


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a Markdown table."""
    lines = [
        "| frames | wall s | CPU s | CPU s per frame | peak memory | predicted | ATE / standing "
        "| rotation per step | depth Abs Rel |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        errors = row["errors"]
        lines.append(
            f"| {row['frames']} | {row['seconds']:.0f} | {row['cpu_seconds']:.0f} "
            f"| {row['cpu_seconds'] / row['frames']:.2f} | {row['peak_bytes'] / 1e9:.2f} GB "
            f"| {max(row['plan']['stages'].values()) / 1e9:.2f} GB "
            f"| {errors['ATE'] / row['standing_ate']:.3f} "
            f"| {errors['rotation error per step']:.3f}° "
            f"| {errors['depth Abs Rel, one scale']:.3f} |"
        )
    return "\n".join(lines)


def charts(rows: list[dict[str, Any]], folder: Path) -> None:
    """Writes `long_time.svg` (seconds against frames) and `long_memory.svg` (GB against frames)."""
    frames = np.array([row["frames"] for row in rows], float)
    cpu = np.array([row["cpu_seconds"] for row in rows])
    memory = np.array([row["peak_bytes"] for row in rows]) / 1e9
    predicted = np.array([max(row["plan"]["stages"].values()) for row in rows]) / 1e9
    _write_svg(
        folder / "long_time.svg",
        [plots.Line("CPU seconds per frame", frames, cpu / frames)],
        "CPU seconds per frame",
    )
    _write_svg(
        folder / "long_memory.svg",
        [
            plots.Line("measured", frames, memory),
            plots.Line("predicted", frames, predicted, style="s2"),
        ],
        "peak GB",
    )


def _write_svg(path: Path, lines: list[plots.Line], label: str) -> None:
    chart = plots.line_chart(lines, title=label, x_label="frames", y_label=label)
    path.write_text(plots.standalone(chart, lines))


def main(argv: Sequence[str]) -> None:
    del argv
    lengths = sorted(int(text) for text in FRAMES.value)
    if lengths[0] < 2:
        raise UserError(f"--frames={','.join(FRAMES.value)}: every length must be at least 2.")
    plan.parse_memory(MAX_MEMORY.value)
    folder = Path(OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    video = folder / f"{make_long.NAME}.mp4"
    wanted = {"frames": lengths[-1], "height": HEIGHT.value, "width": WIDTH.value}
    facts = folder / "video.json"
    if not facts.exists() or not _covers(json.loads(facts.read_text()), wanted):
        rendered = make_long.render_long(**wanted, supersample=2)
        make_sample.write_video(video, rendered.images, make_long.RATE)
        make_sample.write_truth(video.with_suffix(".truth.npz"), rendered)
        del rendered
        facts.write_text(json.dumps(wanted))
    results = folder / "benchmark_long.json"
    rows: dict[int, dict[str, Any]] = {}
    if KEEP.value and results.exists():
        rows = {row["frames"]: row for row in json.loads(results.read_text())["rows"]}
    for length in lengths:
        if length not in rows:
            rows[length] = measure(video, folder / f"{length}", length, MAX_MEMORY.value)
        ordered = [rows[k] for k in sorted(rows)]
        content = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "rows": ordered}
        results.write_text(json.dumps(content, indent=1))
        (folder / "benchmark_long.md").write_text(table(ordered) + "\n")
        print(table(ordered[-1:]).splitlines()[-1], flush=True)
    charts(ordered, folder)


def _covers(have: dict[str, int], wanted: dict[str, int]) -> bool:
    return have["frames"] >= wanted["frames"] and all(
        have[name] == wanted[name] for name in ("height", "width")
    )


if __name__ == "__main__":
    cli.run(main)
