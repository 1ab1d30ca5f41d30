"""Scores of a sequence and of a set: sizes, crops, holes, disparity, degenerate paths."""

import dataclasses

import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.evaluation import protocols, scores, trajectory
from align3r_jax.evaluation.methods import Prediction
from align3r_jax.structs import WorkingSize

OURS = protocols.get("ours", "video_depth", "sintel")
HEIGHT, WIDTH, FRAMES = 48, 64, 3


@pytest.fixture(scope="module")
def truth():
    """A smooth surface, so that changes of size hardly change it."""
    x, y = np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT))
    depth = np.stack([3 + np.sin(3 * x + k) + y for k in range(FRAMES)]).astype(np.float32)
    return scores.Truth(depth=depth)


def test_scale_and_shift_do_not_matter_and_sizes_may_differ(truth):
    found = scores.depth(Prediction(truth.depth / 3 - 0.2), truth, OURS)
    assert found.scores["Abs Rel"] < 1e-4 and found.scores["coverage"] == 1
    assert found.scores["scale"] == pytest.approx(3, rel=1e-3)
    halves = np.stack([
        d.reshape(HEIGHT // 2, 2, WIDTH // 2, 2).mean((1, 3)) for d in truth.depth
    ])  # fmt: skip
    assert scores.depth(Prediction(halves), truth, OURS).scores["Abs Rel"] < 5e-3


def test_a_crop_is_scored_where_it_looked(truth):
    size = WorkingSize((HEIGHT, WIDTH), (HEIGHT, WIDTH), (8, 16), (32, 32))
    cut = truth.depth[:, 8:40, 16:48]
    found = scores.depth(Prediction(cut, size=size), truth, OURS).scores
    assert found["Abs Rel"] < 1e-4
    assert found["coverage"] == pytest.approx(32 * 32 / (HEIGHT * WIDTH))
    # Scored as if it covered everything, the same depth is wrong.
    assert scores.depth(Prediction(cut), truth, OURS).scores["Abs Rel"] > 0.02


def test_disparity_and_holes(truth):
    inverse = 1 / truth.depth
    found = scores.depth(Prediction(inverse * 2 + 0.1, inverse=True), truth, OURS).scores
    assert found["Abs Rel"] < 1e-3
    crafter = protocols.get("depthcrafter", "video_depth", "sintel")
    assert scores.depth(Prediction(5 * truth.depth), truth, crafter).scores["Abs Rel"] < 1e-3
    holes = truth.depth.copy()
    holes[:, :12] = np.nan
    found = scores.depth(Prediction(holes), truth, OURS).scores
    assert found["Abs Rel"] < 1e-4 and found["coverage"] == pytest.approx(0.75)


def test_single_frames_have_fits_of_their_own(truth):
    single = protocols.get("monst3r", "single_depth", "kitti")
    flicker = truth.depth * np.array([1.0, 2.0, 5.0], np.float32)[:, None, None]
    assert scores.depth(Prediction(flicker), truth, single).scores["Abs Rel"] < 1e-5
    assert scores.depth(Prediction(flicker), truth, OURS).scores["Abs Rel"] > 0.1


def test_averages_weigh_and_leave_out_by_name():
    entries = {
        "a": {"Abs Rel": 0.1, "valid_pixels": 100.0},
        "b": {"Abs Rel": 0.4, "valid_pixels": 300.0},
    }
    average, left_out = scores.average(entries, OURS)
    assert average["Abs Rel"] == pytest.approx(0.325) and not left_out
    plain = dataclasses.replace(OURS, average="sequences")
    assert scores.average(entries, plain)[0]["Abs Rel"] == pytest.approx(0.25)

    rng = np.random.default_rng(0)
    path = trajectory.poses_from_quaternions(rng.normal(size=(6, 3)), rng.normal(size=(6, 4)))
    line = path.copy()
    line[:, :3, 3] = np.arange(6)[:, None] * [1.0, 0, 0]
    pose = protocols.get("ours", "camera_pose", "tum")
    noisy = path.copy()
    noisy[:, :3, 3] += 0.1 * rng.normal(size=(6, 3))
    found = {
        name: scores.camera_pose(Prediction(world_from_cam=noisy), scores.Truth(world_from_cam=t))
        for name, t in (("good", path), ("line", line))
    }
    average, left_out = scores.average(found, pose)
    assert left_out == ["line"] and average["sequences"] == 1
    assert average["ate"] == found["good"]["ate"] > 0 and found["line"]["ate"] is None


def test_masks_count_labelled_frames_only():
    true = np.zeros((3, 8, 12), bool)
    true[:, 2:6, 4:8] = True
    wrong = ~true[2]
    predicted = np.stack([true[0], true[1], wrong])[:, ::2, ::2]
    truth = scores.Truth(dynamic_mask=true, mask_frames=(0, 1))
    found = scores.motion_masks(Prediction(dynamic_mask=predicted), truth)
    assert found["J"] == found["F"] == found["J&F"] == 1 and found["frames"] == 2
    everything = scores.Truth(dynamic_mask=true)
    assert scores.motion_masks(Prediction(dynamic_mask=predicted), everything)["J"] < 0.7


def test_what_is_missing_is_named(truth):
    with pytest.raises(UserError, match="no predicted depth"):
        scores.depth(Prediction(), truth, OURS)
    with pytest.raises(UserError, match="2 predicted depth maps for 3"):
        scores.depth(Prediction(truth.depth[:2]), truth, OURS)
    with pytest.raises(UserError, match="no true cameras"):
        scores.camera_pose(Prediction(world_from_cam=np.eye(4)[None]), truth)
