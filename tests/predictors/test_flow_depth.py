"""Triangulation, the fit of the prior, and depth where there is no parallax."""

import dataclasses

import numpy as np

from align3r_jax.predictors import flow_depth, flow_lattice, flow_motion
from tests.predictors import flow_scene


def test_triangulation_is_exact_and_knows_where_it_is_not():
    truth, obs = flow_scene.exact_problem(6)
    start = np.full_like(truth.log_rho, np.median(truth.log_rho))
    found, variance = flow_depth.triangulate(truth, obs, start, noise_px=0.3)
    assert np.median(np.abs(found - truth.log_rho)) < 0.02
    blind = dataclasses.replace(obs, weight=obs.weight.copy())
    blind.weight[2, :, 7] = 0
    kept, unsure = flow_depth.triangulate(truth, blind, start, noise_px=0.3)
    np.testing.assert_allclose(kept[2, 7], start[2, 7], atol=1e-5)
    assert unsure[2, 7] > 1e3 * np.median(variance)
    # Half the baseline, half as sure (in log depth).
    near = dataclasses.replace(truth, translation=truth.translation / 2)
    near_obs = dataclasses.replace(obs, target=flow_lattice.project(near, obs)[1])
    _, wider = flow_depth.triangulate(near, near_obs, start, noise_px=0.3)
    ratio = np.sqrt(np.median(wider) / np.median(variance))
    assert 1.7 < ratio < 2.4


def test_a_prior_of_wandering_scale_is_brought_to_one_scale():
    truth, obs = flow_scene.exact_problem(6)
    rng = np.random.default_rng(2)
    depth = -truth.log_rho
    offset = 0.3 * rng.normal(size=(6, 1))
    variance = np.full_like(depth, 0.03**2)
    fitted = flow_depth.fit_prior(depth, variance, depth * 0.8 + offset, truth, obs)
    assert fitted.useful
    assert np.median(np.abs(fitted.log_depth - depth)) < 0.03
    holes = depth * 0.8 + offset
    holes[:, ::3] = np.nan
    holes[4] = np.nan
    patched = flow_depth.fit_prior(depth, variance, holes, truth, obs)
    known = np.isfinite(holes)
    assert patched.useful and np.isfinite(patched.log_depth).all()
    assert np.median(np.abs(patched.log_depth - depth)[known]) < 0.03
    useless = rng.normal(size=depth.shape)
    assert not flow_depth.fit_prior(depth, variance, useless, truth, obs).useful


def test_only_a_good_prior_says_where_movers_stand():
    truth, obs = flow_scene.exact_problem(6)
    rng = np.random.default_rng(4)
    # Relief that no plane has: without it a plane would be as good as any prior.
    depth = -truth.log_rho + 0.4 * rng.normal(size=truth.log_rho.shape)
    variance = np.full_like(depth, 0.03**2)
    good, weak = (
        flow_depth.fit_prior(depth, variance, depth + error, truth, obs)
        for error in rng.normal(size=depth.shape) * np.array([0.1, 0.3])[:, None, None]
    )
    assert good.useful and weak.useful
    assert good.knows_movers and not weak.knows_movers
    blind = flow_depth.fit_prior(depth, np.full_like(depth, 9.0), depth + 0.3, truth, obs)
    assert blind.useful and blind.knows_movers  # nothing says otherwise
    assert not flow_depth.fit_prior(depth, variance, None, truth, obs).knows_movers


def test_pairs_hold_the_scale_of_frames_without_parallax():
    truth, obs = flow_scene.exact_problem(5)
    flat = dataclasses.replace(truth, log_rho=np.full_like(truth.log_rho, np.log(0.5)))
    still = dataclasses.replace(flat, translation=np.zeros_like(flat.translation))
    obs = dataclasses.replace(obs, target=flow_lattice.project(still, obs)[1])
    offset = np.array([0.0, 0.4, -0.3, 0.1, 0.2])
    log_depth = -flat.log_rho - offset[:, None]
    known = np.array([1.0, 0, 0, 0, 0])
    found = flow_depth.frame_offsets(log_depth, still, obs, np.zeros(5), known)
    np.testing.assert_allclose(found - found[0], offset, atol=1e-3)


def test_depth_follows_the_measurement_or_the_prior():
    lattice = (8, 10)
    rng = np.random.default_rng(3)
    prior = 0.2 * rng.normal(size=(1, 80))
    fitted = flow_depth.FittedPrior(prior, sigma=0.3, useful=True, knows_movers=True)
    measured = prior + 0.5
    bright = np.zeros((1, *lattice), np.float32)
    sure = flow_depth.regularise(measured, np.full((1, 80), 1e-4), fitted, bright, lattice)
    np.testing.assert_allclose(sure, measured, atol=0.02)
    lost = flow_depth.regularise(measured, np.full((1, 80), 1e6), fitted, bright, lattice)
    np.testing.assert_allclose(lost, prior, atol=0.01)
    # A hole in the measurement takes the prior's relief at its neighbours' scale.
    variance = np.full((1, *lattice), 1e-4)
    variance[0, 3:5, 4:7] = 1e6
    filled = flow_depth.regularise(measured, variance.reshape(1, 80), fitted, bright, lattice)
    np.testing.assert_allclose(filled, measured, atol=0.06)


def test_motion_is_seen_and_noise_is_not():
    truth, obs = flow_scene.exact_problem(6, lattice=(12, 16))
    rng = np.random.default_rng(4)
    obs.target[:] += 0.1 * rng.normal(size=obs.target.shape)
    moving = np.zeros((6, 12, 16), bool)
    moving[:, 4:8, 5:10] = True
    steps = np.abs(obs.neighbour - np.arange(6)[:, None])[..., None, None]
    moved = moving.reshape(6, 1, -1, 1) * steps * np.float32([2.0, -2.0])
    obs = dataclasses.replace(obs, target=(obs.target + moved).astype(np.float32))
    score = flow_motion.motion_score(truth, obs, 0.05**2)
    still = flow_motion.still_cells(score, obs.lattice).reshape(moving.shape)
    found = still == 0
    assert (found & moving).sum() / (found | moving).sum() > 0.75


def test_uncertain_depth_excuses_motion_along_the_epipolar_line():
    truth, obs = flow_scene.exact_problem(2, offsets=(1,))
    wrong = dataclasses.replace(truth, log_rho=truth.log_rho + 0.4)
    sure = flow_motion.motion_score(wrong, obs, 0.01**2)
    unsure = flow_motion.motion_score(wrong, obs, 0.5**2)
    assert np.median(unsure) < 0.1 * np.median(sure)


def test_a_mask_is_drawn_to_the_edges_of_its_image():
    truth = np.zeros((60, 80), bool)
    truth[20:40, 30:55] = True
    image = np.repeat(np.where(truth, 180, 60).astype(np.uint8)[..., None], 3, -1)
    smeared = np.zeros((60, 80), np.float32)
    smeared[17:43, 27:58] = 1
    found = flow_motion.outline(smeared, image, 6)

    def overlap(mask):
        return (mask & truth).sum() / (mask | truth).sum()

    assert overlap(found) > overlap(smeared > 0.5) + 0.1


def test_movers_stand_on_the_ground_below_them():
    lattice = (10, 10)
    ground = np.repeat(np.linspace(2, 1, 10)[:, None], 10, 1)  # nearer towards the bottom
    still = np.ones(lattice)
    still[2:7, 4:6] = 0
    found = flow_motion.stand_movers(ground.reshape(1, -1), still.reshape(1, -1), lattice).reshape(
        lattice
    )
    moved = found[still == 0]
    assert np.ptp(moved[moved < ground[6, 0]]) < 1e-9
    assert ground[8, 0] - 1e-9 <= moved.min() <= ground[6, 0]
    np.testing.assert_array_equal(found[still > 0], ground[still > 0])
