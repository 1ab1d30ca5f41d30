"""The network's prior input against the recorded preparation and by hand."""

import dataclasses

import numpy as np
import pytest

from align3r_jax.config import NetworkConfig
from align3r_jax.io import preprocess
from align3r_jax.priors import mono_depth, prior_map
from align3r_jax.structs import DepthPrior, Frames

MINMAX = NetworkConfig()
RAY = dataclasses.replace(MINMAX, prior_encoding="ray")


def _prior(native, plan, inverse=False, focal=None) -> DepthPrior:
    count = len(native)
    images = np.zeros((count, *plan.working, 3), np.uint8)
    frames = Frames(images, np.arange(float(count)), plan, tuple(f"f{k}" for k in range(count)))
    return mono_depth.estimate_depth(
        frames,
        np.zeros((count, *plan.original, 3), np.uint8),
        "net",
        models={"net": lambda _: (native, focal, inverse, False)},
    )


def _ramps(shape, count=2) -> np.ndarray:
    y, x = ((np.arange(side) + 0.5) / side for side in shape)
    ramp = 2 + x[None] + 0.5 * y[:, None]
    return np.stack([ramp * (k + 1) for k in range(count)]).astype(np.float32)


@pytest.mark.golden
def test_minmax_matches_the_reference_from_depth_to_network(golden_dir, golden_weights):
    recorded = dict(np.load(golden_dir / "network_preprocess.npz"))
    seed = int(recorded["seed"]) if "seed" in recorded else 0
    tested = 0
    for key in (key for key in recorded if key.endswith("_args")):
        case = key.removesuffix("_args")
        height, width, depth_height, depth_width, size, crop = map(int, recorded[key])
        if (depth_height, depth_width) != (height, width):
            continue  # the reference takes such maps unresized, see `preprocess`
        waves = golden_weights.image(f"pre_depth_{case}", (height, width, 1), seed)
        depth = np.float32(2) + waves[..., 0] * np.float32(1.5)
        plan = preprocess.plan_working_size((height, width), size, crop=bool(crop))
        prior = DepthPrior(depth[None], depth[None], None, "test")
        got = prior_map.prior_maps(prior, MINMAX, plan)
        assert got.shape == (1, *plan.working, 3) and got.dtype == np.float32
        assert np.abs(got[0, ::8, ::8] - recorded[f"{case}_pointmap"]).max() <= 2e-6, case
        tested += 1
    assert tested


def _cubic_weights(size: int, out: int) -> np.ndarray:
    """(out, size) matrix of bicubic interpolation, a = -0.75, pixel edges aligned."""
    matrix = np.zeros((out, size))
    for row in range(out):
        place = (row + 0.5) * size / out - 0.5
        for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            d = abs(place - tap)
            if d <= 1:
                weight = 1.25 * d**3 - 2.25 * d**2 + 1
            else:
                weight = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[row, np.clip(tap, 0, size - 1)] += weight
    return matrix


def test_small_maps_are_brought_to_the_image_by_bicubic_interpolation():
    plan = preprocess.plan_working_size((90, 131), 64)
    native = np.random.default_rng(0).uniform(1, 3, (1, 40, 60)).astype(np.float32)
    full = _cubic_weights(40, 90) @ native[0].astype(np.float64) @ _cubic_weights(60, 131).T
    expected = preprocess.pointmap_to_working(
        preprocess.normalised_pointmap(full.astype(np.float32)), plan
    )
    got = prior_map.prior_maps(_prior(native, plan), MINMAX, plan)
    np.testing.assert_allclose(got[0], expected, atol=3e-6)


def test_minmax_takes_inverse_depth_as_it_is():
    plan = preprocess.plan_working_size((96, 128), 64)
    native = _ramps((96, 128))
    as_depth = prior_map.prior_maps(_prior(native, plan), MINMAX, plan)
    as_inverse = prior_map.prior_maps(_prior(native, plan, inverse=True), MINMAX, plan)
    np.testing.assert_array_equal(as_depth, as_inverse)
    assert as_depth[0, 0, -1, 2] > as_depth[0, 0, 0, 2]  # larger stays larger


@pytest.mark.parametrize("shape", [(96, 128), (48, 64)])
def test_missing_depth_is_zero_and_leaves_the_rest_alone(shape):
    plan = preprocess.plan_working_size((96, 128), 64)
    whole = _ramps(shape)
    holed = whole.copy()
    columns = slice(shape[1] // 2 - shape[1] // 8, shape[1] // 2 + shape[1] // 8)
    holed[0, shape[0] // 4 : shape[0] // 2, columns] = np.nan
    complete = prior_map.prior_maps(_prior(whole, plan), MINMAX, plan)
    patched = prior_map.prior_maps(_prior(holed, plan), MINMAX, plan)
    assert np.isfinite(patched).all()
    np.testing.assert_allclose(patched[1], complete[1], atol=1e-6)
    rows = slice(16, 20)  # well inside of the hole at working size (64 x 48)
    assert (patched[0, rows, 28:36] == 0).all()
    assert patched.min() > -0.01 and patched.max() < 1.01  # no ringing at the edge of the hole
    np.testing.assert_allclose(patched[0, 32:], complete[0, 32:], atol=1e-5)
    np.testing.assert_allclose(patched[0, :, 48:], complete[0, :, 48:], atol=1e-5)


def test_a_frame_without_any_depth_is_zero():
    plan = preprocess.plan_working_size((96, 128), 64)
    nothing = np.full((1, 96, 128), np.nan, np.float32)
    prior = DepthPrior(nothing, np.full((1, *plan.working), np.nan, np.float32), None, "test")
    assert (prior_map.prior_maps(prior, MINMAX, plan) == 0).all()


def test_plane_has_flat_depth_and_straight_axes():
    plan = preprocess.plan_working_size((96, 128), 64)
    plane = np.ones((1, *plan.working), np.float32)
    got = prior_map.prior_maps(DepthPrior(plane, plane, None, "plane"), MINMAX, plan)[0]
    assert np.isfinite(got).all() and (got[..., 2] == 0).all()
    steps = np.diff(got[:, 4:-4, 0], axis=1)
    np.testing.assert_allclose(steps, 1 / 64, rtol=0.02)


def test_ray_points_project_back_onto_their_pixels():
    plan = preprocess.plan_working_size((90, 131), 64)
    native = _ramps((90, 131))
    native[0, 40:50, 60:70] = np.nan
    prior = _prior(native, plan, focal=np.array([100.0, 110.0]))
    points = prior_map.prior_maps(prior, RAY, plan)
    height, width = plan.working
    assert points.shape == (2, height, width, 3) and points.dtype == np.float32
    missing = np.isnan(prior.depth)
    assert missing.any() and (np.isnan(points).all(axis=-1) == missing).all()
    v, u = np.mgrid[:height, :width]
    for frame in range(2):
        known = ~missing[frame]
        x, y, z = points[frame][known].T
        np.testing.assert_allclose(prior.focal[frame] * x / z + width / 2, u[known], atol=1e-3)
        np.testing.assert_allclose(prior.focal[frame] * y / z + height / 2, v[known], atol=1e-3)
        np.testing.assert_allclose(z, prior.depth[frame][known])


@pytest.mark.parametrize("original", [(96, 128), (128, 96)])
def test_ray_without_focal_assumes_sixty_degrees_on_the_long_side(original):
    plan = preprocess.plan_working_size(original, 64)
    points = prior_map.prior_maps(_prior(_ramps(original), plan), RAY, plan)
    corner = points[0, 0, 0]
    np.testing.assert_allclose(corner[0] / corner[2], -plan.working[1] / 2 / (0.85 * 64), rtol=1e-5)
