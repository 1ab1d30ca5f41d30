"""Codings: round trip, gauge of the scale, what is frozen, and the recorded parameter point."""

import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.alignment import variables as variables_module
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.geometry import rigid
from align3r_jax.structs import AlignmentVariables
from tests.alignment import recorded

H, W, T, P = 6, 8, 3, 4


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(0)
    rotation = rigid.matrix_from_quaternion(jnp.asarray(rng.normal(size=(T + P, 4)), jnp.float32))
    translation = jnp.asarray(rng.normal(size=(T + P, 3)), jnp.float32)
    return {
        "depth": jnp.asarray(rng.uniform(1, 4, size=(T, H, W)), jnp.float32),
        "world_from_cam": rigid.pose(rotation[:T], translation[:T]),
        "focal": jnp.asarray(rng.uniform(5, 9, size=T), jnp.float32),
        "pair_scale": jnp.asarray(rng.uniform(0.3, 3, size=P), jnp.float32),
        "pair_rotation": rotation[T:],
        "pair_translation": translation[T:],
    }


def test_round_trip(scene):
    config = AlignmentConfig(shared_focal=False)
    centre = jnp.array([[4.5, 2.5]] * T)
    coded = variables_module.encode(**scene, config=config, principal_point=centre)
    geometry = variables_module.decode(coded, config, (H, W))
    np.testing.assert_allclose(geometry.depth, scene["depth"], rtol=1e-5)
    np.testing.assert_allclose(geometry.world_from_cam, scene["world_from_cam"], atol=1e-5)
    np.testing.assert_allclose(geometry.focal, scene["focal"], rtol=1e-5)
    np.testing.assert_allclose(geometry.intrinsics[1, :2, 2], [4.5, 2.5], rtol=1e-6)
    gauge = variables_module.scale_normalisation(coded.pair_log_scale, config)
    np.testing.assert_allclose(
        geometry.pair_matrix,
        gauge * scene["pair_scale"][:, None, None] * scene["pair_rotation"],
        atol=1e-5,
    )
    np.testing.assert_allclose(geometry.pair_offset, gauge * scene["pair_translation"], atol=1e-5)


def test_geometric_mean_of_pair_scales_is_fixed(scene):
    config = AlignmentConfig(base_scale=0.7)
    coded = variables_module.encode(**scene, config=config)
    moved = coded.replace(pair_log_scale=coded.pair_log_scale + jnp.arange(P))
    geometry = variables_module.decode(moved, config, (H, W))
    np.testing.assert_allclose(jnp.exp(jnp.mean(jnp.log(geometry.pair_scale))), 0.7, rtol=1e-5)


def test_shared_focal_is_the_mean(scene):
    coded = variables_module.encode(**scene, config=AlignmentConfig(shared_focal=True))
    assert coded.log_focal.shape == (1,)
    geometry = variables_module.decode(coded, AlignmentConfig(), (H, W))
    np.testing.assert_allclose(geometry.focal, np.full(T, scene["focal"].mean()), rtol=1e-5)


def test_unusable_depth_becomes_one(scene):
    depth = scene["depth"].at[0, 0, :4].set(jnp.array([-1.0, 0.0, jnp.nan, jnp.inf]))
    coded = variables_module.encode(**{**scene, "depth": depth}, config=AlignmentConfig())
    np.testing.assert_array_equal(coded.log_depth[0, 0, :4], 0.0)


def test_known_is_written_and_frozen(scene):
    config = AlignmentConfig()
    known = variables_module.Known(
        world_from_cam=scene["world_from_cam"][::-1], focal=scene["focal"] + 1
    ).check(T, H, W)
    config = variables_module.settings_with_known(config, known)
    assert not config.normalise_pair_scale and not config.shared_focal
    coded = variables_module.encode(**scene, config=config)
    coded = variables_module.with_known(coded, known, config)
    geometry = variables_module.decode(coded, config, (H, W))
    np.testing.assert_allclose(geometry.world_from_cam, known.world_from_cam, atol=1e-5)
    np.testing.assert_allclose(geometry.focal, known.focal, rtol=1e-5)
    free = variables_module.trainable(coded, config, known)
    assert free == AlignmentVariables(
        log_depth=True,
        frame_quaternion=False,
        frame_translation=False,
        log_focal=False,
        principal_point=False,
        pair_quaternion=True,
        pair_translation=True,
        pair_log_scale=True,
        pair_adaptor=False,
    )


def test_known_of_wrong_shape_is_explained(scene):
    with pytest.raises(UserError, match="every frame"):
        variables_module.Known(focal=np.ones(T - 1)).check(T, H, W)
    with pytest.raises(UserError, match="positive"):
        variables_module.Known(focal=np.zeros(T)).check(T, H, W)


@pytest.mark.golden
def test_recorded_point(golden_dir):
    golden = np.load(golden_dir / "alignment_dust3r.npz")
    scene = np.load(golden_dir / "alignment_scene.npz")
    size = (int(scene["H"]), int(scene["W"]))
    point = recorded.variables(golden, "point_", size)
    geometry = variables_module.decode(point, AlignmentConfig(), size)
    matrices = golden["point_pw_matrices"]
    stretch = variables_module.adaptor_scale(point.pair_adaptor, AlignmentConfig())
    np.testing.assert_allclose(stretch, golden["point_adaptors"], rtol=1e-5)
    np.testing.assert_allclose(
        geometry.pair_matrix, matrices[:, :3, :3] * golden["point_adaptors"][:, None, :], atol=1e-5
    )
    np.testing.assert_allclose(geometry.pair_offset, matrices[:, :3, 3], atol=1e-5)
    np.testing.assert_allclose(geometry.world_from_cam, golden["point_cam_to_world"], atol=1e-5)
    np.testing.assert_allclose(geometry.intrinsics, golden["point_intrinsics"], rtol=1e-5)
