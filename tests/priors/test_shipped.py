"""The networks that come with the package: loadable, small, and used only as their gates allow."""

from pathlib import Path

import numpy as np
import pytest

from align3r_jax.config import ReconstructConfig
from align3r_jax.evaluation import depth as depth_metrics
from align3r_jax.evaluation import summary
from align3r_jax.io import video
from align3r_jax.networks import align3r
from align3r_jax.predictors import refine
from align3r_jax.priors import mono_depth, shipped
from align3r_jax.structs import DepthPrior
from align3r_jax.weights import store

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sample():
    frames, _ = video.read_frames(ROOT / "data/samples/room_walk.mp4", max_frames=3, size=320)
    with np.load(ROOT / "data/samples/room_walk.truth.npz") as truth:
        depth = truth["depth"][:3].astype(np.float32)
    return frames, depth


def test_files_are_small_and_the_gates_hold_what_they_say():
    for name in ("small_depth", "align3r_small"):
        folder = Path(store.__file__).parent / "shipped" / name
        assert sum(file.stat().st_size for file in folder.iterdir()) < 16e6
        assert len(store.shipped_checksum(name)) == 64
    assert align3r.parameter_count(store.load("align3r_small").config) <= 8_000_000
    gates = shipped.gates()
    places = [gates["measured"]["procedural"], gates["measured"]["real"]]
    for network, use, baseline in (
        ("small_depth", "as_default_prior", "constant"),
        ("align3r_small", "refine_prior", "noisy_prior"),
    ):
        beats = all(place[network] < place[baseline] for place in places)
        assert gates[network]["use"][use] <= beats, f"{network} is used without having won"


def test_the_default_prior_follows_the_gate():
    said = []
    spec = shipped.prior_spec(ReconstructConfig(), None, said.append)
    expected = "small" if shipped.gates()["small_depth"]["use"]["as_default_prior"] else "plane"
    assert spec == expected and len(said) == 1
    assert shipped.prior_spec(ReconstructConfig(prior="none"), None, said.append) == "none"


def test_small_depth_sees_more_than_a_plane_on_the_sample(sample):
    frames, truth = sample
    prior = mono_depth.estimate_depth(frames, None, "small", models=shipped.mono_models())
    assert prior.depth.shape == truth.shape and (prior.depth > 0).all()
    assert _abs_rel(prior.depth, truth) < _abs_rel(np.ones_like(truth), truth)


def test_refining_improves_a_disturbed_prior(sample):
    frames, truth = sample
    rng = np.random.default_rng(0)
    field = rng.normal(size=(3, 3, 4)).repeat(80, axis=1).repeat(80, axis=2)
    prior_depth = (truth * np.exp(0.15 * field)).astype(np.float32)
    prior_depth[0, :8, :8] = np.nan
    prior = DepthPrior(prior_depth, prior_depth, None, "files")
    refined = refine.with_shipped(frames, prior)
    assert np.isfinite(refined.depth).all(), "holes are filled"
    assert "refined" in refined.name
    known = np.where(np.isfinite(prior_depth), prior_depth, truth)
    assert _abs_rel(refined.depth, truth) < _abs_rel(known, truth)


def _abs_rel(prediction, truth):
    return depth_metrics.evaluate(prediction, truth, summary.ONE_SCALE).metrics["Abs Rel"]
