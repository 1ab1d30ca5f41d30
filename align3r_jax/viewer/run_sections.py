"""The sections of the report about the run: errors, losses, stages, how to make it again."""

from __future__ import annotations

import html
import json
from typing import Any

import numpy as np

from align3r_jax.structs import Scene
from align3r_jax.viewer import page, plots

_NO_LOSS = {"lr", "accepted", "damping"}  # traces of solvers that are no terms


def errors(values: dict[str, Any]) -> str:
    """Returns the table of errors against the truth.

    values: name -> number, or a dictionary with value and optionally unit, baseline,
    baseline_name, better ("lower" or "higher").
    """
    rows = []
    for name, entry in values.items():
        entry = entry if isinstance(entry, dict) else {"value": entry}
        value, baseline = entry.get("value"), entry.get("baseline")
        if not isinstance(value, int | float):
            continue
        unit = f" {entry['unit']}" if entry.get("unit") else ""
        against = verdict = ""
        if isinstance(baseline, int | float):
            against = f"{baseline:.4g}{unit}"
            if entry.get("baseline_name"):
                against += f" ({entry['baseline_name']})"
            lower = entry.get("better", "lower") == "lower"
            wins = value < baseline if lower else value > baseline
            verdict = f'<span class="{"good" if wins else "bad"}">{_ratio(value, baseline)}</span>'
        rows.append(
            f'<tr><th scope="row">{html.escape(name)}</th>'
            f'<td class="number">{value:.4g}{html.escape(unit)}</td>'
            f"<td>{html.escape(against)}</td><td>{verdict}</td></tr>"
        )
    if not rows:
        return ""
    return page.section("errors", "Errors against the truth", (
        "<p>The truth of this video is known and was used for nothing but this table.</p>"
        '<div class="scroll"><table class="data"><thead><tr><th scope="col">Measure</th>'
        '<th scope="col" class="number">This result</th><th scope="col">Baseline</th>'
        '<th scope="col">Result / baseline</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    ))  # fmt: skip


def losses(scene: Scene, pairs: list[list[int]] | None) -> str:
    """Returns the loss terms over the iterations and the losses of the pairs."""
    figures = []
    traced = {
        name: np.asarray(values) for name, values in scene.trace.items() if name not in _NO_LOSS
    }
    traced = {name: values for name, values in traced.items() if np.any(values)}
    shown = list(traced.items())[: plots.NUM_COLOURS]
    lines = [
        plots.Line(name, np.arange(len(values)), values, f"s{k + 1}")
        for k, (name, values) in enumerate(shown)
    ]
    chart = plots.line_chart(lines, title="Loss terms over the iterations", x_label="iteration",
                             y_label="loss") if lines else ""  # fmt: skip
    if chart:
        rest = len(traced) - len(shown)
        more = f"<p>{rest} more in summary.json.</p>" if rest else ""
        figures.append(f"<figure><h3>Loss by term</h3>{chart}{plots.legend(lines)}{more}</figure>")
    pair_losses = np.asarray(scene.pair_losses, np.float64)
    if np.isfinite(pair_losses).any():
        figures.append(_pair_figure(pair_losses, pairs, len(scene.names)))
    if not figures:
        return ""
    return page.section("losses", "Alignment", f'<div class="columns">{"".join(figures)}</div>')


def stages(records: list[dict[str, Any]]) -> str:
    """Returns the table of stages: seconds, share of the total, peak memory (and device's)."""
    if not records:
        return ""
    total = sum(float(record.get("seconds") or 0) for record in records)
    device = any("peak_device_memory_mb" in record for record in records)
    rows = []
    for record in records:
        seconds = float(record.get("seconds") or 0)
        share = 100 * seconds / total if total else 0
        time = "resumed" if record.get("resumed") else f"{seconds:.2f} s"
        cells = [
            f'<th scope="row">{html.escape(str(record.get("stage", "")))}</th>',
            f'<td class="number">{time}</td>',
            f'<td class="share"><span class="bar" style="width:{share:.1f}%"></span></td>',
            _memory(record.get("peak_memory_mb")),
            _memory(record.get("peak_device_memory_mb")) if device else "",
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = '<th scope="col" class="number">Device memory</th>' if device else ""
    return page.section("stages", "Time and memory", (
        '<div class="scroll"><table class="data"><thead><tr><th scope="col">Stage</th>'
        '<th scope="col" class="number">Time</th><th scope="col" class="share">Share</th>'
        f'<th scope="col" class="number">Peak memory</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody><tfoot><tr><th scope=\"row\">Total</th>"
        f'<td class="number">{duration(total)}</td><td class="share"></td><td></td>'
        f"{'<td></td>' * device}</tr></tfoot></table></div>"
    ))  # fmt: skip


def reproduce(summary: dict[str, Any]) -> str:
    """Returns the command that makes the result again, the software it ran with, all settings."""
    command = summary.get("command")
    parts = []
    if command:
        parts.append(
            f'<p>This command made the result. <button type="button" class="small" '
            'data-copy="command">Copy</button></p><pre class="command" tabindex="0" '
            f'aria-label="Command" id="command">{html.escape(str(command))}</pre>'
        )
    else:
        parts.append("<p>Made from Python or by an earlier version: no command is recorded.</p>")
    software = summary.get("software") or {}
    if software:
        listed = ", ".join(
            f"{html.escape(name)} {html.escape(str(value))}"
            for name, value in software.items()
            if value
        )
        parts.append(f"<p>Ran with {listed}.</p>")
    skipped = {"scene", "stages", "errors", "pairs", "limits", "format", "losses", "command",
               "software"}  # fmt: skip
    facts = {key: value for key, value in summary.items() if key not in skipped}
    if facts:
        text = html.escape(json.dumps(facts, indent=2, ensure_ascii=False))
        parts.append(
            "<details><summary>Settings, weights and all else that identifies the run</summary>"
            f'<div class="scroll" tabindex="0" role="region" aria-label="Settings"><pre>{text}'
            "</pre></div></details>"
        )
    return page.section("reproduce", "Make it again", "".join(parts))


def duration(seconds: float) -> str:
    """Returns seconds as people say them: 8.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _pair_figure(values: np.ndarray, pairs: list[list[int]] | None, num_frames: int) -> str:
    if pairs is not None and len(pairs) == len(values):
        chart = plots.pair_matrix(np.asarray(pairs), values, num_frames,
                                  title="Loss of every pair of frames")  # fmt: skip
        text = "Mean weighted residual of each ordered pair (i, j), where there is one."
    else:
        order = np.sort(values[np.isfinite(values)])[::-1]
        line = plots.Line("loss", np.arange(len(order)), order)
        chart = plots.line_chart([line], title="Losses of the pairs, sorted",
                                 x_label="pair, worst first", y_label="loss")  # fmt: skip
        text = "Mean weighted residual of each pair, sorted."
    return f"<figure><h3>Loss by pair</h3>{chart}<figcaption>{text}</figcaption></figure>"


def _memory(megabytes: float | None) -> str:
    return f'<td class="number">{"" if megabytes is None else f"{megabytes:,.0f} MB"}</td>'


def _ratio(value: float, baseline: float) -> str:
    if baseline == 0:
        return ""
    return f"{value / baseline:.2g} ×"
