"""The predictor of a run with every confidence made equal, as Align3R's depth evaluation does."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from align3r_jax.config import ReconstructConfig
from align3r_jax.predictors import choose
from align3r_jax.predictors.protocol import Predictor
from align3r_jax.priors.optical_flow import FlowSource
from align3r_jax.structs import DepthPrior, Frames, PairGraph, PairPredictions
from align3r_jax.weights.store import LoadedNetwork

CONFIDENCE = 10.0


class EqualConfidence:
    """What `choose.make_predictor` gives, with confidences c > 1 replaced by 10; c = 1 stays.

    # parity: the weights of all pixels are then ln 10 and all pairs score alike.
    """

    def __init__(self, config: ReconstructConfig, model: LoadedNetwork | None):
        self.name = f"{'flow' if model is None else model.name}, equal confidence"
        self._config, self._model = config, model
        self._notes: list[str] = []
        self._inner: Predictor | None = None

    def prepare(self, frames: Frames, prior: DepthPrior | None, flow: FlowSource | None) -> Any:
        """Chooses the predictor for these inputs and returns what it prepares."""
        self._inner = choose.make_predictor(
            self._config, self._model, prior, flow, self._notes.append
        )
        return self._inner.prepare(frames, prior, flow)

    def predict(self, state: Any, graph: PairGraph) -> PairPredictions:
        """Returns the predictions of the pairs with equal confidences."""
        assert self._inner is not None, "prepare comes first"
        found = self._inner.predict(state, graph)
        return dataclasses.replace(
            found,
            confidence1=_equal(found.confidence1),
            confidence2=_equal(found.confidence2),
        )

    def limits(self, state: Any) -> tuple[str, ...]:
        """Returns the limits of the predictor, and what was done to its confidence."""
        assert self._inner is not None, "prepare comes first"
        return (
            *self._notes,
            *self._inner.limits(state),
            "Every confidence above 1 was set to 10, as the protocol asks.",
        )


def _equal(confidence):
    confidence = np.asarray(confidence)
    return np.where(confidence > 1, np.float32(CONFIDENCE), confidence)
