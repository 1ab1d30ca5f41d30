"""A predictor with every confidence made equal, as Align3R's depth evaluation does."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from align3r_jax.predictors.protocol import Predictor
from align3r_jax.priors.optical_flow import FlowSource
from align3r_jax.structs import DepthPrior, Frames, PairGraph, PairPredictions

CONFIDENCE = 10.0


class EqualConfidence:
    """What another predictor gives, with confidences c > 1 replaced by 10; c <= 1 stays.

    # parity: the weights of all pixels are then ln 10 and all pairs score alike.
    """

    def __init__(self, inner: Predictor):
        self.name = f"{inner.name}, equal confidence"
        self.inner = inner

    def prepare(self, frames: Frames, prior: DepthPrior | None, flow: FlowSource | None) -> Any:
        """Returns what the predictor prepares."""
        return self.inner.prepare(frames, prior, flow)

    def predict(self, state: Any, graph: PairGraph) -> PairPredictions:
        """Returns the predictions of the pairs with equal confidences."""
        found = self.inner.predict(state, graph)
        return dataclasses.replace(
            found,
            confidence1=_equal(found.confidence1),
            confidence2=_equal(found.confidence2),
        )

    def limits(self, state: Any) -> tuple[str, ...]:
        """Returns the limits of the predictor, and what was done to its confidence."""
        return (
            *self.inner.limits(state),
            "Every confidence above 1 was set to 10, as the protocol asks.",
        )


def _equal(confidence):
    confidence = np.asarray(confidence)
    return np.where(confidence > 1, np.float32(CONFIDENCE), confidence)
