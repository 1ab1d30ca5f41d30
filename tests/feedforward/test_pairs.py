"""The real-time mode on pairs from the truth: exact, causal, of constant size, one scale."""

import jax
import numpy as np
import pytest

from align3r_jax.config import FeedForwardConfig
from align3r_jax.errors import UserError
from align3r_jax.feedforward import anchor as anchor_lib
from align3r_jax.feedforward import pairs
from align3r_jax.structs import PairPredictions

HEIGHT, WIDTH, FOCAL = 48, 64, 60.0
FRAMES = 12
ADAPTIVE = FeedForwardConfig(motion_masks=False)


def _world():
    """A wavy wall before a camera that walks along it: poses (T, 4, 4), depth (T, H, W)."""
    x, y = np.meshgrid(np.arange(WIDTH) - WIDTH / 2, np.arange(HEIGHT) - HEIGHT / 2)
    ray = np.stack([x / FOCAL, y / FOCAL, np.ones_like(x)], -1)
    poses, depths = [], []
    for t in range(FRAMES):
        angle = 0.03 * np.sin(0.7 * t)
        pose = np.eye(4)
        pose[:3, :3] = [
            [np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]
        ]  # fmt: skip
        pose[:3, 3] = [0.25 * t, 0.02 * t, 0.05 * np.sin(t)]
        direction, depth = ray @ pose[:3, :3].T, np.full(x.shape, 2.0)
        for _ in range(60):  # the wall is z = 2 + 0.3 sin(2 X) cos(1.5 Y) in the world
            point = pose[:3, 3] + direction * depth[..., None]
            wall = 2 + 0.3 * np.sin(2 * point[..., 0]) * np.cos(1.5 * point[..., 1])
            depth = depth + 0.7 * (wall - point[..., 2])
        poses.append(pose)
        depths.append(depth)
    return np.stack(poses), np.stack(depths), ray


POSES, DEPTH, RAY = _world()
POSES = np.linalg.inv(POSES[0]) @ POSES


class TruePairs:
    """decode(a, t): both pairs from the truth, each in a scale of its own, with noise."""

    def __init__(self, noise=0.0, spoil=()):
        self.noise, self.spoil, self.asked = noise, set(spoil), []

    def __call__(self, anchor, frame):
        a, t = int(anchor), int(frame)
        self.asked.append((a, t))
        maps = []
        for i, j in ((a, t), (t, a)):
            rng = np.random.default_rng([i, j])
            scale = np.exp(0.3 * rng.standard_normal())
            cam_from_world = np.linalg.inv(POSES[i])
            for k in (i, j):
                world = RAY * DEPTH[k][..., None] @ POSES[k][:3, :3].T + POSES[k][:3, 3]
                points = world @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
                points = points * (1 + self.noise * rng.standard_normal((HEIGHT, WIDTH, 1)))
                if self.spoil & {i, j} and i != j:
                    points = rng.normal(size=points.shape) + [0, 0, 3]
                maps.append((scale * points).astype(np.float32))
        confidence = np.full((2, HEIGHT, WIDTH), 3.0, np.float32)
        first, second = np.stack(maps[::2]), np.stack(maps[1::2])
        return PairPredictions(first, second, confidence, confidence)


def _run(decode, config, frames=FRAMES):
    state, result = pairs.init(np.int32(0), decode)
    results, states = [jax.device_get(result)], [state]
    for t in range(1, frames):
        state, result = pairs.step(state, np.int32(t), decode, config)
        results.append(jax.device_get(result))
        states.append(state)
    return results, states


@pytest.fixture(scope="module")
def exact():
    return _run(TruePairs(), ADAPTIVE)


def _errors(results):
    """Largest errors of rotation and position over the way, and of depth, after one scale."""
    scale = np.median(DEPTH[0] / results[0].depth)
    turn = max(np.abs(r.world_from_cam[:3, :3] - p[:3, :3]).max() for r, p in zip(results, POSES))
    shift = max(
        np.linalg.norm(scale * r.world_from_cam[:3, 3] - p[:3, 3]) for r, p in zip(results, POSES)
    )
    depth = max(np.abs(scale * r.depth / d - 1).max() for r, d in zip(results, DEPTH))
    return turn, shift / np.linalg.norm(POSES[-1][:3, 3]), depth


def test_exact_pairs_give_exact_cameras_depth_and_focal_over_changing_anchors(exact):
    results, _ = exact
    assert sum(bool(r.is_anchor) for r in results) >= 3  # the way is longer than one view
    assert max(_errors(results)) < 1e-3
    for result in results:
        np.testing.assert_allclose(result.intrinsics[0, 0], FOCAL, rtol=1e-4)
        assert result.good and result.inliers > 0.99


def test_a_frame_is_compared_with_the_anchor_named_and_that_sees_it(exact):
    results, _ = exact
    anchors = [int(r.anchor) for r in results]
    taken = [0] + [t for t, r in enumerate(results) if r.is_anchor and t]
    assert anchors == [max([a for a in taken if a < t], default=0) for t in range(FRAMES)]
    first = next(t for t in taken if t)
    # It took over because too little of it was seen; the frame before was seen well enough.
    assert results[first].overlap < 0.6 <= results[first - 1].overlap


def test_state_does_not_grow(exact):
    _, states = exact
    sizes = {sum(np.asarray(a).nbytes for a in jax.tree.leaves(state)) for state in states}
    kinds = {tuple(a.dtype.name for a in jax.tree.leaves(state)) for state in states[1:]}
    assert len(sizes) == 1 and len(kinds) == 1


def test_results_do_not_depend_on_later_frames(exact):
    few, _ = _run(TruePairs(), ADAPTIVE, frames=5)
    for short, long in zip(few, exact[0]):
        jax.tree.map(np.testing.assert_array_equal, short, long)


def test_noise_of_a_chain_of_anchors_stays_small():
    results, _ = _run(TruePairs(noise=0.005), ADAPTIVE)
    assert len({int(r.anchor) for r in results}) >= 3
    turn, shift, _ = _errors(results)
    assert turn < 0.01 and shift < 0.02
    ratio = np.median(DEPTH[-1] / results[-1].depth) / np.median(DEPTH[0] / results[0].depth)
    assert abs(np.log(ratio)) < 0.01  # the scale was handed on


def test_noise_of_depth_on_a_nearly_flat_wall_does_not_turn_the_camera():
    # Points taken as they are turn it by 0.25 degrees per frame, always to the same side.
    results, _ = _run(TruePairs(noise=0.02), ADAPTIVE)
    turns = [
        np.degrees(np.arcsin((r.world_from_cam[:3, :3].T @ p[:3, :3])[0, 2]))
        for r, p in zip(results, POSES)
    ]
    assert np.abs(turns).max() < 0.05


def test_when_an_anchor_is_replaced():
    seen = {"overlap": 0.5, "inliers": 0.9, "confidence": 0.9, "since": np.int32(4)}
    due = {
        anchor: bool(anchor_lib.is_due(FeedForwardConfig(anchor=anchor), **seen))
        for anchor in ("adaptive", "first", "4", "5")
    }
    assert due == {"adaptive": True, "first": False, "4": True, "5": False}
    for bar in ("inliers", "confidence"):
        assert anchor_lib.is_due(FeedForwardConfig(), **(seen | {"overlap": 1.0, bar: 0.3}))
    assert not anchor_lib.is_due(FeedForwardConfig(), **(seen | {"overlap": 1.0}))
    with pytest.raises(UserError, match="adaptive, first, or a number"):
        FeedForwardConfig(anchor="last")


def test_a_spoiled_frame_is_said_to_be_lost_and_the_next_is_found_again():
    results, _ = _run(TruePairs(spoil=[2]), ADAPTIVE, frames=5)
    assert [bool(r.good) for r in results] == [True, True, False, True, True]
    np.testing.assert_array_equal(results[2].world_from_cam, results[1].world_from_cam)
    assert np.all(results[2].confidence == 1) and int(results[3].anchor) == 1
    assert np.abs(results[4].world_from_cam[:3, :3] - POSES[4][:3, :3]).max() < 1e-3
