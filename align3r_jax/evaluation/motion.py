"""How well a dynamic mask covers what truly moves by itself."""

from __future__ import annotations

import dataclasses

import numpy as np

from align3r_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class MaskMetrics:
    """iou, precision, recall over all pixels of all frames; mean_frame_iou over the frames in
    which either mask has a pixel. An empty truth with an empty prediction scores 1."""

    iou: float
    precision: float
    recall: float
    mean_frame_iou: float


def evaluate(prediction: np.ndarray, truth: np.ndarray) -> MaskMetrics:
    """IoU = |A and B| / |A or B|. prediction, truth: (T, H, W) bool."""
    prediction, truth = np.asarray(prediction, bool), np.asarray(truth, bool)
    if prediction.shape != truth.shape:
        raise UserError(
            f"Dynamic masks have shapes {prediction.shape} and {truth.shape}: bring them to one "
            "size and match the frames."
        )
    both, either = prediction & truth, prediction | truth
    per_frame = [_ratio(b.sum(), e.sum()) for b, e in zip(both, either) if e.any()]
    return MaskMetrics(
        iou=_ratio(both.sum(), either.sum()),
        precision=_ratio(both.sum(), prediction.sum()),
        recall=_ratio(both.sum(), truth.sum()),
        mean_frame_iou=float(np.mean(per_frame)) if per_frame else 1.0,
    )


def _ratio(part, whole):
    return float(part / whole) if whole > 0 else 1.0
