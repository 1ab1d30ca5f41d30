"""Camera rules: projection and back, and intrinsics that follow the pixels."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.geometry import camera
from align3r_jax.structs import WorkingSize

SIZES = [
    WorkingSize(original=(480, 640), resized=(384, 512), crop=(0, 0), working=(384, 512)),
    WorkingSize(original=(1080, 1920), resized=(288, 512), crop=(0, 0), working=(288, 512)),
    WorkingSize(original=(436, 1024), resized=(218, 512), crop=(1, 0), working=(208, 512)),
    WorkingSize(original=(300, 200), resized=(512, 341), crop=(0, 10), working=(512, 320)),
]


def test_unproject_then_project_is_the_pixel_grid():
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 4, (3, 2, 6, 8)).astype(np.float32)
    intrinsics = camera.intrinsics_matrix(
        jnp.array([5.0, 9.0, 20.0])[:, None], jnp.array([3.7, 2.9]), jnp.array([[6.0, 7.0]])
    )
    chex.assert_shape(intrinsics, (3, 2, 3, 3))
    points = camera.unproject(depth, intrinsics)
    np.testing.assert_array_equal(points[..., 2], depth)
    x, y = np.meshgrid(np.arange(8), np.arange(6))
    grid = np.broadcast_to(np.stack([x, y], -1), (3, 2, 6, 8, 2))
    np.testing.assert_allclose(camera.project(points, intrinsics), grid, atol=2e-5)
    # The matrix itself says the same.
    homogeneous = np.einsum("abij,abhwj->abhwi", intrinsics, points)
    np.testing.assert_allclose(homogeneous[..., :2] / homogeneous[..., 2:], grid, atol=2e-5)


@pytest.mark.parametrize("size", SIZES)
def test_intrinsics_follow_the_pixels(size):
    """A point projects to the working pixel that the original pixel is resampled to."""
    original = camera.intrinsics_matrix(jnp.array([300.0]), jnp.array([[110.0, 140.0]]))
    points = jnp.array([[[0.1, -0.2, 2.0], [-0.3, 0.25, 1.0]]])
    pixels = camera.project(points, original)
    scale = np.array(size.resized[::-1]) / np.array(size.original[::-1])
    expected = (pixels + 0.5) * scale - 0.5 - np.array(size.crop[::-1])
    working = camera.to_working(original, size)
    np.testing.assert_allclose(camera.project(points, working), expected, atol=1e-3)
    np.testing.assert_allclose(camera.to_original(working, size), original, rtol=1e-5, atol=1e-4)


def test_field_of_view_and_focal_are_inverse():
    intrinsics = camera.intrinsics_matrix(jnp.array(400.0), jnp.array([256.0, 144.0]))
    angles = camera.field_of_view(intrinsics, 288, 512)
    np.testing.assert_allclose(np.degrees(angles), [65.2385, 39.5978], atol=1e-3)
    np.testing.assert_allclose(camera.focal_from_field_of_view(angles[0], 512), 400, rtol=1e-6)


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        depth = np.full((2, 3), 1.0 + 1e-12)
        intrinsics = camera.intrinsics_matrix(np.float64(3.0), np.array([1.0, 0.5]))
        assert camera.unproject(depth, intrinsics).dtype == np.float64
        assert intrinsics.dtype == np.float64
