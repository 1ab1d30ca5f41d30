"""Long videos: clips come into one scale, all frames are refined together, groups are resumed."""

import dataclasses

import numpy as np
import pytest

from align3r_jax import plan, stages
from align3r_jax.alignment import hierarchical, joint
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.config import AlignmentConfig, PairConfig, ReconstructConfig
from align3r_jax.geometry import rigid
from align3r_jax.structs import PairPredictions

T, H, W, FOCAL = 10, 24, 32, 30.0
PAIRS = PairConfig(clip_size=4)
CONFIG = AlignmentConfig(iterations=60, joint_iterations=60, joint_pixels=100, flow_weight=0.0)
CUT = hierarchical.Cut(clips_per_call=3)


class World:
    """A waving wall seen by a camera that moves along it; every pair in a scale of its own."""

    def __init__(self):
        y, x = np.mgrid[:H, :W]
        self.ray = np.stack([(x - W / 2) / FOCAL, (y - H / 2) / FOCAL, np.ones_like(x)], -1)
        time = np.arange(T)
        turn = np.stack([0.02 * np.sin(time), 0.03 * np.cos(time), 0.01 * time], -1)
        self.pose = np.tile(np.eye(4), (T, 1, 1))
        self.pose[:, :3, :3] = np.asarray(rigid.exp_so3(np.float32(turn)))
        self.pose[:, :3, 3] = 0.08 * time[:, None] * np.array([1, 0.2, -0.1])
        wave = 0.3 * np.sin(x / 4 + time[:, None, None] / 3)
        self.depth = 2 + wave + 0.02 * y
        self.asked = 0

    def points(self, frame, camera):
        local = self.ray * self.depth[frame][..., None]
        world = local @ self.pose[frame, :3, :3].T + self.pose[frame, :3, 3]
        return (world - self.pose[camera, :3, 3]) @ self.pose[camera, :3, :3]

    def predict(self, graph):
        self.asked += 1
        maps = ([], [])
        confidence = np.empty((2, graph.num_pairs, H, W), np.float32)
        for k, (i, j) in enumerate(graph.pairs.tolist()):
            rng = np.random.default_rng([i, j])
            scale = np.exp(0.4 * rng.standard_normal())
            for side, frame in enumerate((i, j)):
                noise = 1 + 0.01 * rng.standard_normal((H, W, 1))
                maps[side].append(scale * self.points(frame, i) * noise)
            confidence[:, k] = rng.uniform(3, 8, (2, H, W))
        return PairPredictions(*(np.float32(np.stack(side)) for side in maps), *confidence)


def _align(world, config=CONFIG, **settings):
    return hierarchical.align_video(
        T, predict=world.predict, flow_of=lambda graph: None, pairs=PAIRS, config=config,
        **({"cut": CUT} | settings),
    )  # fmt: skip


def _scales(result, world):
    """(T,) the median ratio of every frame's depth to the truth."""
    ratio = np.exp(np.asarray(result.variables.log_depth)) / world.depth
    return np.median(ratio.reshape(T, -1), axis=1)


def _step_errors(result, world):
    """Mean rotation error (radians) and shift error (share of the step) from frame to frame."""
    geometry = variables_lib.decode(result.variables, CONFIG, (H, W))
    found, true = np.asarray(geometry.world_from_cam, np.float64), world.pose
    found[:, :3, 3] /= np.median(_scales(result, world))
    steps = [np.linalg.inv(p[:-1]) @ p[1:] for p in (found, true)]
    wrong = np.linalg.inv(steps[1]) @ steps[0]
    angle = np.arccos(np.clip((np.trace(wrong[:, :3, :3], axis1=1, axis2=2) - 1) / 2, -1, 1))
    length = np.linalg.norm(steps[1][:, :3, 3], axis=1)
    return angle.mean(), (np.linalg.norm(wrong[:, :3, 3], axis=1) / length).mean()


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def parts():
    """What the stages of the run left, by name."""
    return {}


@pytest.fixture(scope="module")
def refined(world, parts):
    def keep(name, compute):
        parts[name] = compute()
        return parts[name]

    return _align(world, keep=keep)


@pytest.mark.slow
def test_scale_is_carried_and_all_frames_are_refined_together(world, parts, refined):
    assert len(refined.pairs) == plan.joint_pairs(T, 4, ReconstructConfig(pairs=PAIRS))
    keys = parts["key frames"]
    runs = [run for name in parts if name[0] in "kc" for run in parts[name].results]
    apart, joined = (
        hierarchical.joined(runs, keys, dataclasses.replace(CONFIG, join_rescale=rescale))
        for rescale in (False, True)
    )
    jumps = {
        name: np.abs(np.diff(np.log(_scales(result, world)))).max()
        for name, result in (("apart", apart), ("joined", joined), ("refined", refined))
    }
    assert jumps["apart"] > 0.03, "what is to be repaired"
    assert jumps["joined"] < 0.015 and jumps["refined"] < 0.015
    before, after = _step_errors(joined, world), _step_errors(refined, world)
    assert after[0] < 0.8 * before[0] and after[1] < 0.8 * before[1]


@pytest.mark.slow
def test_the_refined_pairs_are_those_of_all_runs_in_one_world(refined):
    expected = 6 + 2 * 8 + 2 + 2 * 8  # three key frames, two clips of 4, one of 2, two borders
    assert refined.pairs.shape == (expected, 2)
    assert len(np.unique(refined.pairs, axis=0)) == expected
    assert refined.pair_losses.shape == (expected,)
    assert refined.variables.pair_quaternion.shape == (expected, 4)
    assert refined.trace["total"].shape == (4 * CONFIG.iterations + CONFIG.joint_iterations,)


@pytest.mark.slow
def test_key_frames_may_be_aligned_on_the_lattice(world, refined):
    result = _align(world, cut=dataclasses.replace(CUT, lattice_keys=True, pairs_at_once=4))
    scales = _scales(result, world)
    assert np.abs(np.diff(np.log(scales))).max() < 0.015
    for found, as_before in zip(_step_errors(result, world), _step_errors(refined, world)):
        assert found < 1.5 * as_before + 1e-4


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, refined):
    """Key frames and every group of clips are kept as soon as they are done."""
    world = World()

    def stop(done, total, loss):
        if done > 4 * CONFIG.iterations:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _align(world, keep=stages.Run(tmp_path, "f").stage, progress=stop)
    asked = world.asked
    run = stages.Run(tmp_path, "f", resume=True)
    result = _align(world, keep=run.stage)
    assert world.asked == asked, "no pair is predicted again"
    resumed = {record["stage"]: record.get("resumed", False) for record in run.records}
    assert resumed == {
        "key frames": True, "clips 0001 to 0003 of 3": True, "joint refinement": False,
    }  # fmt: skip
    np.testing.assert_allclose(result.variables.log_depth, refined.variables.log_depth, atol=1e-5)
    np.testing.assert_array_equal(result.pairs, refined.pairs)


def test_overlapping_fields_are_kept_once():
    fields = np.array([[0, 1], [1, 0]], np.int32)
    predictions = PairPredictions(*(np.ones((2, 8, 8, 3)),) * 2, *(np.ones((2, 8, 8)),) * 2)
    flow = joint.OpticalFlow(fields, np.ones((2, 8, 8, 2)), np.ones((2, 8, 8)))
    part = joint.observe(fields, predictions, flow, 4)
    whole = joint.concatenate([part, part])
    assert part.predictions.pointmap1.shape == (2, 2, 2, 3) and part.image_size == (8, 8)
    assert len(whole.pairs) == 4 and len(whole.flow.pairs) == 2
