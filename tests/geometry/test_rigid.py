"""Group axioms, codings near zero and near pi, and the recorded quaternions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.geometry import rigid


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def random_rotations(count, seed=0):
    quaternion = np.random.default_rng(seed).normal(size=(count, 4))
    return rigid.matrix_from_quaternion(jnp.asarray(quaternion))


def random_poses(count, seed=0):
    translation = np.random.default_rng(seed + 1).normal(size=(count, 3))
    return rigid.pose(random_rotations(count, seed), jnp.asarray(translation))


def test_matrix_from_quaternion_is_a_rotation_and_ignores_length_and_sign():
    quaternion = jnp.asarray(np.random.default_rng(0).normal(size=(50, 4)))
    rotation = rigid.matrix_from_quaternion(quaternion)
    np.testing.assert_allclose(
        rotation @ jnp.swapaxes(rotation, -1, -2),
        np.broadcast_to(np.eye(3), (50, 3, 3)),
        atol=1e-12,
    )
    np.testing.assert_allclose(jnp.linalg.det(rotation), 1.0, atol=1e-12)
    np.testing.assert_allclose(rigid.matrix_from_quaternion(-3 * quaternion), rotation, atol=1e-12)


def test_matrix_from_quaternion_quarter_turn_about_z():
    half = np.sqrt(0.5)
    rotation = rigid.matrix_from_quaternion(jnp.array([0.0, 0.0, half, half]))
    np.testing.assert_allclose(rotation @ jnp.array([1.0, 0, 0]), [0, 1, 0], atol=1e-12)


@pytest.mark.parametrize("axis", range(4))
def test_quaternion_round_trip_at_every_branch(axis):
    quaternion = 0.05 * np.random.default_rng(axis).normal(size=(20, 4))
    quaternion[:, axis] += 1
    quaternion /= np.linalg.norm(quaternion, axis=-1, keepdims=True)
    back = rigid.quaternion_from_matrix(rigid.matrix_from_quaternion(jnp.asarray(quaternion)))
    np.testing.assert_allclose(back, quaternion, atol=1e-12)


def test_exp_log_inverse_from_zero_to_pi():
    axis = np.random.default_rng(2).normal(size=(9, 3))
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    for angle in [0.0, 1e-9, 1e-5, 1e-3, 0.5, 3.0, np.pi - 1e-6]:
        vector = jnp.asarray(angle * axis)
        np.testing.assert_allclose(rigid.log_so3(rigid.exp_so3(vector)), vector, atol=1e-9)


def test_exp_matches_the_matrix_exponential_and_its_gradient_at_zero():
    vector = jnp.array([0.3, -1.1, 0.7])
    expected = jax.scipy.linalg.expm(rigid.hat(vector))
    np.testing.assert_allclose(rigid.exp_so3(vector), expected, atol=1e-12)
    for at_zero in (
        jax.jacrev(rigid.exp_so3)(jnp.zeros(3)),
        jax.jacfwd(rigid.exp_so3)(jnp.zeros(3)),
    ):
        np.testing.assert_allclose(at_zero, jax.jacfwd(rigid.hat)(jnp.zeros(3)), atol=1e-12)


def test_pose_group():
    a, b = random_poses(7, 0), random_poses(7, 5)
    identity = np.broadcast_to(np.eye(4), (7, 4, 4))
    np.testing.assert_allclose(rigid.compose(rigid.invert(a), a), identity, atol=1e-12)
    points = jnp.asarray(np.random.default_rng(3).normal(size=(7, 5, 2, 3)))
    np.testing.assert_allclose(
        rigid.apply(rigid.compose(a, b), points), rigid.apply(a, rigid.apply(b, points)), atol=1e-12
    )
    np.testing.assert_allclose(
        rigid.apply(a[0], points)[1, 2, 1], a[0, :3, :3] @ points[1, 2, 1] + a[0, :3, 3], atol=1e-12
    )


def test_translation_coding():
    translation = jnp.asarray(np.random.default_rng(0).normal(size=(30, 3)) * 10)
    code = rigid.encode_translation(translation)
    np.testing.assert_allclose(rigid.decode_translation(code), translation, rtol=1e-12)
    slope = jax.vmap(jax.grad(rigid.decode_translation))(jnp.array([-2.0, 0.0, 2.0]))
    np.testing.assert_allclose(slope, [np.exp(2), 0.0, np.exp(2)], rtol=1e-12)


@pytest.mark.golden
def test_recorded_codings(golden_dir):
    parts = np.load(golden_dir / "alignment_parts.npz")
    rotation = rigid.matrix_from_quaternion(jnp.asarray(parts["quat_in"], jnp.float32))
    np.testing.assert_allclose(rotation, parts["quat_rotmat"], atol=1e-6)
    back = rigid.quaternion_from_matrix(jnp.asarray(parts["quat_rotmat"]))
    np.testing.assert_allclose(back, parts["quat_back"], atol=1e-6)
    coded = jnp.asarray(parts["trans_in"])
    np.testing.assert_allclose(
        rigid.encode_translation(coded), parts["trans_signed_log1p"], rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(
        rigid.decode_translation(coded), parts["trans_signed_expm1"], rtol=1e-5, atol=1e-7
    )


def test_the_norm_has_no_nan_in_its_gradient_at_zero():
    vectors = jnp.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(rigid.safe_norm(vectors), [5, 0])
    gradient = jax.grad(lambda x: rigid.safe_norm(x).sum())(vectors)
    np.testing.assert_allclose(gradient, [[0.6, 0.8, 0], [0, 0, 0]])
    np.testing.assert_allclose(rigid.safe_norm(jnp.ones((2, 3, 3)), axis=(-2, -1)), [3, 3])
