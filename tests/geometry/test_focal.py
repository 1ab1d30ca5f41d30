"""Focal from point maps."""

import jax
import numpy as np
import pytest

from align3r_jax.geometry import camera, focal


@pytest.mark.golden
def test_focal_golden(golden_dir):
    parts = np.load(golden_dir / "alignment_parts.npz")
    points = parts["focal_points"]
    np.testing.assert_allclose(focal.weiszfeld_focal(points), parts["focal_weiszfeld"], rtol=1e-4)
    np.testing.assert_allclose(focal.median_focal(points), parts["focal_median"], rtol=1e-4)
    shifted = focal.weiszfeld_focal(points, parts["focal_pp"])
    np.testing.assert_allclose(shifted, parts["focal_weiszfeld_pp"], rtol=1e-4)


@pytest.mark.parametrize("estimate", [focal.weiszfeld_focal, focal.median_focal])
def test_focal_is_recovered_despite_outliers(estimate):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        point = np.array([22.0, 13.0])
        intrinsics = camera.intrinsics_matrix(np.array([37.0, 81.0]), np.tile(point, (2, 1)))
        points = np.array(camera.unproject(rng.uniform(1, 5, (2, 24, 40)), intrinsics))
        np.testing.assert_allclose(estimate(points, point), [37, 81], rtol=1e-9)
        wrong = rng.random((2, 24, 40)) < 0.1
        points[wrong] *= [1.5, 1.5, 1.0]
        points[0, 3, 5] = 0
        np.testing.assert_allclose(estimate(points, point), [37, 81], rtol=2e-2)
