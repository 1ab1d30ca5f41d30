"""The bundle's derivatives, its minimum, the starts and the windows, on exact observations."""

import dataclasses

import numpy as np
import pytest

from align3r_jax.predictors import flow_bundle, flow_cameras, flow_lattice, flow_normal, flow_start
from align3r_jax.predictors.flow_lattice import Structure
from align3r_jax.predictors.flow_normal import BundleConfig
from tests.predictors import flow_scene

CONFIG = BundleConfig(focal_prior=flow_scene.FOCAL, depth_weight=1e-6, focal_weight=1e-6)


def poses(structure: Structure) -> np.ndarray:
    result = np.tile(np.eye(4), (len(structure.rotation), 1, 1))
    result[:, :3, :3], result[:, :3, 3] = structure.rotation, structure.translation
    return result


def disturbed(truth: Structure, amount: float, focal: float = 1.0) -> Structure:
    rng = np.random.default_rng(1)
    turn = flow_lattice.exp_rotation(amount * 0.02 * rng.normal(size=(len(truth.rotation), 3)))
    return Structure(
        truth.rotation @ turn,
        truth.translation + amount * 0.02 * rng.normal(size=truth.translation.shape),
        truth.log_rho + amount * 0.1 * rng.normal(size=truth.log_rho.shape),
        truth.focal * focal,
    )


def test_the_gradient_is_that_of_the_cost():
    truth, obs = flow_scene.exact_problem(4, offsets=(1, 2))
    start = disturbed(truth, 0.3, focal=1.02)
    prior = truth.log_rho * 0.9
    config = dataclasses.replace(CONFIG, depth_weight=0.1, focal_weight=0.5, scale_px=2.0)
    system = flow_normal.linearise(start, obs, prior, config)
    maps = flow_normal._poses_to_motions(start, obs, system)
    local = np.concatenate(
        [system.gradient[..., :6].reshape(4, -1), system.gradient[:, :, 6].sum(1, keepdims=True)], 1
    )
    local = (np.swapaxes(maps, 1, 2) @ local[..., None])[..., 0]
    gradient = np.zeros((4, 6))
    for i in range(4):
        for place, j in enumerate([i, *obs.neighbour[i]]):
            gradient[j] += local[i, 6 * place : 6 * place + 6]
    total = obs.weight.sum()

    def cost(pose_step, depth_step, focal_step):
        moved = Structure(
            start.rotation @ flow_lattice.exp_rotation(pose_step[:, :3]),
            start.translation + pose_step[:, 3:],
            start.log_rho + depth_step,
            start.focal * np.exp(focal_step),
        )
        return flow_bundle.cost(moved, obs, prior, config) * total / 2

    still, flat = np.zeros((4, 6)), np.zeros_like(start.log_rho)
    step = 2e-3
    for frame, unknown in ((0, 1), (1, 0), (2, 2), (1, 3), (2, 4), (3, 5)):
        nudge = still.copy()
        nudge[frame, unknown] = step
        slope = (cost(nudge, flat, 0) - cost(-nudge, flat, 0)) / (2 * step)
        np.testing.assert_allclose(slope, gradient[frame, unknown], rtol=0.02, atol=1.0)
    nudge = flat.copy()
    nudge[1, 50] = 0.02
    slope = (cost(still, nudge, 0) - cost(still, -nudge, 0)) / 0.04
    np.testing.assert_allclose(slope, system.g[1, 50], rtol=0.03, atol=0.05)
    slope = (cost(still, flat, step) - cost(still, flat, -step)) / (2 * step)
    pull = config.focal_weight * total * np.log(1.02)
    np.testing.assert_allclose(slope, local[:, -1].sum() + pull, rtol=0.02, atol=1.0)


def test_the_bundle_finds_cameras_depth_and_focal():
    truth, obs = flow_scene.exact_problem(7)
    found, cost = flow_bundle.bundle(
        disturbed(truth, 1.0, focal=1.15),
        obs,
        truth.log_rho * 0,
        dataclasses.replace(CONFIG, iterations=40, tolerance=1e-6),
    )
    assert cost < 1e-4
    ate, turn = flow_scene.trajectory_error(poses(found), poses(truth))
    assert ate < 0.02 and turn < 0.02
    assert abs(found.focal / truth.focal - 1) < 0.02
    scaled = found.log_rho - np.median(found.log_rho - truth.log_rho)
    assert np.median(np.abs(scaled - truth.log_rho)) < 0.01
    np.testing.assert_allclose(found.rotation[0], disturbed(truth, 1.0).rotation[0], atol=1e-6)


def test_outliers_do_not_pull_the_cameras():
    truth, obs = flow_scene.exact_problem(6)
    obs.target[:, :, :20] += np.float32([6.0, -4.0])
    config = dataclasses.replace(CONFIG, scale_px=0.25, iterations=40, tolerance=1e-6)
    found, _ = flow_bundle.bundle(disturbed(truth, 0.3), obs, truth.log_rho * 0, config)
    ate, turn = flow_scene.trajectory_error(poses(found), poses(truth))
    assert ate < 0.05 and turn < 0.2


@pytest.mark.parametrize("direction", [(1, 0, 0), (0.3, -0.8, 0.5), (0, 0.1, -1)])
def test_the_scan_finds_the_direction_of_translation(direction):
    rng = np.random.default_rng(0)
    xy = rng.uniform(-60, 60, (150, 2))
    rho = rng.uniform(0.3, 0.7, 150)
    direction = np.array(direction) / np.linalg.norm(direction)
    turn = np.deg2rad([0.5, -0.8, 0.3])
    ray = np.concatenate([xy / 115, np.ones((150, 1))], 1)
    seen = (ray - 0.1 * rho[:, None] * direction) @ flow_lattice.exp_rotation(turn)
    flow = 115 * seen[:, :2] / seen[:, 2:] - xy
    scan = flow_start.directions(xy, flow, np.ones(150), 115.0)
    best = flow_start.local_minima(scan, 3)[0]
    assert scan.translation[best] @ direction > np.cos(np.deg2rad(12))
    assert np.linalg.norm(scan.rotation[best] - turn) < np.deg2rad(0.6)
    assert np.corrcoef(scan.rho[best], rho)[0, 1] > 0.95


def test_growing_from_one_frame_reaches_all():
    truth, obs = flow_scene.exact_problem(6)
    # A smooth relief that all frames share, so that depth can be carried from frame to frame.
    flat = dataclasses.replace(truth, log_rho=np.full_like(truth.log_rho, np.log(0.5)))
    obs = dataclasses.replace(obs, target=flow_lattice.project(flat, obs)[1])
    start = Structure(
        np.tile(truth.rotation[2], (6, 1, 1)),
        np.tile(truth.translation[2], (6, 1)),
        flat.log_rho,
        truth.focal,
    )
    grown = flow_start.grow(start, obs, [2], [0, 1, 3, 4, 5])
    np.testing.assert_allclose(grown.rotation, truth.rotation, atol=0.01)
    np.testing.assert_allclose(grown.translation, truth.translation, atol=0.02)


def test_windows_cover_long_clips_and_overlap():
    for first, last, frames in ((0, 24, 100), (40, 64, 100), (10, 34, 40)):
        done = set(range(first, last))
        for window, known in flow_cameras._windows(first, last, frames):
            assert window.start >= 0 and window.stop <= frames
            shared = set(range(known.start, known.stop))
            assert len(shared) >= 4 and shared <= done
            assert shared <= set(range(window.start, window.stop))
            done |= set(range(window.start, window.stop))
        assert done == set(range(frames))


def test_a_window_is_joined_exactly():
    truth, _ = flow_scene.exact_problem(8)
    turn = flow_lattice.exp_rotation(np.array([0.3, -0.2, 0.5]))
    window, known = slice(3, 8), slice(3, 5)
    part = Structure(
        turn @ truth.rotation[window],
        1.7 * truth.translation[window] @ turn.T + 0.4,
        truth.log_rho[window] - np.log(1.7),
        truth.focal,
    )
    joined = flow_cameras._join(part, truth, window, known)
    np.testing.assert_allclose(joined.rotation, truth.rotation[window], atol=1e-6)
    np.testing.assert_allclose(joined.translation, truth.translation[window], atol=1e-6)
    np.testing.assert_allclose(joined.log_rho, truth.log_rho[window], atol=1e-6)


def test_a_long_clip_is_solved_from_nothing():
    truth, obs = flow_scene.exact_problem(44, offsets=(1, 2, 4, 8), lattice=(16, 20), speed=0.02)
    config = BundleConfig(focal_prior=flow_scene.FOCAL)
    found = flow_cameras.solve(obs, None, [0.8 * flow_scene.FOCAL], config)
    ate, turn = flow_scene.trajectory_error(poses(found), poses(truth))
    assert ate < 0.1 and turn < 0.1
