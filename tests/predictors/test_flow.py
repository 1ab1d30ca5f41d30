"""The flow predictor on a rendered clip with a moving object, and on clips that hold no motion."""

import cv2
import numpy as np
import pytest

from align3r_jax import pairing
from align3r_jax.config import FlowConfig, PairConfig
from align3r_jax.errors import UserError
from align3r_jax.predictors.flow import FlowPredictor
from align3r_jax.priors import optical_flow
from align3r_jax.structs import DepthPrior, Frames, WorkingSize
from tests.predictors import flow_scene


def solve(frames: Frames, prior: DepthPrior | None = None):
    return FlowPredictor().prepare(frames, prior, optical_flow.make_source(FlowConfig(), frames))


def as_frames(images: np.ndarray) -> Frames:
    size = images.shape[1:3]
    return Frames(
        images=images,
        times=np.arange(len(images)) / 10,
        size=WorkingSize(original=size, resized=size, crop=(0, 0), working=size),
        names=tuple(str(k) for k in range(len(images))),
    )


def noisy_prior(clip: flow_scene.Clip, seed: int = 5) -> DepthPrior:
    """Scale, contrast and smooth errors that differ from frame to frame."""
    rng = np.random.default_rng(seed)
    depth = []
    for frame in np.log(clip.depth):
        middle = np.median(frame)
        field = cv2.resize(0.12 * rng.normal(size=(4, 4)), frame.shape[::-1])
        contrast = 1 + 0.12 * rng.normal()
        depth.append(np.exp(middle + contrast * (frame - middle) + field + 0.25 * rng.normal()))
    depth = np.stack(depth).astype(np.float32)
    return DepthPrior(native=depth, depth=depth, focal=None, name="noisy")


@pytest.fixture(scope="module")
def clip() -> flow_scene.Clip:
    return flow_scene.render(flow_scene.camera_path(10))


@pytest.fixture(scope="module")
def state(clip):
    return solve(clip.frames)


def test_cameras_and_depth_without_a_prior(clip, state):
    ate, turn = flow_scene.trajectory_error(np.asarray(state.world_from_cam), clip.world_from_cam)
    assert ate < 0.15 and turn < 0.15
    plane = flow_scene.depth_error(np.ones_like(clip.depth), clip.depth)
    assert flow_scene.depth_error(np.asarray(state.depth), clip.depth) < 0.6 * plane
    assert 0.6 < float(state.focal) / flow_scene.FOCAL < 1.6
    np.testing.assert_allclose(state.world_from_cam[0], np.eye(4), atol=1e-6)


def test_what_moves_is_masked(clip, state):
    found = np.asarray(state.dynamic_mask)
    truth = clip.dynamic_mask
    assert (found & truth).sum() / (found | truth).sum() > 0.5
    moving, still = (np.asarray(state.confidence)[mask] for mask in (truth, ~(truth | found)))
    assert np.median(moving) < 0.6 * np.median(still)


def test_depth_improves_on_a_noisy_prior(clip):
    prior = noisy_prior(clip)
    found = solve(clip.frames, prior)
    own = flow_scene.depth_error(prior.depth, clip.depth)
    assert flow_scene.depth_error(np.asarray(found.depth), clip.depth) < 0.6 * own
    path = np.linalg.norm(np.diff(clip.world_from_cam[:, :3, 3], axis=0), axis=1).sum()
    centred = clip.world_from_cam[:, :3, 3] - clip.world_from_cam[:, :3, 3].mean(0)
    ate, _ = flow_scene.trajectory_error(np.asarray(found.world_from_cam), clip.world_from_cam)
    assert ate * np.sqrt((centred**2).sum(1).mean()) < 0.05 * path


def test_pairs_are_cut_from_one_scene(clip, state):
    graph = pairing.make_pairs(clip.frames.num_frames, PairConfig(graph="swin-2-noncyclic"))
    found = FlowPredictor().predict(state, graph).check(graph)
    points1, points2 = np.asarray(found.pointmap1), np.asarray(found.pointmap2)
    k = int(np.argmax(graph.pairs[:, 1] - graph.pairs[:, 0]))
    i, j = graph.pairs[k]
    np.testing.assert_allclose(points1[k, ..., 2], state.depth[i], rtol=1e-5)
    focal = float(state.focal)
    x = points1[k, 10, 20, 0] / points1[k, 10, 20, 2] * focal + flow_scene.WIDTH / 2
    np.testing.assert_allclose(x, 20, atol=1e-3)
    # Points of j seen by i, carried back to j, have j's depth.
    pose = np.asarray(state.world_from_cam, np.float64)
    back = np.linalg.inv(pose[j]) @ pose[i]
    returned = points2[k] @ back[:3, :3].T + back[:3, 3]
    np.testing.assert_allclose(returned[..., 2], state.depth[j], rtol=1e-4)
    assert (np.asarray(found.confidence1) > 1).all() and (np.asarray(found.confidence2) > 1).all()


@pytest.mark.parametrize("kind", ["constant", "standing", "two frames", "noise"])
def test_clips_without_motion_give_finite_results(kind, clip):
    rng = np.random.default_rng(0)
    images = {
        "constant": np.full((4, 64, 96, 3), 90, np.uint8),
        "standing": np.repeat(clip.frames.images[:1], 5, 0),
        "two frames": clip.frames.images[:2],
        "noise": rng.integers(0, 255, (4, 64, 96, 3)).astype(np.uint8),
    }[kind]
    found = solve(as_frames(images))
    for value in (found.depth, found.confidence, found.world_from_cam, found.focal):
        assert np.isfinite(np.asarray(value)).all()
    assert (np.asarray(found.depth) > 0).all()
    said = " ".join(FlowPredictor().limits(found))
    if kind in ("constant", "standing"):
        np.testing.assert_allclose(
            found.world_from_cam, np.tile(np.eye(4), (len(images), 1, 1)), atol=0.01
        )
        assert "Low parallax" in said
    if kind == "noise":
        assert "consistent" in said


def test_a_prior_with_holes_is_filled_and_named(clip):
    prior = noisy_prior(clip)
    depth = prior.depth[:4].copy()
    depth[1] = np.nan
    depth[2, :20] = np.inf
    depth[3, 5, 5] = 0
    frames = as_frames(clip.frames.images[:4])
    focal = np.full(4, flow_scene.FOCAL, np.float32)
    found = solve(frames, DepthPrior(native=depth, depth=depth, focal=focal, name="holes"))
    assert np.isfinite(np.asarray(found.depth)).all()
    assert abs(float(found.focal) / flow_scene.FOCAL - 1) < 0.1
    nothing = np.full_like(depth, np.nan)
    found = solve(frames, DepthPrior(native=nothing, depth=nothing, focal=None, name="nothing"))
    assert "nothing" in " ".join(FlowPredictor().limits(found))


def test_missing_inputs_are_refused(clip):
    with pytest.raises(UserError, match="needs optical flow"):
        FlowPredictor().prepare(clip.frames, None, None)
    with pytest.raises(UserError, match="two frames"):
        solve(as_frames(clip.frames.images[:1]))
