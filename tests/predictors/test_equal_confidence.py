"""Align3R's depth evaluation: all confidences alike, everything else as the predictor gave it."""

import numpy as np

from align3r_jax import pairing
from align3r_jax.config import ReconstructConfig
from align3r_jax.predictors import choose
from align3r_jax.predictors.equal_confidence import EqualConfidence
from align3r_jax.structs import PairPredictions


class Fixed:
    name = "fixed"

    def prepare(self, frames, prior, flow):
        return "state"

    def predict(self, state, graph):
        assert state == "state"
        shape = (graph.num_pairs, 2, 3)
        points = np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32)
        confidence = np.linspace(0.5, 5, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        return PairPredictions(points, points + 1, confidence, np.ones(shape, np.float32))

    def limits(self, state):
        return ("a limit",)


def test_confidences_above_one_become_ten(monkeypatch):
    def make(config, model, prior, flow, note):
        note("chosen")
        return Fixed()

    monkeypatch.setattr(choose, "make_predictor", make)
    predictor = EqualConfidence(ReconstructConfig(), None)
    graph = pairing.make_pairs(3, "complete")
    found = predictor.predict(predictor.prepare(None, None, None), graph)
    plain = Fixed().predict("state", graph)
    np.testing.assert_array_equal(found.pointmap1, plain.pointmap1)
    np.testing.assert_array_equal(found.pointmap2, plain.pointmap2)
    above = plain.confidence1 > 1
    np.testing.assert_array_equal(found.confidence1[above], 10)
    np.testing.assert_array_equal(found.confidence1[~above], plain.confidence1[~above])
    np.testing.assert_array_equal(found.confidence2, 1)
    assert found.confidence1.dtype == np.float32 and predictor.name == "flow, equal confidence"
    limits = predictor.limits("state")
    assert limits[:2] == ("chosen", "a limit") and "set to 10" in limits[2]
