"""Key frames, clips and their joining: against the recorded runs, and the scale that is carried."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import hierarchical
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.initialise import KeyFramePrior
from align3r_jax.config import AlignmentConfig, PairConfig
from align3r_jax.geometry import rigid
from tests.alignment import recorded

pytestmark = pytest.mark.golden

POSE = AlignmentConfig(
    stale_focal=True,
    flow_use_weight=False,
    motion_min_error_px=0.0,
    motion_mask_updates=0,
    join_rescale=False,
)
DEPTH = AlignmentConfig(
    lr=0.05,
    lr_min=1e-6,
    schedule="cosine",
    shared_focal=False,
    stale_focal=True,
    smoothness_weight=0.0,
    flow_weight=0.0,
    join_rescale=False,
)


class RecordedVideo:
    """What `align_video` asks for, from the recorded scene; keeps the graphs it was asked for."""

    def __init__(self, golden_dir):
        self.scene = dict(np.load(golden_dir / "alignment_hier_scene.npz"))
        self.plan = json.loads((golden_dir / "alignment_hier_plan.json").read_text())
        self.size = int(self.scene["H"]), int(self.scene["W"])
        self.num_frames = int(self.scene["N"])
        self.pairs_asked = []
        self._row = {tuple(pair): k for k, pair in enumerate(self.scene["edges"].tolist())}

    def rows(self, pairs):
        return np.array([self._row[tuple(pair)] for pair in np.asarray(pairs).tolist()])

    def predict(self, graph):
        self.pairs_asked.append(graph.pairs.tolist())
        return recorded.predictions(self.scene, self.rows(graph.pairs))

    def flow(self, graph):
        return recorded.flow(self.scene, graph.pairs, self.rows(graph.pairs))

    def predict_equal_confidence(self, graph):
        """Depth evaluation of the reference: every confidence above 1 counts as 10."""
        predictions = self.predict(graph)
        confidences = {
            name: jnp.where(getattr(predictions, name) > 1, 10.0, getattr(predictions, name))
            for name in ("confidence1", "confidence2")
        }
        return predictions.replace(**confidences)


@pytest.fixture
def video(golden_dir):
    return RecordedVideo(golden_dir)


def _poses_of(trajectory):
    """(T, 4, 4) from rows x y z qw qx qy qz (scalar first, as the reference writes them)."""
    quaternion = jnp.asarray(trajectory[:, [4, 5, 6, 3]], jnp.float32)
    rotation = rigid.matrix_from_quaternion(quaternion)
    return rigid.pose(rotation, jnp.asarray(trajectory[:, :3], jnp.float32))


@pytest.mark.slow
def test_recorded_video_with_flow(golden_dir, video):
    golden = np.load(golden_dir / "alignment_hier_pose.npz")
    config = dataclasses.replace(POSE, iterations=int(golden["niter"]))
    reports = []
    result = hierarchical.align_video(
        video.num_frames,
        predict=video.predict,
        flow_of=video.flow,
        pairs=PairConfig(clip_size=int(video.scene["clip_size"])),
        config=config,
        progress=lambda *report: reports.append(report[:2]),
    )
    assert video.pairs_asked == video.plan["pose_graphs"]
    assert result.pairs.tolist() == sum(video.plan["pose_graphs"], [])
    assert result.pair_losses.shape == (len(result.pairs),)
    geometry = variables_lib.decode(result.variables, config, video.size)
    recorded.assert_cameras_and_depth(
        geometry, golden["depth"], _poses_of(golden["traj_tum"]), golden["intrinsics"][:, 0, 0]
    )
    assert (result.dynamic_mask != golden["dynamic_masks"]).mean() < 1e-3
    runs = len(video.plan["pose_graphs"])
    total = config.iterations * runs
    assert reports[-1] == (total, total)
    losses = result.trace["total"].reshape(runs, -1)[:, [0, -1]]
    expected = np.concatenate([golden["key_loss"][None], golden["clip_loss"]])
    np.testing.assert_allclose(losses, expected, rtol=5e-4)


def _clip_inputs(video, golden, clip, graphs):
    """Predictions, local graph and recorded prior of one clip."""
    frames = np.asarray(video.plan["clips"][clip])
    pairs = np.asarray(video.plan[graphs][clip + 1])
    graph = recorded.graph(pairs - frames[0], len(frames))
    prior = KeyFramePrior(golden["key_cam_to_world"][clip], float(golden["key_focals"][clip]))
    return pairs, graph, prior


@pytest.mark.slow
def test_each_clip_alone_with_flow(golden_dir, video):
    """From the recorded key frames, so that no clip inherits another run's rounding."""
    golden = np.load(golden_dir / "alignment_hier_pose.npz")
    config = dataclasses.replace(POSE, iterations=int(golden["niter"]), optimise_two_frames=True)
    for clip, frames in enumerate(video.plan["clips"]):
        pairs, graph, prior = _clip_inputs(video, golden, clip, "pose_graphs")
        rows = video.rows(pairs)
        result = align_lib.align_graph(
            recorded.predictions(video.scene, rows),
            graph,
            recorded.flow(video.scene, graph.pairs, rows),
            config,
            key_frame_prior=prior,
        )
        geometry = variables_lib.decode(result.variables, config, video.size)
        recorded.assert_cameras_and_depth(
            geometry,
            golden["depth"][frames],
            golden[f"clip{clip}_raw_cam_to_world"],
            golden["intrinsics"][frames, 0, 0],
        )


@pytest.mark.slow
def test_recorded_depth_evaluation(golden_dir, video):
    """Equal confidences, pairs in one direction, high rate: chaotic, so the bars are wide."""
    golden = np.load(golden_dir / "alignment_hier_depth.npz")
    config = dataclasses.replace(DEPTH, iterations=int(golden["niter"]))
    result = hierarchical.align_video(
        video.num_frames,
        predict=video.predict_equal_confidence,
        flow_of=lambda graph: None,
        pairs=PairConfig(clip_size=int(video.scene["clip_size"]), clip_symmetric=False),
        config=config,
    )
    assert video.pairs_asked == video.plan["depth_graphs"]
    geometry = variables_lib.decode(result.variables, config, video.size)
    error = np.abs(np.asarray(geometry.depth) / golden["depth"] - 1)
    assert np.median(error) < recorded.CHAOTIC["median_depth"]
    assert error.max() < recorded.CHAOTIC["depth"]
    np.testing.assert_allclose(geometry.focal, golden["focals"], atol=recorded.CHAOTIC["focal"])
    curves = result.trace["total"].reshape(len(video.plan["depth_graphs"]), -1)
    names = ["key", *(f"clip{c}" for c in range(len(video.plan["clips"])))]
    for curve, name in zip(curves, names, strict=True):
        # A clip starts from the chaotic end of the key frames; each clip alone is tested below.
        start = golden[f"{name}_loss_curve"][0]
        np.testing.assert_allclose(curve[0], start, rtol=1e-3 if name == "key" else 0.1)
        np.testing.assert_allclose(curve[-1], golden[f"{name}_loss_curve"][-1], rtol=1.25e-2)


@pytest.mark.slow
def test_each_clip_alone_in_the_depth_evaluation(golden_dir, video):
    golden = np.load(golden_dir / "alignment_hier_depth.npz")
    config = dataclasses.replace(DEPTH, iterations=int(golden["niter"]))
    for clip, frames in enumerate(video.plan["clips"]):
        pairs, graph, prior = _clip_inputs(video, golden, clip, "depth_graphs")
        predictions = video.predict_equal_confidence(recorded.graph(pairs, video.num_frames))
        result = align_lib.align_graph(predictions, graph, None, config, key_frame_prior=prior)
        start = golden[f"clip{clip}_loss_curve"][0]
        np.testing.assert_allclose(result.trace["total"][0], start, rtol=1e-3)
        geometry = variables_lib.decode(result.variables, config, video.size)
        recorded.assert_cameras_and_depth(
            geometry,
            golden["depth"][frames],
            golden[f"clip{clip}_cam_to_world"],
            golden["focals"][frames],
            bars=recorded.CHAOTIC,
        )


def test_joining_carries_pose_and_scale(video):
    """A clip in a world and scale of its own comes back to where its key frame is."""
    scene, size = video.scene, video.size
    frames = video.plan["clips"][1]
    truth = jnp.asarray(scene["poses"], jnp.float32)
    depth = jnp.asarray(scene["depths"])
    focal = jnp.full(len(frames), float(scene["focal"]))
    keys_at = video.plan["keys"]
    config = AlignmentConfig(normalise_pair_scale=False)

    def coded(depth, poses, focal):
        unit = jnp.ones(1), jnp.eye(3)[None], jnp.zeros((1, 3))
        return variables_lib.encode(depth, poses, focal, *unit, config)

    keys = variables_lib.decode(
        coded(depth[np.array(keys_at)], truth[np.array(keys_at)], focal), config, size
    )
    moved = rigid.pose(rigid.exp_so3(jnp.array([0.1, -0.7, 0.4])), jnp.array([1.0, 2.0, 3.0]))
    scale = 0.37
    shrunk = truth[np.array(frames)].at[:, :3, 3].multiply(scale)
    clip = coded(scale * depth[np.array(frames)], rigid.compose(moved, shrunk), focal)

    joined = variables_lib.decode(hierarchical.join(clip, keys, 1, config), config, size)
    np.testing.assert_allclose(joined.world_from_cam, truth[np.array(frames)], atol=1e-5)
    np.testing.assert_allclose(joined.depth, depth[np.array(frames)], rtol=1e-4)

    plain = dataclasses.replace(config, join_rescale=False)
    joined = variables_lib.decode(hierarchical.join(clip, keys, 1, plain), plain, size)
    np.testing.assert_allclose(joined.world_from_cam[0], truth[frames[0]], atol=1e-5)
    np.testing.assert_allclose(joined.depth, scale * depth[np.array(frames)], rtol=1e-4)


@pytest.mark.slow
def test_the_default_gives_all_clips_one_scale(golden_dir, video):
    pairs = PairConfig(clip_size=int(video.scene["clip_size"]))
    spread = {}
    for rescale in (False, True):
        config = dataclasses.replace(POSE, iterations=100, join_rescale=rescale, joint_iterations=0)
        result = hierarchical.align_video(
            video.num_frames, predict=video.predict, flow_of=video.flow, pairs=pairs, config=config
        )
        ratio = np.exp(np.asarray(result.variables.log_depth)) / video.scene["depths"]
        scales = np.median(ratio.reshape(video.num_frames, -1), axis=-1)
        spread[rescale] = scales.max() / scales.min() - 1
    assert spread[True] < 0.03 and spread[True] < spread[False] / 3


def test_a_short_video_is_one_clip(video):
    asked = []

    def predict(graph):
        asked.append(graph.pairs.tolist())
        raise InterruptedError

    with pytest.raises(InterruptedError):
        hierarchical.align_video(
            4,
            predict=predict,
            flow_of=lambda graph: None,
            pairs=PairConfig(clip_size=10),
            config=POSE,
        )
    assert asked == [[[0, 1], [0, 3], [1, 2], [2, 3], [1, 0], [3, 0], [2, 1], [3, 2]]]


@pytest.mark.slow
def test_the_second_order_solver_lowers_the_loss_of_every_run(golden_dir, video):
    """And progress only rises, whichever solver reports it."""
    pairs = PairConfig(clip_size=int(video.scene["clip_size"]))
    found, reports = {}, []
    for solver in ("adam", "gauss_newton"):
        config = dataclasses.replace(POSE, iterations=100, solver=solver)
        reports.clear()
        found[solver] = hierarchical.align_video(
            video.num_frames, predict=video.predict, flow_of=video.flow, pairs=pairs,
            config=config, progress=lambda *report: reports.append(report[:2]),
        )  # fmt: skip
        done = [iteration for iteration, _ in reports]
        assert done == sorted(done)
        assert reports[-1] == (100 * len(video.plan["pose_graphs"]),) * 2
    adam, second = (result.pair_losses for result in found.values())
    assert not found["gauss_newton"].failed
    assert second.mean() < 1.02 * adam.mean()
