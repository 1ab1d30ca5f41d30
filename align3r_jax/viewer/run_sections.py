"""The sections of the report about the run: errors, trajectory, losses, stages, settings."""

from __future__ import annotations

import html
import json
from typing import Any

import numpy as np

from align3r_jax.geometry import registration
from align3r_jax.structs import Array, Scene
from align3r_jax.viewer import plots

MAX_DIRECTION_STROKES = 40


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
    return _section("errors", "Errors against the truth", (
        "<p>The truth of this video is known and was used for nothing but this table.</p>"
        '<div class="scroll"><table class="data"><thead><tr><th scope="col">Measure</th>'
        '<th scope="col" class="number">This result</th><th scope="col">Baseline</th>'
        '<th scope="col">Result / baseline</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    ))  # fmt: skip


def trajectory(scene: Scene, true_world_from_cam: np.ndarray | None) -> str:
    """Returns the camera path from above (x, z) and from the side (z, y up), with the truth's."""
    first_from_world = np.linalg.inv(np.asarray(scene.world_from_cam[0], np.float64))
    predicted = first_from_world @ scene.world_from_cam
    paths = [("predicted", predicted, "s1")]
    note = ""
    if true_world_from_cam is not None and len(predicted) > 1:
        truth = _aligned(np.asarray(true_world_from_cam, np.float64), predicted)
        paths.append(("truth", truth, "s2 dashed"))
        note = " The truth is fitted to it by a similarity (rotation, shift, scale)."
    unit = "m" if scene.metric else "scene units"
    above, side = ([_path(name, poses, style, axes) for name, poses, style in paths]
                   for axes in ((0, 2), (2, 1)))  # fmt: skip
    right, up, forward = (f"{direction} [{unit}]" for direction in ("right", "up", "forward"))
    from_above = plots.map_chart(
        above, title="Camera path from above", x_label=right, y_label=forward
    )
    from_side = plots.map_chart(
        side, title="Camera path from the side", x_label=forward, y_label=up
    )
    return _section("trajectory", "Camera path", (
        "<p>Axes of the first camera. The dot is the first frame, the ring the last; short strokes "
        f"are viewing directions.{note}</p>"
        f'<div class="columns"><figure><h3>From above</h3>{from_above}</figure>'
        f"<figure><h3>From the side</h3>{from_side}</figure></div>{plots.legend(above)}"
    ))  # fmt: skip


def losses(scene: Scene, pairs: list[list[int]] | None) -> str:
    """Returns the loss terms over the iterations and the losses of the pairs."""
    figures = []
    traced = {name: np.asarray(values) for name, values in scene.trace.items() if name != "lr"}
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
    return _section("losses", "Alignment", f'<div class="columns">{"".join(figures)}</div>')


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
    return _section("stages", "Time and memory", (
        '<div class="scroll"><table class="data"><thead><tr><th scope="col">Stage</th>'
        '<th scope="col" class="number">Time</th><th scope="col" class="share">Share</th>'
        f'<th scope="col" class="number">Peak memory</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody><tfoot><tr><th scope=\"row\">Total</th>"
        f'<td class="number">{duration(total)}</td><td class="share"></td><td></td>'
        f"{'<td></td>' * device}</tr></tfoot></table></div>"
    ))  # fmt: skip


def settings(summary: dict[str, Any]) -> str:
    """Returns the settings, weights and whatever else identifies the run, folded."""
    skipped = {"scene", "stages", "errors", "pairs", "limits", "format", "losses"}
    facts = {key: value for key, value in summary.items() if key not in skipped}
    if not facts:
        return ""
    text = html.escape(json.dumps(facts, indent=2, ensure_ascii=False))
    return _section("settings", "Settings", (
        f"<details><summary>Everything that identifies this run</summary>"
        f'<div class="scroll"><pre>{text}</pre></div></details>'
    ))  # fmt: skip


def duration(seconds: float) -> str:
    """Returns seconds as people say them: 8.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _section(name: str, title: str, content: str) -> str:
    return (f'<section aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>'
            f"{content}</section>")  # fmt: skip


def _aligned(source: Array, target: Array) -> np.ndarray:
    """Returns the source poses carried onto the target's by a similarity."""
    parts = registration.align_poses(source.astype(np.float32), target.astype(np.float32))
    scale, rotation, translation = (np.asarray(part, np.float64) for part in parts)
    result = source.copy()
    result[:, :3, :3] = rotation @ source[:, :3, :3]
    result[:, :3, 3] = scale * source[:, :3, 3] @ rotation.T + translation
    # Cameras that stand still have no scale to fit.
    return result if np.isfinite(result).all() else source


def _path(name: str, poses: np.ndarray, style: str, axes: tuple[int, int]) -> plots.Line:
    sign = np.array([-1.0 if axis == 1 else 1.0 for axis in axes])  # y points down
    centres = poses[:, :3, 3][:, axes] * sign
    extent = float(np.linalg.norm(np.ptp(poses[:, :3, 3], axis=0)))
    step = -(-len(poses) // MAX_DIRECTION_STROKES)
    forward = poses[::step, :3, 2][:, axes] * sign * max(0.08 * extent, 1e-6)
    ticks = np.concatenate([centres[::step], centres[::step] + forward], axis=1)
    return plots.Line(name, centres[:, 0], centres[:, 1], style, ticks=ticks, ends=True)


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
    return f"{value / baseline:.2f} ×"
