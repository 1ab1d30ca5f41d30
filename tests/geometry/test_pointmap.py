"""Point maps: validity, change of frame, scale."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation

from align3r_jax.geometry import pointmap


def test_validity():
    points = np.zeros((2, 3, 3), np.float32)
    points[0, 0, 1] = np.nan
    points[1, 2, 2] = np.inf
    confidence = np.full((2, 3), 2.0, np.float32)
    confidence[0, 2] = 1.0
    np.testing.assert_array_equal(pointmap.validity(points), [[0, 1, 1], [1, 1, 0]])
    np.testing.assert_array_equal(pointmap.validity(points, confidence), [[0, 1, 0], [1, 1, 0]])


def test_change_frame_of_a_batch():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
    rotation = Rotation.random(2, random_state=0).as_matrix().astype(np.float32)
    moved = pointmap.change_frame(
        points, rotation, jnp.array([[1.0, 2, 3], [0, 0, 1]]), jnp.array([2.0, 0.5])
    )
    for k, (scale, shift) in enumerate([(2, [1, 2, 3]), (0.5, [0, 0, 1])]):
        np.testing.assert_allclose(moved[k], scale * points[k] @ rotation[k].T + shift, atol=1e-5)


def test_mean_distance_ignores_what_is_masked_also_in_its_gradient():
    first = np.zeros((2, 2, 3), np.float32)
    first[..., 2] = 3
    second = np.zeros((2, 2, 3), np.float32)
    second[0] = [[np.nan, 0, 0], [0, 4, 0]]
    valid = (np.ones((2, 2), bool), np.array([[0, 1], [1, 1]], bool))

    def scale(first, second):
        return pointmap.mean_distance(first, second, valid=valid)

    np.testing.assert_allclose(scale(first, second), (4 * 3 + 4 + 0 + 0) / 7, rtol=1e-6)
    gradients = jax.grad(scale, argnums=(0, 1))(jnp.array(first), jnp.array(second))
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    np.testing.assert_allclose(gradients[0][0, 0], [0, 0, 1 / 7], rtol=1e-6)
