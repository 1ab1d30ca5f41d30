"""Whole alignments of the recorded scene: parity with the reference, and accuracy by default."""

import numpy as np
import pytest

from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.geometry import registration
from align3r_jax.structs import OpticalFlow
from tests.alignment import recorded

pytestmark = [pytest.mark.golden, pytest.mark.usefixtures("optimised")]

PARITY = {"stale_focal": True, "flow_use_weight": False, "motion_min_error_px": 0.0}
NO_FLOW = {"shared_focal": False, "smoothness_weight": 0.0, "flow_weight": 0.0}


@pytest.fixture(scope="module")
def scene(golden_dir):
    return dict(np.load(golden_dir / "alignment_scene.npz"))


@pytest.fixture(scope="module")
def size(scene):
    return int(scene["H"]), int(scene["W"])


def _one_field_per_direction(scene):
    """The flow as a flow source gives it: no field twice."""
    pairs = np.asarray(scene["edges"], np.int32)
    fields = np.moveaxis(scene["flow_ij"], 1, -1).astype(np.float32)
    return OpticalFlow(pairs=pairs, flow=fields, weight=np.ones(fields.shape[:3], np.float32))


def _trajectory_error(world_from_cam, truth):
    """RMSE of the camera centres after the best similarity, in units of the path's spread."""
    source, target = np.asarray(world_from_cam)[:, :3, 3], truth[:, :3, 3]
    scale, rotation, translation = registration.weighted_procrustes(
        source.astype(np.float32), target.astype(np.float32), np.ones(len(source), np.float32)
    )
    moved = scale * source @ np.asarray(rotation).T + translation
    spread = np.sqrt(((target - target.mean(0)) ** 2).sum(-1).mean())
    return float(np.sqrt(((moved - target) ** 2).sum(-1).mean()) / spread)


def test_recorded_run_with_flow_and_masks(golden_dir, scene, size):
    golden = np.load(golden_dir / "alignment_flow.npz")
    curve = golden["demo_loss_curve"]
    config = AlignmentConfig(iterations=len(curve), motion_mask_updates=0, **PARITY)
    graph = recorded.graph(scene["edges"])
    result = align_lib.align_graph(
        recorded.predictions(scene), graph, recorded.flow(scene, graph.pairs), config
    )
    assert (result.dynamic_mask != golden["dynamic_masks"]).mean() < 1e-3
    error = np.abs(result.trace["total"] / curve - 1)
    assert error[:30].max() < 1e-4 and error.max() < 6e-2 and error[-1] < 5e-4
    recorded.assert_final_state(result.variables, config, golden, "demo", size)
    names = ("pointmap_1", "pointmap_2", "smoothness", "flow_12", "flow_21")
    last = [result.trace[name][-1] for name in names]
    # The trace ends before the last step; the recorded terms are after it.
    np.testing.assert_allclose(last, golden["demo_terms"][:5], rtol=5e-3)
    assert result.pair_losses.shape == (graph.num_pairs,)
    losses = golden["demo_terms"][:2].sum() / 2
    np.testing.assert_allclose(np.mean(result.pair_losses), losses, rtol=1e-3)


def test_recorded_run_with_known_cameras(golden_dir, scene, size):
    golden = np.load(golden_dir / "alignment_dust3r.npz")
    curve = golden["known_loss_curve"]
    config = AlignmentConfig(iterations=len(curve), lr_min=1e-6, **NO_FLOW)
    frames = len(scene["poses"])
    known = variables_lib.Known(
        world_from_cam=scene["poses"], focal=np.full(frames, float(scene["focal"]))
    )
    graph = recorded.graph(scene["edges"])
    predictions = recorded.predictions(scene)
    result = align_lib.align_graph(predictions, graph, None, config, known=known)
    np.testing.assert_allclose(result.trace["total"][0], golden["known_init_loss"], rtol=1e-3)
    error = np.abs(result.trace["total"] / curve - 1)
    assert error[:30].max() < 1e-3 and error.max() < 6e-2 and error[-1] < 5e-4
    geometry = variables_lib.decode(
        result.variables, variables_lib.settings_with_known(config, known), size
    )
    depth = np.asarray(geometry.depth)
    ratio = depth[:, ::2, ::2] / golden["known_depth"]
    # Still shrinking after the last iteration: all depths share a rounding of the scale.
    assert np.median(np.abs(ratio - 1)) < 2 * recorded.FINAL["median_depth"]
    assert np.abs(ratio - 1).max() < recorded.FINAL["depth"]
    np.testing.assert_allclose(geometry.world_from_cam, scene["poses"], atol=1e-5)
    assert result.fixed_world
    # The reference's loss falls by shrinking the depth; divided by the pair scale it does not.
    assert np.median(depth / scene["depths"]) < 0.9


@pytest.mark.slow
def test_residuals_over_the_pair_scale_keep_the_depth_of_known_cameras(scene, size):
    # Converged: after 300 iterations the scale is still 2.5 % on its way from the start's 0.95.
    config = AlignmentConfig(lr_min=1e-6, residual_over_scale=True, iterations=1500, **NO_FLOW)
    frames = len(scene["poses"])
    known = variables_lib.Known(
        world_from_cam=scene["poses"], focal=np.full(frames, float(scene["focal"]))
    )
    result = align_lib.align_graph(
        recorded.predictions(scene), recorded.graph(scene["edges"]), None, config, known=known
    )
    depth = np.exp(np.asarray(result.variables.log_depth))
    assert abs(np.median(depth / scene["depths"]) - 1) < 0.02


@pytest.mark.slow
def test_defaults_recover_the_scene(scene, size):
    config = AlignmentConfig()
    result = align_lib.align_graph(
        recorded.predictions(scene),
        recorded.graph(scene["edges"]),
        _one_field_per_direction(scene),
        config,
    )
    geometry = variables_lib.decode(result.variables, config, size)
    static = ~np.asarray(scene["dyn"])
    ratio = np.asarray(geometry.depth) / scene["depths"]
    assert np.mean(np.abs(ratio / np.median(ratio) - 1)[static]) < 0.02
    assert _trajectory_error(geometry.world_from_cam, scene["poses"]) < 0.25
    assert not result.failed
    # The first masks have no absolute scale and mark noise; the scene's own do not.
    found, truth = np.asarray(result.dynamic_mask), np.asarray(scene["dyn"])
    assert (found & truth).sum() / (found | truth).sum() > 0.7


def test_two_frames_are_their_two_view_scene(golden_dir, scene, size):
    golden = np.load(golden_dir / "alignment_flow.npz")
    half = len(scene["edges"]) // 2
    graph = recorded.graph([[0, 1], [1, 0]])
    first = int(np.flatnonzero((scene["edges"][:half] == [0, 1]).all(-1))[0])
    predictions = recorded.predictions(scene, np.array([first, first + half]))
    config = AlignmentConfig(motion_min_error_px=0.0)
    result = align_lib.align_graph(predictions, graph, None, config)
    geometry = variables_lib.decode(result.variables, config, size)
    assert result.trace == {}
    np.testing.assert_allclose(geometry.focal, golden["pair_focals"][first], rtol=1e-4)
    # The two-view scene has the scale of the pair, ours the normalised one.
    depth = np.asarray(geometry.depth)[:, ::4, ::4]
    scale = np.median(depth / golden["pair_depth"][first])
    np.testing.assert_allclose(depth, scale * golden["pair_depth"][first], rtol=1e-3)
    poses = golden["pair_poses"][first].copy()
    poses[:, :3, 3] *= scale
    np.testing.assert_allclose(geometry.world_from_cam, poses, atol=2e-3)


def test_flow_of_another_size_is_refused(scene):
    fields = np.zeros((1, 8, 8, 2), np.float32)
    flow = OpticalFlow(pairs=np.array([[0, 1]]), flow=fields, weight=fields[..., 0])
    with pytest.raises(UserError, match="working size"):
        align_lib.align_graph(
            recorded.predictions(scene), recorded.graph(scene["edges"]), flow, AlignmentConfig()
        )
