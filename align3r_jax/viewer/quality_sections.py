"""The sections of the report about trust: warnings, confidence, the prior against the result."""

from __future__ import annotations

import base64
import html

import cv2
import numpy as np

from align3r_jax.findings import measures as measures_lib
from align3r_jax.findings import warnings
from align3r_jax.io import preview
from align3r_jax.structs import Scene
from align3r_jax.viewer import page, plots

LEAST_CONFIDENT = 3  # frames shown as pictures
THUMBNAIL = 360  # pixels wide


def warning_list(limits: list[str], measured: measures_lib.Measures) -> str:
    """Returns the list of what to know first: what the run said, and what the result shows.

    limits: of the run's summary. Warnings about frames get a button that shows the first of them.
    """
    found = warnings.judge(measured)
    rows = []
    for limit in map(str, limits):
        finding = next((f for f in found if limit.startswith(f.title)), None)
        rows.append((limit, finding))
    # Results of earlier versions, or saved from Python, carry no warnings yet.
    rows += [(finding.sentence, finding) for finding in warnings.judge(measured, limits)]
    rows.sort(key=lambda row: row[1] is None)
    if not rows:
        return ""
    items = "".join(f"<li>{_item(sentence, finding)}</li>" for sentence, finding in rows)
    return (
        '<section class="notes" aria-labelledby="notes-title"><h2 id="notes-title">Before you '
        f"trust it</h2><ul>{items}</ul></section>"
    )


def confidence(scene: Scene, measured: measures_lib.Measures) -> str:
    """Returns where the result is unsure: over time, over the picture, and in which frames."""
    usual, low = float(np.median(measured.confidence)), warnings.low_confidence(measured)
    frames = np.arange(len(measured.confidence))
    below = np.flatnonzero(measured.confidence < low)
    where = (
        f"In {warnings.frame_ranges(below)} it is below {low:.3g}, which is called low here"
        if len(below)
        else f"No frame is low, which would be below {low:.3g}"
    )
    figures = []
    if len(frames) > 1:
        lines = [
            plots.Line("median of the frame", frames, measured.confidence, "s1"),
            plots.Line("called low below", frames[[0, -1]], np.full(2, low), "s2 dashed"),
        ]
        chart = plots.line_chart(lines, title="Confidence over the video", x_label="frame",
                                 y_label="confidence")  # fmt: skip
        figures.append(f"<figure><h3>Over time</h3>{chart}{plots.legend(lines)}</figure>")
    figures.append(_where_in_the_picture(scene))
    return page.section("confidence", "Confidence", (
        f"<p>The median over the video is {usual:.3g}; 1 means nothing is known. {where}. "
        f"{100 * float(measured.unsure.mean()):.0f} % of all pixels are below "
        f"{measures_lib.UNSURE:g} and become no points.</p>"
        f'<div class="columns">{"".join(figures)}</div>{_least(scene, measured, low)}'
    ))  # fmt: skip


def prior(measured: measures_lib.Measures) -> str:
    """Returns how far the depth prior and the aligned depth are apart in each frame."""
    error = measured.prior_error
    if error is None or not np.isfinite(error).any() or len(error) < 2:
        return ""
    frames = np.arange(len(error))
    apart = np.flatnonzero(error > warnings.MAX_PRIOR_ERROR)
    verdict = (
        f"More than {100 * warnings.MAX_PRIOR_ERROR:.0f} % in {warnings.frame_ranges(apart)}: one "
        "of the two is wrong there."
        if len(apart)
        else f"In no frame is it more than {100 * warnings.MAX_PRIOR_ERROR:.0f} %."
    )
    limit = np.full(2, warnings.MAX_PRIOR_ERROR)
    lines = [
        plots.Line("difference", frames, error, "s1"),
        plots.Line("warned of above", frames[[0, -1]], limit, "s2 dashed"),
    ]
    chart = plots.line_chart(lines, title="Depth prior against the result", x_label="frame",
                             y_label="Abs Rel")  # fmt: skip
    return page.section("prior", "Depth prior and result", (
        "<p>Mean relative difference of the depth prior from the aligned depth, after one scale "
        f"per frame: {np.nanmedian(error):.3f} in the median frame. {verdict}</p>"
        f'<div class="columns"><figure>{chart}{plots.legend(lines)}</figure></div>'
    ))  # fmt: skip


def _item(sentence: str, finding: warnings.Finding | None) -> str:
    text = html.escape(sentence)
    if finding is None:
        return text
    title = html.escape(finding.title)
    text = f"<b>{title}</b>{text.removeprefix(title)}"
    return text + (f" {_button(finding.frames[0])}" if finding.frames else "")


def _button(frame: int) -> str:
    return f'<button type="button" class="small" data-jump="{frame}">Show frame {frame}</button>'


def _where_in_the_picture(scene: Scene) -> str:
    logarithm = np.zeros(scene.confidence.shape[1:])
    for one in scene.confidence:
        logarithm += np.log(np.clip(np.nan_to_num(one, nan=1.0), 1.0, 1e30))
    mean = np.exp(logarithm / len(scene.confidence))
    low, high = np.percentile(mean, [1, 99])
    text = f"Mean over the video, dark {low:.2g}, bright {high:.2g}."
    stretched = np.exp((np.log(mean) - np.log(low)) / max(np.log(high / low), 1e-6))
    picture = _embedded(preview.colour_confidence(stretched, np.e), f"Map of confidence. {text}")
    return (
        f"<figure><h3>Over the picture</h3>{picture}<figcaption>{text}</figcaption></figure>"
    )  # fmt: skip


def _least(scene: Scene, measured: measures_lib.Measures, low: float) -> str:
    if len(measured.confidence) < 2:
        return ""
    figures = []
    for t in np.sort(np.argsort(measured.confidence, kind="stable")[:LEAST_CONFIDENT]).tolist():
        doubtful = ~(np.asarray(scene.confidence[t]) >= low)
        text = f"frame {t}: {100 * doubtful.mean():.0f} % of the pixels below {low:.3g}"
        picture = _embedded(preview.overlay_mask(scene.colours[t], doubtful), f"Input, {text}")
        figures.append(f"<figure>{picture}<figcaption>{text} {_button(t)}</figcaption></figure>")
    return (
        "<h3>Least confident frames</h3><p>Red: confidence below "
        f'{low:.3g}.</p><div class="thumbnails">{"".join(figures)}</div>'
    )


def _embedded(image: np.ndarray, alt: str) -> str:
    height, width = image.shape[:2]
    size = (THUMBNAIL, max(1, round(height * THUMBNAIL / width)))
    method = cv2.INTER_AREA if width > THUMBNAIL else cv2.INTER_LINEAR
    data = preview.encode_webp(cv2.resize(image, size, interpolation=method))
    return (
        f'<img alt="{html.escape(alt)}" width="{size[0]}" height="{size[1]}" '
        f'src="data:image/webp;base64,{base64.b64encode(data).decode()}">'
    )
