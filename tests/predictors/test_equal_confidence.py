"""Align3R's depth evaluation: all confidences alike, everything else as the predictor gave it."""

import dataclasses
from types import SimpleNamespace

import numpy as np

from align3r_jax import pairing
from align3r_jax.config import NetworkConfig, ReconstructConfig
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


def test_confidences_above_one_become_ten():
    predictor = EqualConfidence(Fixed())
    graph = pairing.make_pairs(3, "complete")
    found = predictor.predict(predictor.prepare(None, None, None), graph)
    plain = Fixed().predict("state", graph)
    np.testing.assert_array_equal(found.pointmap1, plain.pointmap1)
    np.testing.assert_array_equal(found.pointmap2, plain.pointmap2)
    above = plain.confidence1 > 1
    np.testing.assert_array_equal(found.confidence1[above], 10)
    np.testing.assert_array_equal(found.confidence1[~above], plain.confidence1[~above])
    np.testing.assert_array_equal(found.confidence2, 1)
    assert found.confidence1.dtype == np.float32 and predictor.name == "fixed, equal confidence"
    limits = predictor.limits("state")
    assert limits[0] == "a limit" and "set to 10" in limits[1]


def test_the_plan_and_the_batch_reach_the_predictor(monkeypatch):
    """What the memory plan decides holds for the predictor inside."""
    seen = {}

    def network(model, batch, dtype, *, frames_kept, reuse, feature_memory):
        seen.update(batch=batch, kept=frames_kept, reuse=reuse, memory=feature_memory)
        return Fixed()

    monkeypatch.setattr(choose, "NetworkPredictor", network)
    settings = NetworkConfig(prior_branch=False)
    model = SimpleNamespace(name="tiny", config=settings)
    config = ReconstructConfig(
        predictor="network", equal_confidence=True, pair_batch=3, feature_reuse="block",
        feature_memory=1000,
    )  # fmt: skip
    found = choose.make_predictor(config, model, None, None, print, frames_kept=7)
    assert isinstance(found, EqualConfidence) and seen == {
        "batch": 3, "kept": 7, "reuse": "block", "memory": 1000,
    }  # fmt: skip
    plain = dataclasses.replace(config, equal_confidence=False)
    assert isinstance(choose.make_predictor(plain, model, None, None, print), Fixed)
