"""Terms of what a user knows: values by hand, gradients against differences, masks per frame."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from align3r_jax.alignment import objective, variables
from align3r_jax.alignment.solvers import adam
from align3r_jax.alignment.terms import known_cameras, prior_depth
from align3r_jax.config import AlignmentConfig
from align3r_jax.structs import PairGraph
from tests.alignment import tiny

CONFIG = dataclasses.replace(
    tiny.CONFIG, flow_weight=0.0, depth_prior_weight=0.3, known_camera_weight=0.7, iterations=4
)
GRAPH = PairGraph(tiny.PAIRS, tiny.T, False, "tiny")
MASK = np.array([True, False, True, False])


def known_poses(**changes):
    rng = np.random.default_rng(5)
    poses = np.tile(np.eye(4), (tiny.T, 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(0.2 * rng.normal(size=(tiny.T, 3))).as_matrix()
    poses[:, :3, 3] = 0.3 * rng.normal(size=(tiny.T, 3))
    return variables.Known(
        world_from_cam=poses, focal=np.full(tiny.T, 6.0), pose_mask=MASK, intrinsics_mask=~MASK,
        **changes,
    )  # fmt: skip


def soft():
    return known_poses(
        rotation_deviation=np.full(tiny.T, 0.1),
        translation_deviation=np.array([0.1, 0.2, 0.3, 0.4]),
        focal_deviation=np.full(tiny.T, 0.05),
    )


def test_camera_term_by_hand():
    known = soft()
    data = known_cameras.prepare(known, tiny.T, jnp.float32)
    poses = np.array(known.world_from_cam)
    turn = Rotation.from_rotvec([0, 0.1, 0]).as_matrix()  # one deviation
    poses[0, :3, :3] = turn @ poses[0, :3, :3]
    poses[2, :3, 3] += [0, 0.6, 0]  # two deviations
    poses[1, :3, 3] += 9  # not known
    focal = 6 * np.exp([1, 0.05, 1, 0.0])  # frame 1: one deviation; 0 and 2: not known
    value = known_cameras.camera_prior(jnp.float32(poses), jnp.float32(focal), data)
    expected = (2 * (np.sqrt(2) - 1) + np.sqrt(5) - 1) / tiny.T
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    valid = jnp.array([1.0, 1, 0, 0])
    value = known_cameras.camera_prior(jnp.float32(poses), jnp.float32(focal), data, valid)
    np.testing.assert_allclose(value, 2 * (np.sqrt(2) - 1) / 2, rtol=1e-5)
    assert known_cameras.prepare(known_poses(), tiny.T, jnp.float32) is None


def test_prior_term_by_hand():
    log_depth = jnp.log(jnp.array([[2.0, 4, 8, 8], [1, 1, 1, 1]]))
    prior = np.array([[1.0, 2, 4, 1], [np.nan, 3, 3, 0]]).reshape(2, 1, 4)
    data = prior_depth.prepare(prior)
    np.testing.assert_allclose(
        prior_depth.frame_log_scales(log_depth, data), np.log([2, 1 / 3]), rtol=1e-6
    )
    np.testing.assert_allclose(
        prior_depth.shape_error(log_depth, data), np.log(4) / 4 / 2, rtol=1e-6
    )
    ignore = np.zeros((2, 1, 4), bool)
    ignore[0, 0, 3] = True
    assert prior_depth.shape_error(log_depth, prior_depth.prepare(prior, ignore)) < 1e-6
    # A prior whose zero is arbitrary fits after a scale and a shift.
    depth = np.array([[2.0, 4, 8, 10]]).reshape(1, 1, 4)
    shifted = prior_depth.prepare((depth + 3) / 2, depth=depth)
    assert prior_depth.shape_error(jnp.log(jnp.asarray(depth[0])), shifted) < 1e-4
    scale, spread = prior_depth.scale_and_spread(np.ones((3, 1, 2)), np.ones((3, 1, 2)) * 5)
    assert (scale, spread) == (pytest.approx(5), pytest.approx(0, abs=1e-6))


def test_gradients_of_both_terms():
    with jax.enable_x64(True):
        predictions, point, _, _ = tiny.problem()
        rng = np.random.default_rng(3)
        prior = np.exp(0.3 * rng.normal(size=point.log_depth.shape))
        problem = objective.prepare(
            predictions, GRAPH, None, point, None, CONFIG, known=soft(), depth_prior=prior
        )
        assert objective.term_names(problem)[-2:] == ("known_cameras", "depth_prior")

        @jax.jit
        def user_terms(v):
            _, terms = objective.evaluate(v, problem, CONFIG)
            return CONFIG.known_camera_weight * terms["known_cameras"] + (
                CONFIG.depth_prior_weight * terms["depth_prior"]
            )

        gradient = jax.jit(jax.grad(user_terms))(point)
        for name in ("frame_quaternion", "frame_translation", "log_focal", "log_depth"):
            step = rng.normal(size=getattr(point, name).shape)
            if name == "log_depth":
                # The pixel that is the median itself has residual 0, and no derivative.
                change = np.asarray(point.log_depth) - np.log(np.float32(prior))
                step[np.abs(change - np.median(change, axis=(1, 2), keepdims=True)) < 1e-6] = 0

            def at(h, name=name, step=step):
                return user_terms(point.replace(**{name: getattr(point, name) + h * step}))

            slope = (at(1e-6) - at(-1e-6)) / 2e-6
            np.testing.assert_allclose(
                slope, jnp.sum(getattr(gradient, name) * step), rtol=2e-5, atol=1e-7, err_msg=name
            )


def test_what_is_held_in_some_frames_stays_there():
    predictions, point, _, _ = jax.tree.map(np.float32, tiny.problem())
    known = known_poses()
    config = variables.settings_with_known(CONFIG, known)
    start = variables.with_known(jax.tree.map(jnp.asarray, point), known, config)
    problem = objective.prepare(predictions, GRAPH, None, start, None, config, known=known)
    trainable = variables.trainable(start, config, known)
    end = adam.optimise(start, problem, config, trainable).variables
    for name, held in (("frame_quaternion", MASK), ("frame_translation", MASK),
                       ("log_focal", ~MASK)):  # fmt: skip
        before, after = np.asarray(getattr(start, name)), np.asarray(getattr(end, name))
        np.testing.assert_array_equal(after[held], before[held])
        moved = np.abs(after[~held] - before[~held]).reshape(int((~held).sum()), -1)
        assert (moved.max(axis=1) > 1e-3).all(), name
    geometry = variables.decode(end, config, (tiny.H, tiny.W))
    np.testing.assert_allclose(geometry.world_from_cam[MASK], known.world_from_cam[MASK], atol=1e-6)
    np.testing.assert_allclose(geometry.focal[~MASK], 6, rtol=1e-5)


def test_soft_focals_may_be_shared():
    known = dataclasses.replace(soft(), world_from_cam=None, rotation_deviation=None,
                                translation_deviation=None, pose_mask=None)  # fmt: skip
    config = AlignmentConfig()
    assert variables.settings_with_known(config, known).shared_focal
    _, point, _, _ = tiny.problem()
    point = point.replace(log_focal=point.log_focal[:1])
    start = variables.with_known(point, known, config)
    np.testing.assert_allclose(start.log_focal, [20 * np.log(6)], rtol=1e-6)
