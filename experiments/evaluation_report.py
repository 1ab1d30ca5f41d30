"""The tables of an evaluation: the set beside published numbers, every sequence, what failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align3r_jax.evaluation import published, scores, tables
from align3r_jax.io import atomic
from experiments import evaluation_plots
from experiments.evaluation_run import Job

_MOTHER_TONGUE = {"video_depth": "video depth", "single_depth": "single-frame depth",
                  "camera_pose": "camera poses", "motion": "motion masks"}  # fmt: skip


def write(
    job: Job,
    records: dict[str, dict[str, Any]],
    missing: list[str],
    departures: dict[str, Any],
    method: str | None,
    papers: tuple[str, ...] = (),
) -> str:
    """Writes table.{md,tex,html} and summary.json and returns the Markdown.

    records: name -> record of a sequence, failed ones included. missing: sequences that other
    processes have not finished. departures: settings that are not the protocol's. papers: the
    sequences that published numbers are means over, if the data set has such a list.
    """
    finished = {name: r["scores"] for name, r in records.items() if "failed" not in r}
    failed = {name: r["failed"] for name, r in records.items() if "failed" in r}
    average, left_out = scores.average(finished, job.protocol)
    title = f"{job.dataset}: {_MOTHER_TONGUE[job.task]}, protocol {job.protocol_name}"
    name = method or _method_name(job)
    notes = _notes(job, finished, left_out, failed, missing, departures)
    if papers and set(papers) != set(finished):
        there = len(set(papers) & set(finished))
        notes.append(
            f"Published rows are means over {len(papers)} sequences, of which {there} are among "
            f"the {len(finished)} of this run: the rows cannot be compared."
        )
    built = [
        _set_table(job, title, name, average, notes),
        _sequence_table(job, finished, left_out, failed),
    ]
    markdown = tables.to_markdown(built)
    pictures = [
        (f"{key} {picture.rsplit('_', 1)[-1].split('.')[0]}", f"plots/{picture}")
        for key, record in records.items()
        for picture in record.get("pictures", [])
    ]
    page = tables.to_html(built, title, evaluation_plots.style(), pictures)
    summary = {
        "settings": job.settings(),
        "departures": departures,
        "method": name,
        "average": average,
        "sequences": finished,
        "left_out": left_out,
        "failed": failed,
        "missing": missing,
    }
    contents = {
        "table.md": markdown,
        "table.tex": tables.to_latex(built),
        "table.html": page,
        "summary.json": json.dumps(summary, indent=1) + "\n",
    }
    with atomic.told_to_user(job.output):
        Path(job.output).mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            atomic.replace_file(job.output / file, content.encode())
    return markdown


def _set_table(
    job: Job, title: str, name: str, average: dict[str, Any], notes: list[str]
) -> tables.Table:
    ours = {**average, "protocol": job.protocol_name, "source": "this run"}
    rows = (
        tables.Row(name, ours, strong=True),
        *tables.published_rows(job.task, job.dataset),
    )
    columns = (*tables.COLUMNS[job.task], *tables.SOURCE_COLUMNS)
    if len(rows) > 1:
        notes = [*notes, f"{published.NOT_FOUND}: not found in any source at hand."]
    return tables.Table(title, "method", columns, rows, tuple(notes)).used()


def _sequence_table(
    job: Job, finished: dict[str, Any], left_out: list[str], failed: dict[str, str]
) -> tables.Table:
    rows = [
        tables.Row(f"{name} (degenerate)" if name in left_out else name, found)
        for name, found in finished.items()
    ]
    rows += [tables.Row(f"{name} (failed)", {}) for name in failed]
    theirs = [
        tables.Row(f"{name}: {row.title}, {row.source}", row.metrics, published.NOT_FOUND)
        for name in finished
        for row in published.rows(job.task, f"{job.dataset}/{name}")
    ]
    return tables.Table(
        "Every sequence", "sequence", tables.COLUMNS[job.task], (*rows, *theirs)
    ).used()


def _notes(
    job: Job,
    finished: dict[str, Any],
    left_out: list[str],
    failed: dict[str, str],
    missing: list[str],
    departures: dict[str, Any],
) -> list[str]:
    counted = len(finished) - len(left_out)
    notes = [f"{counted} sequences count. Protocol: {job.protocol.source}."]
    if departures:
        told = ", ".join(f"{name}={value}" for name, value in departures.items())
        notes.append(f"Departs from the protocol: {told}.")
    holes = {n: s["coverage"] for n, s in finished.items() if s.get("coverage", 1) < 0.999}
    if holes:
        worst = min(holes, key=lambda key: holes[key])
        notes.append(
            f"Pixels without a prediction are not scored; {len(holes)} sequences have such, "
            f"{worst} the most: {100 * (1 - holes[worst]):.1f} %."
        )
    notes += [f"Left out of the averages: {n}: {finished[n]['degenerate']}" for n in left_out]
    notes += [f"Failed: {name}: {reason}" for name, reason in failed.items()]
    if missing:
        notes.append(f"Not evaluated yet: {', '.join(missing)}.")
    return notes


def _method_name(job: Job) -> str:
    if job.predictions is not None:
        return job.predictions.name or "predictions"
    if job.networks.model is not None:
        return job.networks.model.name
    return "ours, without weights"
