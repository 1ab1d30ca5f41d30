"""Pictures of an evaluated sequence: error map, path over truth, delta curve, masks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import cv2
import numpy as np

from align3r_jax.evaluation import depth as depth_metrics
from align3r_jax.evaluation import trajectory
from align3r_jax.evaluation.methods import Prediction
from align3r_jax.evaluation.scores import DepthScores, Truth
from align3r_jax.io import atomic, preview
from align3r_jax.viewer import plots

_SHOWN, _WIDTH, _TOP_ERROR = 5, 240, 0.5
_THRESHOLDS = np.geomspace(1.01, 2.0, 60)


def depth(stem: Path, compared: DepthScores, rule: depth_metrics.DepthProtocol) -> list[str]:
    """Writes STEM_error.png (depth, truth, relative error of some frames) and STEM_delta.svg.

    The error is bright from 50 %; what is not measured is grey. Returns the names of the files.
    """
    chosen = preview.even_indices(len(compared.truth), _SHOWN)
    truth, aligned = compared.truth[chosen], compared.aligned[chosen]
    valid = depth_metrics.valid_pixels(truth, rule)
    scale = preview.inverse_depth_range(np.where(valid, truth, np.nan))
    error = np.abs(aligned - truth) / np.where(valid, truth, 1)
    drawn = preview.colour_confidence(
        np.exp(np.minimum(error, _TOP_ERROR) / _TOP_ERROR), maximum=float(np.e)
    )
    drawn[~valid] = preview.MISSING_COLOUR
    rows = [preview.colour_depth(aligned, scale),
            preview.colour_depth(np.where(valid, truth, np.nan), scale), drawn]  # fmt: skip
    sheet = np.concatenate([preview.strip(row, _WIDTH, gap=4) for row in rows])
    picture = _write(stem, "_error.png", preview.encode_png(sheet))
    svg = plots.line_chart(
        [plots.Line("share of pixels", _THRESHOLDS, delta_curve(compared, rule))],
        title="Share of pixels with max(p/g, g/p) below a threshold",
        x_label="threshold",
        y_label="share of pixels",
    )
    return [picture, *_write_svg(stem, "_delta.svg", svg)]


def delta_curve(compared: DepthScores, rule: depth_metrics.DepthProtocol) -> np.ndarray:
    """Share of valid pixels with max(p/g, g/p) below each of the thresholds from 1.01 to 2."""
    valid = depth_metrics.valid_pixels(compared.truth, rule)
    p, g = compared.aligned[valid], compared.truth[valid].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(p > 0, np.maximum(p / g, g / p), np.inf)
    return np.searchsorted(np.sort(ratio), _THRESHOLDS) / max(ratio.size, 1)


def path(stem: Path, prediction: Prediction, truth: Truth) -> list[str]:
    """Writes STEM_above.svg and STEM_side.svg: the aligned path over the true one, metres."""
    assert prediction.world_from_cam is not None and truth.world_from_cam is not None
    found = trajectory.evaluate(prediction.world_from_cam, truth.world_from_cam, strict=False)
    moved = found.similarity.apply_to_poses(np.asarray(prediction.world_from_cam))
    first = np.linalg.inv(np.asarray(truth.world_from_cam[0], np.float64))
    paths = (("predicted", first @ moved, "s1"), ("truth", first @ truth.world_from_cam, "s2"))
    written = []
    for ending, (x, y), labels in (
        ("_above.svg", (0, 2), ("right [m]", "forward [m]")),
        ("_side.svg", (2, 1), ("forward [m]", "up [m]")),
    ):
        signs = {0: 1, 1: -1, 2: 1}  # y points down
        lines = [
            plots.Line(name, signs[x] * p[:, x, 3], signs[y] * p[:, y, 3], style, ends=True)
            for name, p, style in paths
        ]
        svg = plots.map_chart(
            lines, title="Camera path, predicted over the truth", x_label=labels[0],
            y_label=labels[1],
        )  # fmt: skip
        written += _write_svg(stem, ending, svg, lines)
    return written


def masks(stem: Path, images: np.ndarray, prediction: Prediction, truth: Truth) -> list[str]:
    """Writes STEM_mask.png: predicted and true mask over the first picture (1, H, W, 3)."""
    assert prediction.dynamic_mask is not None and truth.dynamic_mask is not None
    height, width = images.shape[1:3]
    drawn = [
        preview.overlay_mask(
            images[0],
            cv2.resize(
                np.asarray(mask[0], np.uint8), (width, height), interpolation=cv2.INTER_NEAREST
            )
            > 0,
        )
        for mask in (prediction.dynamic_mask, truth.dynamic_mask)
    ]
    sheet = preview.strip(np.stack(drawn), 2 * _WIDTH, gap=4)
    return [_write(stem, "_mask.png", preview.encode_png(sheet))]


def style() -> str:
    """The style sheet of the reports."""
    return resources.files("align3r_jax.viewer").joinpath("assets/report.css").read_text()


def _write_svg(stem: Path, ending: str, svg: str, lines: Sequence[plots.Line] = ()) -> list[str]:
    if not svg:
        return []
    return [_write(stem, ending, plots.standalone(svg, lines).encode())]


def _write(stem: Path, ending: str, content: bytes) -> str:
    file = stem.with_name(stem.name + ending)
    with atomic.told_to_user(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace_file(file, content)
    return file.name
