"""The real-time mode without weights on a small rendered world; compiling it takes a while."""

import jax
import numpy as np
import pytest

from align3r_jax import pipeline
from align3r_jax.config import FlowConfig, PairConfig, ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.feedforward import engines, run, tracks, window
from align3r_jax.priors import optical_flow
from align3r_jax.structs import DepthPrior
from tests.predictors import flow_scene

FRAMES = 12
CONFIG = ReconstructConfig(pairs=PairConfig(mode="feedforward"))


def test_flow_is_followed_over_frames_and_starts_again_at_a_new_anchor():
    clip = flow_scene.render(flow_scene.camera_path(4), mover_speed=0)
    tracker = tracks.Tracker(FlowConfig())
    seen = [tracker.advance(image) for image in clip.frames.images[:3]]
    assert not seen[0].past.weight.any() and seen[2].past.weight[:2].any(axis=(1, 2)).all()
    assert not seen[2].past.weight[2].any()
    source = optical_flow.DisFlow(FlowConfig())
    whole = source.directed(clip.frames, np.array([[0, 2], [2, 0]]))
    for flow, expected in ((seen[2].from_anchor, 0), (seen[2].to_anchor, 1)):
        assert np.median(np.linalg.norm(flow - whole.flow[expected], axis=-1)) < 0.1
    np.testing.assert_allclose(seen[2].past.flow[1], whole.flow[1], atol=3, rtol=0.5)
    tracker.set_anchor()
    after = tracker.advance(clip.frames.images[3])
    np.testing.assert_array_equal(after.to_anchor, after.past.flow[0])


def test_flow_from_files_is_refused():
    class Files:
        name = "files:flow"

    with pytest.raises(UserError, match="as it comes"):
        tracks.Tracker(FlowConfig(), Files())


def test_a_window_keeps_frames_spread_over_the_time_since_the_anchor():
    held, add = window.empty(1), jax.jit(window.add)
    weight = np.ones(1, np.float32)
    for since in range(1, 33):
        held = add(
            held, np.full((1, 2), since, np.float32), weight, np.eye(4, dtype=np.float32),
            np.int32(since),
        )  # fmt: skip
    kept = int(held.kept)
    frames = np.asarray(held.targets)[:, 0, 0][np.asarray(held.weight)[:, 0] > 0]
    assert frames[-1] == 32 and len(frames) == kept + 1
    assert (np.diff(frames[:-1]) == int(held.every)).all() and frames[-2] >= 32 - held.every


@pytest.fixture(scope="module")
def clip():
    return flow_scene.render(flow_scene.camera_path(FRAMES))


def _prior(clip):
    rng = np.random.default_rng(1)
    depth = clip.depth * np.exp(0.4 * rng.standard_normal((len(clip.depth), 1, 1)))
    depth = depth.astype(np.float32)
    return DepthPrior(depth, depth, None, "files")


@pytest.mark.slow
def test_cameras_and_depth_with_a_prior_whose_scale_flickers(clip):
    scene = pipeline.reconstruct(clip.frames, prior=_prior(clip), config=CONFIG)
    position, turn = flow_scene.trajectory_error(scene.world_from_cam, clip.world_from_cam)
    assert position < 0.15 and turn < 0.35
    error = flow_scene.depth_error(scene.depth, clip.depth)
    assert error < 0.1 and error < 0.7 * flow_scene.depth_error(_prior(clip).depth, clip.depth)


@pytest.mark.slow
def test_state_is_of_constant_size_and_later_frames_change_nothing(clip):
    prior = _prior(clip)
    lengths = (5, FRAMES)
    results, sizes = {}, set()
    for length in lengths:
        engine = engines.FlowEngine(CONFIG, None)
        results[length] = []
        for index, image in enumerate(clip.frames.images[:length]):
            results[length].append(engine.push(image, run.prior_of_frame(prior, index)))
            sizes.add(sum(np.asarray(a).nbytes for a in jax.tree.leaves(engine._state)))
    assert len(sizes) == 1
    for short, long in zip(*(results[length] for length in lengths)):
        jax.tree.map(np.testing.assert_array_equal, short, long)
