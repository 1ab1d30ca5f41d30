"""Masks by region and by outline: exact cases, and outlines against distances by brute force."""

import math

import numpy as np
import pytest

from align3r_jax.evaluation import motion

SHAPE = (60, 80)  # diagonal 100: 0.8 % are one pixel
RADIUS = 1


def _square(shift=0):
    mask = np.zeros(SHAPE, bool)
    mask[20:40, 30 + shift : 50 + shift] = True
    return mask


def _blob(seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    waves = sum(
        a * np.sin(x * u + y * v + p)
        for a, u, v, p in zip(
            rng.normal(size=6), *rng.uniform(0.05, 0.3, (2, 6)), rng.normal(size=6)
        )
    )
    return waves > 0.5


def _brute_force(prediction, truth, radius):
    """F from the distance of every outline pixel to every other."""
    found, expected = (np.argwhere(motion.outline(mask)) for mask in (prediction, truth))
    distance = np.linalg.norm(found[:, None] - expected[None], axis=-1)
    precision = (distance.min(axis=1) <= radius).mean()
    recall = (distance.min(axis=0) <= radius).mean()
    return 2 * precision * recall / (precision + recall)


def test_outlines_are_where_neighbours_differ():
    mask = np.zeros((4, 5), bool)
    mask[1:3, 2:4] = True
    expected = np.zeros((4, 5), bool)
    expected[0, 1:4] = expected[1, 1] = expected[1, 3] = True
    expected[2, 1:4] = True
    np.testing.assert_array_equal(motion.outline(mask), expected)
    np.testing.assert_array_equal(motion.outline(~mask), expected)
    assert not motion.outline(np.ones((4, 5), bool)).any()


def test_a_shift_within_the_tolerance_costs_nothing_and_a_larger_one_does():
    truth = _square()
    scores = [motion.boundary_f(_square(shift), truth) for shift in range(5)]
    assert scores[:2] == [1.0, 1.0]
    assert 1 > scores[2] >= scores[3] > 0
    # Upper and lower edges still overlap, left and right ones no longer count.
    assert scores[3] == pytest.approx(_brute_force(_square(3), truth, RADIUS))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tolerance", (0.008, 0.03))
def test_against_distances_by_brute_force(seed, tolerance):
    prediction, truth = _blob(seed), _blob(seed + 100)
    radius = math.ceil(tolerance * 100)
    found = motion.boundary_f(prediction, truth, tolerance)
    assert 0 < found < 1
    assert found == pytest.approx(_brute_force(prediction, truth, radius), abs=1e-12)
    assert found == motion.boundary_f(truth, prediction, tolerance)


def test_empty_masks():
    nothing, square = np.zeros(SHAPE, bool), _square()
    assert motion.boundary_f(nothing, nothing) == 1
    assert motion.boundary_f(square, nothing) == motion.boundary_f(nothing, square) == 0
    silent = motion.evaluate(np.stack([nothing] * 2), np.stack([nothing] * 2))
    assert silent.mean_frame_iou == silent.mean_boundary == silent.j_and_f == 1


def test_means_are_over_frames_with_a_mask():
    nothing, truth = np.zeros(SHAPE, bool), _square()
    shifted = _square(5)
    found = motion.evaluate(
        np.stack([truth, shifted, nothing, nothing]), np.stack([truth, truth, truth, nothing])
    )
    f = motion.boundary_f(shifted, truth)
    assert found.mean_boundary == pytest.approx((1 + f + 0) / 3)
    assert found.mean_frame_iou == pytest.approx((1 + 15 / 25 + 0) / 3)
    assert found.j_and_f == pytest.approx((found.mean_boundary + found.mean_frame_iou) / 2)
