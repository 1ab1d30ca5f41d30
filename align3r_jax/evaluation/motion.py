"""How well a dynamic mask covers what truly moves by itself: its region (J) and its outline (F).

J = |A and B| / |A or B|, F = 2 P R / (P + R): P is the share of the prediction's outline that lies
within a tolerance of the true outline, R the share of the true one within it of the prediction's
(Perazzi et al., A benchmark dataset and evaluation methodology for video object segmentation,
CVPR 2016, section 4; the tolerance is 0.8 % of the image diagonal).
"""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from align3r_jax.errors import UserError

TOLERANCE = 0.008  # of the image diagonal


@dataclasses.dataclass(frozen=True)
class MaskMetrics:
    """iou, precision, recall over all pixels of all frames. mean_frame_iou (J) and mean_boundary
    (F): means over the frames in which either mask has a pixel. An empty truth with an empty
    prediction scores 1."""

    iou: float
    precision: float
    recall: float
    mean_frame_iou: float
    mean_boundary: float

    @property
    def j_and_f(self) -> float:
        """The mean of J and F."""
        return (self.mean_frame_iou + self.mean_boundary) / 2


def evaluate(prediction: np.ndarray, truth: np.ndarray) -> MaskMetrics:
    """Compares masks, prediction and truth (T, H, W) bool. Raises UserError if shapes differ."""
    prediction, truth = np.asarray(prediction, bool), np.asarray(truth, bool)
    if prediction.shape != truth.shape:
        raise UserError(
            f"Dynamic masks have shapes {prediction.shape} and {truth.shape}: bring them to one "
            "size and match the frames."
        )
    both, either = prediction & truth, prediction | truth
    shown = either.any(axis=(1, 2))
    per_frame = [_ratio(b.sum(), e.sum()) for b, e in zip(both[shown], either[shown])]
    boundaries = [boundary_f(p, t) for p, t in zip(prediction[shown], truth[shown])]
    return MaskMetrics(
        iou=_ratio(both.sum(), either.sum()),
        precision=_ratio(both.sum(), prediction.sum()),
        recall=_ratio(both.sum(), truth.sum()),
        mean_frame_iou=float(np.mean(per_frame)) if per_frame else 1.0,
        mean_boundary=float(np.mean(boundaries)) if boundaries else 1.0,
    )


def boundary_f(prediction: np.ndarray, truth: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """F of two masks (H, W) bool: 2 P R / (P + R) of their outlines.

    tolerance: share of the image diagonal, rounded up to whole pixels; outline pixels match if
    their centres are no further apart. Without any outline on both sides F is 1, on one side 0.
    """
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    found, expected = outline(prediction), outline(truth)
    near_found, near_expected = (
        cv2.dilate(line.astype(np.uint8), disk) > 0 for line in (found, expected)
    )
    precision = _ratio((found & near_expected).sum(), found.sum())
    recall = _ratio((expected & near_found).sum(), expected.sum())
    total = precision + recall
    return 2 * precision * recall / total if total > 0 else 0.0


def outline(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels that differ from the next one to the right, below, or both.

    A mask and its complement have the same outline; the border of the image is none.
    """
    padded = np.pad(np.asarray(mask, bool), ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    return (here != padded[:-1, 1:]) | (here != padded[1:, :-1]) | (here != padded[1:, 1:])


def _ratio(part, whole):
    return float(part / whole) if whole > 0 else 1.0
