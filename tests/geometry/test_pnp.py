"""Camera pose from a point map."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from align3r_jax.geometry import pnp


def _poses(parts, **settings):
    focals = settings.pop("focals")
    return [
        pnp.solve_pnp(points, mask, focal, **settings)
        for points, mask, focal in zip(parts["pnp_points"], parts["pnp_mask"], focals, strict=True)
    ]


@pytest.mark.golden
def test_pnp_golden(golden_dir):
    parts = np.load(golden_dir / "alignment_parts.npz")
    height, width = parts["pnp_mask"].shape[1:]
    np.testing.assert_allclose(
        pnp.focal_candidates(height, width), parts["pnp_focal_candidates"], rtol=1e-9
    )
    known = _poses(parts, focals=parts["pnp_focal"])
    shifted = _poses(
        parts, focals=parts["pnp_focal"], principal_point=(width / 2 + 2, height / 2 - 1)
    )
    searched = _poses(parts, focals=[None] * len(known))
    # Inlier sets differ where there are outliers: the recorded bar for those cases is 1e-2.
    clean = parts["pnp_inliers"] == parts["pnp_n"]
    for k in range(len(known)):
        bar = 1e-4 if clean[k] else 1e-2
        np.testing.assert_allclose(known[k][1], parts["pnp_pose"][k], atol=bar)
        np.testing.assert_allclose(shifted[k][1], parts["pnp_pp_pose"][k], atol=bar)
        np.testing.assert_allclose(searched[k][0], parts["pnp_search_focal"][k], rtol=1e-6)
        np.testing.assert_allclose(searched[k][1], parts["pnp_search_pose"][k], atol=bar)


def _scene(height=24, width=32, focal=30.0, seed=0):
    rng = np.random.default_rng(seed)
    world_from_cam = np.eye(4)
    world_from_cam[:3, :3] = Rotation.from_rotvec([0.1, -0.2, 0.05]).as_matrix()
    world_from_cam[:3, 3] = [0.3, -0.1, 0.4]
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    depth = rng.uniform(2, 4, (height, width))
    rays = np.stack([(x - width / 2) / focal, (y - height / 2) / focal, np.ones_like(depth)], -1)
    points = (depth[..., None] * rays) @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]
    return points, world_from_cam


def test_outliers_and_missing_points_do_not_move_the_pose():
    points, expected = _scene()
    rng = np.random.default_rng(1)
    points[rng.random(points.shape[:2]) < 0.25] += 3
    points[2, 3] = np.nan
    focal, pose = pnp.solve_pnp(points, np.ones(points.shape[:2], bool), 30.0, iterations=100)
    assert focal == 30
    np.testing.assert_allclose(pose, expected, atol=1e-6)


def test_many_points_are_thinned_without_harm():
    points, expected = _scene(240, 320, 300.0)
    assert points[..., 0].size > 2 * pnp.MAX_POINTS
    _, pose = pnp.solve_pnp(points, np.ones(points.shape[:2], bool), 300.0)
    np.testing.assert_allclose(pose, expected, atol=1e-6)


def test_failures_are_none():
    points, _ = _scene()
    mask = np.zeros(points.shape[:2], bool)
    mask[0, :3] = True
    assert pnp.solve_pnp(points, mask, 30.0) is None
    nowhere = np.full_like(points, np.nan)
    assert pnp.solve_pnp(nowhere, np.ones(points.shape[:2], bool), None) is None
