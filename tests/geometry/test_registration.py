"""Similarities: against the recorded values, against known answers, mirrored and planar sets."""

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from align3r_jax.geometry import registration


@pytest.mark.golden
def test_procrustes_golden(golden_dir):
    parts = np.load(golden_dir / "alignment_parts.npz")
    scale, rotation, translation = registration.weighted_procrustes(
        parts["procrustes_x"], parts["procrustes_y"], parts["procrustes_w"]
    )
    np.testing.assert_allclose(rotation, parts["procrustes_R"], atol=1e-4)
    np.testing.assert_allclose(translation, parts["procrustes_T"], atol=1e-4)
    np.testing.assert_allclose(scale, parts["procrustes_s"], rtol=1e-4)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)


@pytest.mark.golden
def test_align_poses_golden(golden_dir):
    parts = np.load(golden_dir / "alignment_parts.npz")
    scale, rotation, translation = registration.align_poses(parts["align_src"], parts["align_dst"])
    np.testing.assert_allclose(scale, parts["align_s"], rtol=1e-4)
    np.testing.assert_allclose(rotation, parts["align_R"], atol=1e-4)
    np.testing.assert_allclose(translation, parts["align_T"], atol=1e-4)


def test_exact_similarities_are_recovered_in_a_batch():
    rng = np.random.default_rng(1)
    source = rng.normal(size=(4, 3, 50, 3))
    rotation = Rotation.random(12, random_state=1).as_matrix().reshape(4, 3, 3, 3)
    scale = rng.uniform(0.2, 5, (4, 3))
    translation = rng.normal(size=(4, 3, 3))
    target = scale[..., None, None] * np.einsum("abij,abnj->abni", rotation, source)
    target += translation[..., None, :]
    # A few wrong points of weight zero change nothing.
    weights = rng.uniform(0.1, 1, (4, 3, 50))
    weights[..., :7] = 0
    target[..., :7, :] += 100
    with jax.enable_x64(True):
        found = registration.weighted_procrustes(source, target, weights)
    np.testing.assert_allclose(found[0], scale, rtol=1e-12)
    np.testing.assert_allclose(found[1], rotation, atol=1e-12)
    np.testing.assert_allclose(found[2], translation, atol=1e-11)


def test_mirrored_target_gets_the_best_proper_rotation():
    rng = np.random.default_rng(2)
    source = rng.normal(size=(40, 3)) * [3, 2, 1]
    target = source * [1, 1, -1]
    with jax.enable_x64(True):
        scale, rotation, _ = registration.weighted_procrustes(source, target)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-12)
    best = np.sum(np.asarray(rotation) * (target.T @ source))
    tried = Rotation.random(2000, random_state=0).as_matrix()
    assert best >= np.max(np.einsum("kij,ij->k", tried, target.T @ source))
    assert 0 < float(scale) < 1


def test_float32_survives_points_far_from_the_origin():
    rng = np.random.default_rng(3)
    source = (rng.normal(size=(20_000, 3)) + [0, 0, 50]).astype(np.float32)
    rotation = Rotation.from_euler("y", 5, degrees=True).as_matrix()
    target = (1.5 * source @ rotation.T + [1, 2, 3]).astype(np.float32)
    scale, found, _ = registration.weighted_procrustes(source, target)
    np.testing.assert_allclose(scale, 1.5, rtol=1e-4)
    np.testing.assert_allclose(found, rotation, atol=1e-4)


def test_camera_sets_on_a_line_are_aligned_by_their_orientation():
    """Centres on one line leave a rotation about it free; the z axes fix it."""
    world = np.tile(np.eye(4), (4, 1, 1))
    world[:, :3, 3] = np.arange(4)[:, None] * [1.0, 0, 0]
    angles = np.radians([0, 10, 20, 30])[:, None] * [1.0, 0, 0]
    world[:, :3, :3] = Rotation.from_rotvec(angles).as_matrix()
    rotation = Rotation.from_rotvec([0.3, -0.8, 0.5]).as_matrix()
    moved = world.copy()
    moved[:, :3, :3] = rotation @ world[:, :3, :3]
    moved[:, :3, 3] = 2.5 * world[:, :3, 3] @ rotation.T + [3, 1, 2]
    with jax.enable_x64(True):
        scale, found, translation = registration.align_poses(world, moved)
    # The z axes keep their length in both sets, so the scale is only nearly 2.5.
    np.testing.assert_allclose(scale, 2.5, rtol=1e-2)
    np.testing.assert_allclose(found, rotation, atol=1e-9)
    np.testing.assert_allclose(translation, [3, 1, 2], atol=2e-2)
