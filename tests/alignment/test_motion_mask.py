"""Motion masks: recorded ones bit for bit, and scenes whose moving pixels are known."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.alignment import motion_mask, two_view
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.geometry import camera, warp
from align3r_jax.structs import OpticalFlow
from tests.alignment import recorded

PARITY = AlignmentConfig(motion_min_error_px=0)


def _iou(ours, truth):
    return np.sum(ours & truth) / np.sum(ours | truth)


@pytest.mark.golden
def test_two_view_masks_golden(golden_dir):
    scene = np.load(golden_dir / "alignment_scene.npz")
    golden = np.load(golden_dir / "alignment_flow.npz")
    predictions, graph = recorded.predictions(scene), recorded.graph(scene["edges"])
    half = graph.num_pairs // 2
    # The recorded masks use the flow of the first half of the pairs.
    flow = recorded.flow(scene, graph.pairs[:half], slice(half))
    scenes = two_view.solve(predictions, graph, PARITY)
    cameras = (scenes.intrinsics, scenes.world_from_cam)
    for (a, b), name in (((0, 1), "ij"), ((1, 0), "ji")):
        inputs = [part[:, k] for part in cameras for k in (a, b)]
        ego = np.asarray(warp.ego_flow(scenes.depth[:, a], *inputs))[:, ::4, ::4]
        expected = np.moveaxis(golden[f"pair_ego_flow_{name}"], 1, -1)
        np.testing.assert_allclose(ego, expected, atol=5e-3)
    error, _ = motion_mask.two_view_errors(scenes, flow.flow[:half], flow.flow[half:])
    scaled = motion_mask.normalise_errors(error)[:, ::4, ::4]
    np.testing.assert_allclose(scaled, golden["pair_error_ij"], atol=1e-4)
    masks = motion_mask.from_two_views(predictions, graph, flow, PARITY)
    # Rounding may flip a pixel whose mean error is the threshold itself.
    assert np.mean(masks != golden["dynamic_masks"]) < 5e-4


@pytest.mark.golden
def test_masks_of_clips_golden(golden_dir):
    scene = np.load(golden_dir / "alignment_hier_scene.npz")
    golden = np.load(golden_dir / "alignment_hier_pose.npz")
    plan = json.loads((golden_dir / "alignment_hier_plan.json").read_text())
    row = {tuple(pair): k for k, pair in enumerate(scene["edges"].tolist())}
    for frames, pairs in zip(plan["clips"], plan["pose_graphs"][1:], strict=True):
        graph = recorded.graph(np.array(pairs) - frames[0], len(frames))
        rows = [row[tuple(pair)] for pair in pairs]
        half = graph.num_pairs // 2
        masks = motion_mask.from_two_views(
            recorded.predictions(scene, rows),
            graph,
            recorded.flow(scene, graph.pairs[:half], rows[:half]),
            PARITY,
        )
        assert np.mean(masks != golden["dynamic_masks"][frames]) < 1e-3


@pytest.mark.golden
def test_flow_masks_golden(golden_dir):
    golden = np.load(golden_dir / "flow_masks.npz")
    poses = []
    for k in ("1", "2"):
        pose = np.tile(np.eye(4, dtype=np.float32), (len(golden["T1"]), 1, 1))
        pose[:, :3, :3], pose[:, :3, 3] = golden[f"R{k}"], golden[f"T{k}"]
        poses.append(pose)
    ego = warp.ego_flow(golden["depth1"], golden["K1"], golden["K2"], *poses)
    back = warp.ego_flow(golden["depth2"], golden["K2"], golden["K1"], *poses[::-1])
    np.testing.assert_allclose(ego, golden["ego12"], atol=1e-3)
    np.testing.assert_allclose(back, golden["ego21"], atol=1e-3)
    error = jnp.linalg.norm(ego - golden["est_flow"], axis=-1)
    np.testing.assert_allclose(error, golden["error"], atol=1e-3)
    scaled = motion_mask.normalise_errors(error)
    np.testing.assert_allclose(scaled, golden["error_normalised"], atol=1e-4)
    frames = np.zeros(len(error), np.int32)  # all maps of one frame
    mask = motion_mask.threshold_errors(error, frames, 1, PARITY.motion_threshold)[0]
    assert np.mean(np.asarray(mask) != golden["motion_mask"].astype(bool)) < 1e-3


@pytest.mark.golden
def test_masks_of_the_whole_scene_find_the_sphere(golden_dir):
    scene = np.load(golden_dir / "alignment_scene.npz")
    height, width = int(scene["H"]), int(scene["W"])
    intrinsics = np.asarray(
        camera.intrinsics_matrix(
            np.full(int(scene["N"]), float(scene["focal"]), np.float32),
            camera.image_centre(height, width),
        )
    )
    half = len(scene["edges"]) // 2
    masks = motion_mask.update_from_scene(
        scene["depths"],
        scene["poses"].astype(np.float32),
        intrinsics,
        recorded.flow(scene, scene["edges"][:half], slice(half)),
        AlignmentConfig(),
    )
    assert _iou(masks, scene["dyn"]) > 0.85


def test_an_absolute_limit_keeps_static_scenes_static():
    """The parity rule has no scale: noise of a third of a pixel marks a quarter of the image."""
    rng = np.random.default_rng(0)
    errors = np.linalg.norm(0.3 * rng.normal(size=(1, 60, 80, 2)), axis=-1).astype(np.float32)
    frames = np.zeros(1, np.int32)
    parity = motion_mask.threshold_errors(errors, frames, 1, 0.35)
    assert 0.1 < np.mean(parity) < 0.5
    assert np.mean(motion_mask.threshold_errors(errors, frames, 1, 0.35, 1.0)) < 0.01


def test_constant_errors_and_frames_without_pairs_are_static():
    errors = np.full((1, 4, 5), 3.0, np.float32)
    masks = motion_mask.threshold_errors(errors, np.array([1]), 3, 0.35)
    assert masks.shape == (3, 4, 5) and not np.any(masks)


HEIGHT, WIDTH, FRAMES = 72, 96, 4


def _world(step, object_step, noise, *, depth_error=0.0, seed=0):
    """A wavy wall, a camera that moves `step` sideways per frame, a nearer square that moves.

    object_step: pixels per frame beyond the camera's own motion. Returns depth, poses,
    intrinsics, exact masks and the noisy flow between frames at most two apart.
    """
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    wall = 4 + 0.5 * np.sin(x / 9) + 0.3 * np.cos(y / 7)
    depth = np.tile(wall, (FRAMES, 1, 1)).astype(np.float32)
    masks = np.zeros((FRAMES, HEIGHT, WIDTH), bool)
    masks[:, 20:48, 30:60] = True
    depth[masks] = 2
    poses = np.tile(np.eye(4, dtype=np.float32), (FRAMES, 1, 1))
    poses[:, 0, 3] = step * np.arange(FRAMES)
    intrinsics = np.asarray(
        camera.intrinsics_matrix(
            np.full(FRAMES, 90.0, np.float32), camera.image_centre(HEIGHT, WIDTH)
        )
    )
    pairs = [(i, j) for i in range(FRAMES) for j in range(FRAMES) if 0 < abs(i - j) <= 2]
    fields = []
    for i, j in pairs:
        ego = warp.ego_flow(depth[i], intrinsics[i], intrinsics[j], poses[i], poses[j])
        field = np.array(ego) + noise * rng.normal(size=ego.shape)
        field[masks[i]] += (j - i) * np.array(object_step)
        fields.append(field)
    flow = OpticalFlow(
        pairs=np.array(pairs, np.int32),
        flow=np.array(fields, np.float32),
        weight=np.ones((len(pairs), HEIGHT, WIDTH), np.float32),
    )
    depth = depth * np.exp(depth_error * rng.normal(size=depth.shape)).astype(np.float32)
    return depth, poses, intrinsics, masks, flow


@pytest.mark.parametrize("step", [0.0, 0.05])
def test_small_motion_is_found_and_only_where_it_is(step):
    """Two pixels per frame, with a moving and with a standing camera."""
    depth, poses, intrinsics, truth, flow = _world(step, (0.0, 2.0), 0.2)
    masks = motion_mask.update_from_scene(depth, poses, intrinsics, flow, AlignmentConfig())
    assert _iou(masks, truth) > 0.9


@pytest.mark.parametrize("depth_error", [0.0, 0.1])
def test_static_scenes_have_empty_masks(depth_error):
    """Also with wrong depth, which moves the ego flow by more than a pixel."""
    depth, poses, intrinsics, _, flow = _world(0.2, (0.0, 0.0), 0.2, depth_error=depth_error)
    masks = motion_mask.update_from_scene(depth, poses, intrinsics, flow, AlignmentConfig())
    assert not masks.any()


def test_fast_things_whose_flow_is_never_consistent_are_found():
    depth, poses, intrinsics, truth, flow = _world(0.05, (9.0, 5.0), 0.2)
    sources = flow.pairs[:, 0]
    flow = flow.replace(weight=np.where(truth[sources], 0, flow.weight).astype(np.float32))
    masks = motion_mask.update_from_scene(depth, poses, intrinsics, flow, AlignmentConfig())
    assert _iou(masks, truth) > 0.9


def test_flow_that_bleeds_over_the_boundary_is_cut_back_to_the_depth_edge():
    depth, poses, intrinsics, truth, flow = _world(0.05, (0.0, 4.0), 0.1)
    bled = np.array(flow.flow)
    bled[:, 17:51, 27:63] = np.where(
        truth[0, 17:51, 27:63, None],
        bled[:, 17:51, 27:63],
        bled[:, 17:51, 27:63] + (flow.pairs[:, 1] - flow.pairs[:, 0])[:, None, None, None] * [0, 4],
    )
    masks = motion_mask.update_from_scene(
        depth, poses, intrinsics, flow.replace(flow=bled), AlignmentConfig()
    )
    uncut = np.sum(truth[0]) / (34 * 36)
    assert _iou(masks, truth) > uncut + 0.08


def test_missing_values_and_distant_fields():
    depth, poses, intrinsics, truth, flow = _world(0.05, (0.0, 4.0), 0.1)
    broken = np.array(flow.flow)
    broken[:, 5, 5] = np.nan
    config = AlignmentConfig()
    masks = motion_mask.update_from_scene(
        depth, poses, intrinsics, flow.replace(flow=broken), config
    )
    assert _iou(masks, truth) > 0.9
    # Frames without any field are static.
    kept = (flow.pairs == [0, 2]).all(1) | (flow.pairs == [2, 0]).all(1)
    sparse = OpticalFlow(flow.pairs[kept], flow.flow[kept], flow.weight[kept])
    masks = np.asarray(motion_mask.update_from_scene(depth, poses, intrinsics, sparse, config))
    assert _iou(masks[[0, 2]], truth[[0, 2]]) > 0.9 and not masks[[1, 3]].any()


def test_user_masks():
    assert not motion_mask.from_user(None, 2, 3, 4).any()
    grey = np.zeros((2, 3, 4), np.uint8)
    grey[0, 1, 2], grey[1, 0, 0] = 255, 200
    mask = motion_mask.from_user(grey, 2, 3, 4)
    assert mask[0, 1, 2] and mask.sum() == 1
    np.testing.assert_array_equal(motion_mask.from_user(mask, 2, 3, 4), mask)
    with pytest.raises(UserError, match="one mask for each frame"):
        motion_mask.from_user(grey, 3, 3, 4)
