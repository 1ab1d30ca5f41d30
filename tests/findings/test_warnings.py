"""Each warning appears where its cause was put, and none about a good result."""

import dataclasses

import numpy as np
import pytest

from align3r_jax.findings import measures, warnings
from tests.viewer import bumpy_scene

FRAMES = 8


@pytest.fixture(scope="module")
def good():
    return bumpy_scene.make(FRAMES, 48, 64)


@pytest.fixture(scope="module")
def measured(good):
    return measures.measure(good, 3.0 * good.depth)


def _titles(scene, prior=None):
    return [finding.title for finding in warnings.find(scene, prior)]


def _only(scene, prior=None):
    found = warnings.find(scene, prior)
    assert len(found) == 1, found
    return found[0]


def test_a_good_result_has_none(good):
    assert warnings.find(good) == []
    assert warnings.find(good, 3.0 * good.depth[:, ::2, ::2]) == []  # any scale, any resolution


def test_a_camera_that_stays(good):
    poses = np.tile(good.world_from_cam[:1], (FRAMES, 1, 1))
    poses[1:, 0, 3] += 0.001
    still = dataclasses.replace(
        good, world_from_cam=poses, depth=np.tile(good.depth[:1], (FRAMES, 1, 1))
    )
    found = _only(still)
    assert "hardly moves" in found.title and "0.0 pixels" in found.text
    assert warnings.find(still, said=["Low parallax (median 0.1 px): depth is a guess."]) == []
    assert warnings.find(still, said=[found.sentence]) == []


def test_parallax_is_focal_times_path_over_depth(good):
    poses = np.tile(np.eye(4, dtype=np.float32), (FRAMES, 1, 1))
    poses[:, 0, 3] = np.linspace(0, 0.5, FRAMES)
    flat = dataclasses.replace(good, world_from_cam=poses, depth=np.full_like(good.depth, 4.0))
    assert measures.parallax(flat) == pytest.approx(0.9 * 64 * 0.5 / 4.0, rel=1e-5)
    # Sideways by 7.2 px over 7 steps: each neighbour loses 1/64 of the width and a bit.
    np.testing.assert_allclose(measures.overlaps(flat), 1 - 7.2 / 7 / 64, atol=0.02)


def test_neighbours_that_hardly_overlap(good):
    poses = good.world_from_cam.copy()
    angle = np.radians(45)
    turn = np.eye(4)
    turn[0, 0] = turn[2, 2] = np.cos(angle)
    turn[0, 2], turn[2, 0] = np.sin(angle), -np.sin(angle)
    poses[5:] = poses[5:] @ turn.astype(np.float32)
    found = _only(dataclasses.replace(good, world_from_cam=poses))
    assert "share little" in found.title and "frames 4 and 5" in found.text
    assert found.frames == (5,)


def test_overlap_is_the_smaller_of_both_directions(good):
    """Walking far ahead: the later picture lies inside the earlier one, not the other way."""
    poses = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    poses[1, 2, 3] = 2.0
    depth = np.stack([np.full((48, 64), 4.0), np.full((48, 64), 2.0)]).astype(np.float32)
    walk = dataclasses.replace(
        good, depth=depth, world_from_cam=poses, intrinsics=good.intrinsics[:2],
        dynamic_mask=np.zeros((2, 48, 64), bool),
    )  # fmt: skip
    np.testing.assert_allclose(measures.overlaps(walk), [0.25], atol=0.03)


def test_a_prior_that_disagrees_in_some_frames(good):
    prior = good.depth.copy()
    prior[3:6, :, 32:] *= 3
    found = _only(good, prior)
    assert "disagree" in found.title and "frames 3–5" in found.text and found.frames == (3, 4, 5)


def test_an_unstable_focal(good):
    intrinsics = good.intrinsics.copy()
    factor = np.linspace(0.9, 1.15, FRAMES).astype(np.float32)
    intrinsics[:, 0, 0] *= factor
    intrinsics[:, 1, 1] *= factor
    found = _only(dataclasses.replace(good, intrinsics=intrinsics))
    assert "from -11 % to +11 % of its median" in found.text  # 0.9125, 1.1375 of 1.025


def test_a_picture_that_moves(good):
    mask = good.dynamic_mask.copy()
    mask[2:4, :36] = True
    found = _only(dataclasses.replace(good, dynamic_mask=mask))
    assert "moves by itself" in found.title and "frames 2–3" in found.text
    assert "up to 7" in found.text  # 36 of 48 rows and some


def test_low_confidence_here_and_everywhere(good):
    confidence = good.confidence.copy()
    confidence[1] = 1.3
    confidence[6:] = 1.05
    found = _only(dataclasses.replace(good, confidence=confidence))
    assert "in part" in found.title and "frames 1 and 6–7" in found.text
    assert found.frames == (1, 6, 7)
    everywhere = dataclasses.replace(good, confidence=np.full_like(confidence, 1.01))
    assert "nearly everywhere" in _only(everywhere).title


def test_a_hard_cut(good):
    colours = good.colours.copy()
    colours[4:] = 255 - colours[4:]
    found = _only(dataclasses.replace(good, colours=colours))
    assert "hard cut" in found.title and "before frame 4" in found.text


def test_a_fast_pan_is_no_cut(good):
    colours = good.colours.copy()
    colours[::2] = 255 - colours[::2]  # everything changes always
    assert _titles(dataclasses.replace(good, colours=colours)) == []


def test_damaged_numbers_raise_nothing(good):
    bad = dataclasses.replace(
        good, depth=np.full_like(good.depth, np.nan), confidence=np.zeros_like(good.confidence)
    )
    assert _titles(bad, good.depth) == ["Confidence is low nearly everywhere"]


@pytest.mark.parametrize("frames", [1, 2])
def test_very_short_results(frames):
    assert _titles(bumpy_scene.make(frames, 32, 48)) == []


def test_measures_are_the_scenes(good, measured):
    np.testing.assert_allclose(measured.confidence, np.median(good.confidence, axis=(1, 2)))
    np.testing.assert_allclose(measured.moving, good.dynamic_mask.mean((1, 2)))
    np.testing.assert_allclose(measured.focal, 0.9 * 64, rtol=1e-5)
    np.testing.assert_allclose(measured.prior_error, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([4], "frame 4"),
        ([0, 1, 2], "frames 0–2"),
        ([1, 3, 4, 9], "frames 1, 3–4 and 9"),
        (list(range(0, 40, 2)), "frames 0, 2, 4, 6, 8 and 15 more ranges"),
    ],
)
def test_ranges_in_words(frames, words):
    assert warnings.frame_ranges(frames) == words
