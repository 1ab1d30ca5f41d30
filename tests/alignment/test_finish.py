"""Cleaning of confidences, and what a finished scene holds."""

import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import finish, initialise
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import camera, rigid
from align3r_jax.structs import Frames, WorkingSize
from tests.alignment import recorded, tiny


@pytest.mark.golden
def test_recorded_cleaning(golden_dir):
    scene = np.load(golden_dir / "alignment_scene.npz")
    golden = np.load(golden_dir / "alignment_dust3r.npz")
    frames, height, width = golden["demo_depth"].shape
    graph = recorded.graph(scene["edges"])
    confidence = initialise.frame_confidence(recorded.predictions(scene), graph)
    centre = jnp.broadcast_to(camera.image_centre(height, width), (frames, 2))
    intrinsics = camera.intrinsics_matrix(jnp.asarray(golden["demo_focals"]), centre)
    cleaned = finish.clean_confidence(
        confidence, golden["demo_depth"], intrinsics, golden["demo_cam_to_world"], 0.001
    )
    expected = golden["demo_clean_im_conf"]
    assert (expected == 0).any() and (expected > 0).any()
    # A point may round to the next pixel.
    assert (np.abs(cleaned - expected) > 1e-4).mean() < 1e-3
    np.testing.assert_allclose(confidence[:, ::4, ::4], golden["im_conf"], rtol=1e-5)


def test_cleaning_lowers_only_the_less_sure_floating_points():
    """Three equal cameras: frame 0 floats before the others, where it is less sure than frame 1."""
    depth = jnp.full((3, 4, 6), 2.0).at[0].set(1.0)
    confidence = jnp.full((3, 4, 6), 3.0).at[1, :, :3].set(9.0)
    intrinsics = camera.intrinsics_matrix(jnp.full(3, 5.0), jnp.full((3, 2), 2.0))
    poses = jnp.broadcast_to(jnp.eye(4), (3, 4, 4))
    cleaned = finish.clean_confidence(confidence, depth, intrinsics, poses)
    expected = confidence.at[0, :, :3].set(0.0)
    np.testing.assert_array_equal(cleaned, expected)
    # Turned round, the other cameras see nothing of frame 0.
    behind = poses.at[1:].set(rigid.pose(rigid.exp_so3(jnp.array([0, jnp.pi, 0])), jnp.zeros(3)))
    unchanged = finish.clean_confidence(confidence, depth, intrinsics, behind)
    np.testing.assert_array_equal(unchanged, confidence)


def _result(fixed_world=False):
    _, variables, _, dynamic = tiny.problem()
    confidence = jnp.full(dynamic.shape, 2.0)
    return align_lib.AlignResult(
        variables=variables,
        dynamic_mask=dynamic,
        trace={"total": np.arange(3.0)},
        pair_losses=np.ones(len(tiny.PAIRS)),
        confidence=confidence,
        pairs=tiny.PAIRS,
        fixed_world=fixed_world,
    )


def test_scene():
    size = WorkingSize((tiny.H, tiny.W), (tiny.H, tiny.W), (0, 0), (tiny.H, tiny.W))
    images = np.arange(tiny.T * tiny.H * tiny.W * 3).reshape(tiny.T, tiny.H, tiny.W, 3) % 255
    names = tuple("abcd")
    frames = Frames(images.astype(np.uint8), np.arange(4.0), size, names).check()
    config = AlignmentConfig(shared_focal=False, clean=False)
    result = _result()
    scene = finish.to_scene(result, frames, config, metric=True)
    geometry = variables_lib.decode(result.variables, config, (tiny.H, tiny.W))
    np.testing.assert_allclose(scene.depth, geometry.depth)
    np.testing.assert_allclose(scene.world_from_cam[0], np.eye(4), atol=1e-6)
    moved = rigid.compose(rigid.invert(geometry.world_from_cam[0]), geometry.world_from_cam[2])
    np.testing.assert_allclose(scene.world_from_cam[2], moved, atol=1e-6)
    np.testing.assert_array_equal(scene.colours, frames.images)
    np.testing.assert_array_equal(scene.confidence, 2.0)
    assert scene.metric and scene.names == names and scene.trace["total"].shape == (3,)
    assert all(isinstance(leaf, np.ndarray) for leaf in (scene.depth, scene.intrinsics))
    assert not finish.point_mask(scene, 2.0).any() and finish.point_mask(scene, 1.9).all()
    kept = finish.to_scene(_result(fixed_world=True), frames, config)
    np.testing.assert_allclose(kept.world_from_cam, geometry.world_from_cam, atol=1e-6)


def test_cleaning_judges_what_stands(monkeypatch):
    """What moves keeps its confidence: other frames may well see through where it was."""
    size = WorkingSize((tiny.H, tiny.W), (tiny.H, tiny.W), (0, 0), (tiny.H, tiny.W))
    images = np.zeros((tiny.T, tiny.H, tiny.W, 3), np.uint8)
    frames = Frames(images, np.arange(4.0), size, tuple("abcd")).check()
    monkeypatch.setattr(finish, "clean_confidence", lambda confidence, *_: 0 * confidence)
    config = AlignmentConfig(shared_focal=False, outline_masks=False)
    scene = finish.to_scene(_result(), frames, config)
    assert scene.dynamic_mask.any() and not scene.dynamic_mask.all()
    np.testing.assert_array_equal(scene.confidence, np.where(scene.dynamic_mask, 2.0, 0.0))
