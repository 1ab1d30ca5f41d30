"""Inline SVG charts of the report: losses over iterations, camera paths, losses of pairs.

Colours are classes (`s1` ... `s8`), which the page's style sheet sets for light and dark mode.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from align3r_jax.io import preview

NUM_COLOURS = 8
MAX_POINTS_PER_LINE = 400
MAX_CELLS = 400
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 480, 68, 14, 12, 44


@dataclasses.dataclass(frozen=True)
class Line:
    """One named curve. x, y: (n,); points that are not finite interrupt it.

    style: a class of the style sheet. ticks: (m, 4) short extra strokes x0 y0 x1 y1 (viewing
    directions). ends: mark the first point with a dot and the last with a ring.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str = "s1"
    ticks: np.ndarray | None = None
    ends: bool = False


def line_chart(
    lines: list[Line], *, title: str, x_label: str, y_label: str, height: int = 300
) -> str:
    """Returns an SVG of curves over a shared x, y logarithmic wherever all values allow it.

    A value <= 0 on a logarithmic axis interrupts its curve. The title is read by screen readers.
    """
    lines = [_thinned(line) for line in lines]
    positive = np.concatenate([line.y[np.isfinite(line.y) & (line.y > 0)] for line in lines])
    if not positive.size:
        return ""
    log = positive.max() > 10 * positive.min()
    low, high = float(positive.min()), float(positive.max())
    # A term that sinks to nothing would flatten all others.
    low = max(low, high * 1e-6) if log else 0.0
    y_axis = _Axis(low, high, height - BOTTOM, TOP, log)
    x = np.concatenate([line.x for line in lines])
    x_axis = _Axis(float(x.min()), max(float(x.max()), float(x.min()) + 1), LEFT, WIDTH - RIGHT)
    shown = [
        dataclasses.replace(line, y=np.where(line.y >= low, line.y, np.nan) if log else line.y)
        for line in lines
    ]
    return _svg(title, height, x_axis, y_axis, x_label, y_label, [
        _curve(line, x_axis, y_axis) for line in shown
    ])  # fmt: skip


def map_chart(
    lines: list[Line], *, title: str, x_label: str, y_label: str, height: int = 380
) -> str:
    """Returns an SVG of paths in a plane, one scale for both axes, so that angles are true."""
    x = np.concatenate([line.x for line in lines])
    y = np.concatenate([line.y for line in lines])
    inside_w, inside_h = WIDTH - LEFT - RIGHT, height - TOP - BOTTOM
    span = max(np.ptp(x) / inside_w, np.ptp(y) / inside_h) * 1.2
    span = span if span > 1e-9 else 1.0 / inside_h
    middle_x, middle_y = (x.max() + x.min()) / 2, (y.max() + y.min()) / 2
    half_w, half_h = span * inside_w / 2, span * inside_h / 2
    x_axis = _Axis(middle_x - half_w, middle_x + half_w, LEFT, WIDTH - RIGHT, tight=True)
    y_axis = _Axis(middle_y - half_h, middle_y + half_h, height - BOTTOM, TOP, tight=True)
    return _svg(title, height, x_axis, y_axis, x_label, y_label, [
        _curve(line, x_axis, y_axis) for line in lines
    ])  # fmt: skip


def pair_matrix(pairs: np.ndarray, losses: np.ndarray, num_frames: int, *, title: str) -> str:
    """Returns an SVG matrix: row i, column j coloured by the loss of the ordered pair (i, j).

    pairs: (P, 2) int. losses: (P,); the colours span zero to their 98th percentile. Cells without
    a pair stay empty. The cells are an embedded picture of at most `MAX_CELLS` a side, so that
    long videos stay small.
    """
    losses = np.asarray(losses, np.float64)
    top = max(float(np.nanpercentile(losses, 98)), 1e-12)
    side = min(num_frames, MAX_CELLS)
    row, column = np.asarray(pairs).T * side // num_frames
    # Of the pairs that share a cell, the worst is seen.
    worst = np.full((side, side), -np.inf)
    np.maximum.at(worst, (row, column), np.nan_to_num(losses, nan=top))
    filled = worst > -np.inf
    cells = np.zeros((side, side, 4), np.uint8)
    cells[filled, :3] = preview.colour_confidence(np.exp(worst[filled] / top)[None], math.e)[0]
    cells[filled, 3] = 255
    height = 380
    size = height - TOP - BOTTOM
    x_axis = _Axis(-0.5, num_frames - 0.5, LEFT, LEFT + size, tight=True, integers=True)
    y_axis = _Axis(num_frames - 0.5, -0.5, height - BOTTOM, TOP, tight=True, integers=True)
    picture = base64.b64encode(preview.encode_png(cells)).decode()
    image = (
        f'<image x="{LEFT}" y="{TOP}" width="{size}" height="{size}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{picture}"/>'
    )
    return _svg(title, height, x_axis, y_axis, "frame j", "frame i",
                [image, _colour_bar(LEFT + size + 18, size, top)])  # fmt: skip


def legend(lines: list[Line]) -> str:
    """Returns an HTML list that names the curves; empty for a single one."""
    if len(lines) < 2:
        return ""
    items = "".join(
        f'<li><svg viewBox="0 0 22 8" aria-hidden="true"><path class="line {line.style}" '
        f'd="M1 4H21"/></svg>{html.escape(line.name)}</li>'
        for line in lines
    )
    return f'<ul class="legend">{items}</ul>'


def standalone(svg: str, lines: Sequence[Line] = ()) -> str:
    """Returns a chart as a file of its own: with the page's colours, and the names of several
    curves below it. Empty stays empty.
    """
    if not svg:
        return ""
    css = (resources.files("align3r_jax.viewer") / "assets" / "report.css").read_text("utf-8")
    colours = "".join(re.findall(r"--s\d: #\w+;", css.split("@media")[0]))
    classes = "".join(f".s{k}{{color:var(--s{k})}}" for k in range(1, NUM_COLOURS + 1))
    style = (
        f"<style>svg{{{colours}background:#fff}}{classes}text{{font:12px sans-serif;fill:#555}}"
        ".end{text-anchor:end}.middle{text-anchor:middle}.grid{stroke:#ddd;fill:none}"
        ".line,.tick,.ring{fill:none;stroke:currentColor;stroke-width:2}.tick{stroke-width:1}"
        ".dot{fill:currentColor}</style>"
    )
    height = int(re.search(r'viewBox="0 0 \d+ (\d+)"', svg)[1])  # type: ignore[index]
    names = [
        f'<path class="line {line.style}" d="M{LEFT} {height + 10 + 18 * k}h22"/>'
        f'<text x="{LEFT + 30}" y="{height + 14 + 18 * k}">{html.escape(line.name)}</text>'
        for k, line in enumerate(lines)
        if len(lines) > 1
    ]
    size = f'viewBox="0 0 {WIDTH} {height + 18 * len(names) + 6 * bool(names)}"'
    alone = re.sub(r'viewBox="[^"]*"', size, svg, count=1)
    alone = alone.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    start = alone.index(">") + 1
    return f"{alone[:start]}{style}{alone[start : -len('</svg>')]}{''.join(names)}</svg>\n"


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Maps data [low, high] onto pixels [start, stop]; `tight` keeps the limits as they are."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False
    tight: bool = False
    integers: bool = False

    def __call__(self, value: Any) -> Any:
        low, high = self._limits()
        if self.log:
            low, high, value = math.log10(low), math.log10(high), np.log10(value)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def _limits(self) -> tuple[float, float]:
        if self.tight:
            return self.low, self.high
        if self.log:
            return self.low / 1.25, self.high * 1.25
        return self.low, self.high + 0.05 * (self.high - self.low if self.stop < self.start else 0)

    def ticks(self) -> list[float]:
        """Round numbers inside the limits: 1-2-5 steps, or powers of ten."""
        low, high = sorted(self._limits())
        if self.log:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            steps = (1,) if math.log10(high / low) > 2.2 else (1, 2, 5)
            marks = [step * 10.0**power for power in powers for step in steps]
            return [mark for mark in marks if low <= mark <= high]
        step = _round_step((high - low) / 5)
        if self.integers:
            step = max(1, math.ceil(step))
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)


def _thinned(line: Line) -> Line:
    keep = preview.even_indices(len(line.x), MAX_POINTS_PER_LINE)
    return dataclasses.replace(line, x=line.x[keep], y=np.asarray(line.y, np.float64)[keep])


def _curve(line: Line, x_axis: _Axis, y_axis: _Axis) -> str:
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = x_axis(np.asarray(line.x, np.float64)), y_axis(np.asarray(line.y, np.float64))
    commands, drawing = [], False
    for px, py in zip(x, y):
        visible = math.isfinite(px) and math.isfinite(py)
        if visible:
            commands.append(f"{'L' if drawing else 'M'}{px:.1f} {py:.1f}")
        drawing = visible
    parts = [f'<path class="line {line.style}" d="{"".join(commands)}"/>']
    if line.ticks is not None and len(line.ticks):
        ends = line.ticks
        strokes = zip(x_axis(ends[:, 0]), y_axis(ends[:, 1]), x_axis(ends[:, 2]),
                      y_axis(ends[:, 3]))  # fmt: skip
        path = "".join(f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" for a, b, c, d in strokes)
        parts.append(f'<path class="tick {line.style}" d="{path}"/>')
    if line.ends and len(x):
        parts.append(f'<circle class="dot {line.style}" cx="{x[0]:.1f}" cy="{y[0]:.1f}" r="4"/>')
        parts.append(f'<circle class="ring {line.style}" cx="{x[-1]:.1f}" cy="{y[-1]:.1f}" r="4"/>')
    return "".join(parts)


def _colour_bar(x: float, size: float, top: float) -> str:
    steps = 24
    colours = preview.colour_confidence(np.exp(np.linspace(1, 0, steps))[None], maximum=math.e)[0]
    tall = size / steps
    cells = "".join(
        f'<rect x="{x}" y="{TOP + k * tall:.1f}" width="12" height="{tall + 0.5:.1f}" '
        f'fill="rgb({r},{g},{b})"/>'
        for k, (r, g, b) in enumerate(colours.tolist())
    )
    return (f'{cells}<text x="{x + 18}" y="{TOP + 10}">{top:.2g}</text>'
            f'<text x="{x + 18}" y="{TOP + size}">0</text>')  # fmt: skip


def _svg(
    title: str, height: int, x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str,
    content: list[str],
) -> str:  # fmt: skip
    left, right = x_axis.start, x_axis.stop
    top, bottom = min(y_axis.start, y_axis.stop), max(y_axis.start, y_axis.stop)
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
             f'aria-label="{html.escape(title)}"><title>{html.escape(title)}</title>']  # fmt: skip
    for mark in y_axis.ticks():
        y = float(y_axis(mark))
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        parts.append(_text(left - 7, y + 4, _number(mark), "end"))
    for mark in x_axis.ticks():
        x = float(x_axis(mark))
        parts.append(f'<path class="grid" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>')
        parts.append(_text(x, bottom + 17, _number(mark), "middle"))
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    parts += content
    parts.append(
        f'<text class="middle label" x="{middle_x:.0f}" y="{height - 6}">{html.escape(x_label)}'
        f'</text><text class="middle label" transform="translate(13 {middle_y:.0f}) rotate(-90)">'
        f"{html.escape(y_label)}</text></svg>"
    )
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{anchor}" x="{x:.1f}" y="{y:.1f}">{text}</text>'


def _number(value: float) -> str:
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"
