"""The network as a predictor: order, padding, compilations, priors, refinement."""

import dataclasses

import jax
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.networks import align3r
from align3r_jax.networks.frame_features import FrameFeatures
from align3r_jax.predictors import network, network_window
from align3r_jax.predictors.network import NetworkPredictor
from align3r_jax.structs import DepthPrior, Frames, PairGraph, WorkingSize
from align3r_jax.weights.store import LoadedNetwork
from tests.networks import micro

HEIGHT, WIDTH, COUNT = 32, 48, 5
ANCHORED = dataclasses.replace(micro.ALIGN3R, dec_depth=4, prior_encoding="ray", output="anchored")


def _loaded(config, params):
    return LoadedNetwork(config, params, "micro", "0", {})


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    size = (HEIGHT, WIDTH)
    return Frames(
        rng.integers(0, 256, (COUNT, HEIGHT, WIDTH, 3), np.uint8),
        np.arange(COUNT) / 24,
        WorkingSize(size, size, (0, 0), size),
        tuple(f"{k:05d}" for k in range(COUNT)),
    )


@pytest.fixture(scope="module")
def prior():
    depth = np.random.default_rng(1).uniform(1, 4, (COUNT, HEIGHT, WIDTH)).astype(np.float32)
    depth *= np.array([1, 2, 4, 2, 1], np.float32)[:, None, None]
    return DepthPrior(depth, depth, None, "test")


@pytest.fixture(scope="module")
def graph():
    pairs = np.array([[0, 1], [4, 2], [1, 0], [3, 3], [2, 4], [0, 4], [3, 1]], np.int32)
    return PairGraph(pairs, COUNT, symmetric=False, name="test")


def test_predictions_are_those_of_each_pair_alone(frames, prior, graph):
    params = micro.parameters(ANCHORED)
    predictor = NetworkPredictor(_loaded(ANCHORED, params), pair_batch=3, precision="highest")
    state = predictor.prepare(frames, prior)
    predictions = predictor.predict(state, graph)
    assert isinstance(predictions.pointmap1, np.ndarray)
    assert predictions.pointmap1.dtype == np.float32
    assert predictor.limits(state) == ()

    images = (frames.images.astype(np.float32) / 255 - 0.5) / 0.5
    focal = 0.85 * WIDTH
    x = (np.arange(WIDTH) - WIDTH / 2) / focal
    y = (np.arange(HEIGHT) - HEIGHT / 2)[:, None] / focal
    points = np.stack([x * prior.depth, y * prior.depth, prior.depth], -1).astype(np.float32)
    i, j = graph.pairs.T
    expected = micro.run(ANCHORED, params, images[i], images[j], points[i], points[j])
    for name in ("pointmap1", "pointmap2", "confidence1", "confidence2"):
        value = np.asarray(getattr(expected, name))
        np.testing.assert_allclose(
            getattr(predictions, name), value, atol=1e-5 * np.abs(value).max(), err_msg=name
        )

    # Another graph of the same video, and one pair alone: nothing is compiled again.
    one = PairGraph(graph.pairs[1:2], COUNT, symmetric=False, name="one")
    alone = predictor.predict(state, one)
    np.testing.assert_allclose(alone.pointmap2, predictions.pointmap2[1:2], rtol=1e-6)
    assert predictor._encode._cache_size() == 1
    assert predictor._decode._cache_size() == 1


def test_frames_without_prior(frames, prior, graph):
    predictor = NetworkPredictor(_loaded(ANCHORED, micro.parameters(ANCHORED)), pair_batch=4)
    partial = prior.depth.copy()
    partial[[1, 3]] = np.nan
    state = predictor.prepare(frames, dataclasses.replace(prior, depth=partial))
    assert state.has_prior.tolist() == [1, 0, 1, 0, 1]
    (sentence,) = predictor.limits(state)
    assert "2 of 5 frames" in sentence
    assert np.isfinite(predictor.predict(state, graph).pointmap1).all()


def test_prior_and_network_must_fit(frames, prior):
    needs = NetworkPredictor(_loaded(micro.ALIGN3R, {}))
    with pytest.raises(UserError, match="needs a depth prior"):
        needs.prepare(frames, None)
    dust3r = NetworkPredictor(_loaded(dataclasses.replace(micro.ALIGN3R, prior_branch=False), {}))
    with pytest.raises(UserError, match="no prior branch"):
        dust3r.prepare(frames, prior)
    with pytest.raises(UserError, match="has 3 frames, the video 5"):
        needs.prepare(frames, dataclasses.replace(prior, depth=prior.depth[:3]))
    with pytest.raises(UserError, match="pair_batch"):
        NetworkPredictor(_loaded(micro.ALIGN3R, {}), pair_batch=0)
    with pytest.raises(UserError, match="anchored"):
        network.refine_depth(needs, frames, prior)


def test_refinement_by_an_untrained_anchored_network_returns_the_prior(frames, prior):
    """It starts at its prior, in the prior's own scale per frame; holes are filled."""
    params = align3r.init_params(ANCHORED, jax.random.key(0))
    predictor = NetworkPredictor(_loaded(ANCHORED, params))
    depth = prior.depth.copy()
    depth[0, :4] = np.nan
    depth[2] = np.nan
    refined = network.refine_depth(predictor, frames, dataclasses.replace(prior, depth=depth))
    known = np.isfinite(depth)
    np.testing.assert_allclose(refined.depth[known], depth[known], rtol=1e-5)
    np.testing.assert_allclose(refined.depth[0, :4], np.median(depth[0, 4:]), rtol=1e-5)
    assert np.isnan(refined.depth[2]).all()
    assert "micro" in refined.name


def test_features_beyond_the_device_are_streamed_and_order_does_not_matter(frames, prior, graph):
    """Host features, a window on the device, any reuse, results on the device: the same pairs."""
    params = micro.parameters(ANCHORED)
    options = {"precision": "highest", "reuse": "block"}
    whole = NetworkPredictor(_loaded(ANCHORED, params), 1, **options, results="device")
    state = whole.prepare(frames, prior)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    expected = whole.predict(state, graph)
    assert isinstance(expected.pointmap1, jax.Array)
    programs = whole._decode._cache_size()  # predictors of like settings share them

    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    streamed = NetworkPredictor(_loaded(ANCHORED, params), 1, **options, feature_memory=needed - 1)
    streamed._encode, streamed._decode = whole._encode, whole._decode  # compiled once
    on_host = streamed.prepare(frames, prior)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(on_host))
    jax.tree.map(np.testing.assert_array_equal, on_host, state)
    found = streamed.predict(on_host, graph)
    assert isinstance(found.pointmap1, np.ndarray)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # A result taken up again is on the host; it is moved to the device once if it fits.
    resumed = whole.predict(on_host, graph)
    jax.tree.map(np.testing.assert_array_equal, resumed, expected)
    assert whole._moved[0] is on_host
    assert whole._decode._cache_size() == programs


@pytest.mark.parametrize("slots", [8, 12])
def test_a_window_serves_many_pairs(slots):
    """Near neighbours load every frame once, the complete graph about T^2 / slots times."""
    count, size = 40, 2
    features = _numbered(count)
    graphs = {
        "near": [(i, j) for i in range(count) for j in range(count) if 0 < abs(i - j) <= 3],
        "complete": [(i, j) for i in range(count) for j in range(count) if i != j],
    }
    allowed = {"near": count, "complete": 1.3 * count**2 / slots}
    for name, pairs in graphs.items():
        pairs = np.random.default_rng(0).permutation(np.array(pairs))
        order = network_window.order_for_reuse(pairs, slots)
        assert sorted(order) == list(range(len(pairs)))
        steps = [pairs[order[k : k + size]] for k in range(0, len(pairs), size)]
        window = network_window.FeatureWindow(features, [tuple(step.T) for step in steps], slots)
        for number, step in enumerate(steps):
            window.load(number)
            assert set(step.ravel()) <= window._rows.keys()
            assert len(window._rows) <= slots
            window.load(number + 1)
        assert window.loads <= allowed[name], name
    first, second = window.views(len(steps) - 1)
    np.testing.assert_array_equal(first.tokens[:, 0, 0], steps[-1][:, 0])
    np.testing.assert_array_equal(second.tokens[:, 0, 0], steps[-1][:, 1])


def _numbered(count):
    rows = np.arange(count, dtype=np.float32)[:, None, None]
    return FrameFeatures(rows, rows, rows, rows, None, None, None, None, (1, 1))


def test_features_of_a_window_give_the_predictions_of_all(frames, prior, graph):
    """A video whose features are not all kept: the same numbers, few frames in memory."""
    params = micro.parameters(ANCHORED)
    whole = NetworkPredictor(_loaded(ANCHORED, params), pair_batch=3, precision="highest")
    window = NetworkPredictor(_loaded(ANCHORED, params), 3, precision="highest", frames_kept=2)
    window._encode, window._decode = whole._encode, whole._decode  # compiled once
    expected = whole.predict(whole.prepare(frames, prior), graph)
    state = window.prepare(frames, prior)
    assert isinstance(state, network.FrameInputs)
    assert window.limits(state) == ()
    found = window.predict(state, graph)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
    assert len(window._kept) == 2
    part = PairGraph(graph.pairs[:3], COUNT, symmetric=False, name="test")
    again = window.predict(state, part)
    np.testing.assert_allclose(again.pointmap2, expected.pointmap2[:3], atol=2e-5)
