"""The points that exports choose, and the frames that are said to see them."""

import dataclasses

import numpy as np
import pytest

from align3r_jax.io import point_budget, point_tracks, pointcloud
from tests.viewer import bumpy_scene


@pytest.fixture(scope="module")
def scene():
    return bumpy_scene.make(5, 32, 40)


def test_the_budget_is_spread_over_space_and_not_over_points():
    rng = np.random.default_rng(1)
    # A tenth of the area holds nine tenths of the points.
    dense, sparse = rng.random((18_000, 3)) * [1, 1, 0], rng.random((2_000, 3)) * [9, 1, 0]
    points = np.concatenate([dense, sparse + [1, 0, 0]]).astype(np.float32)
    frame = np.sort(rng.integers(0, 4, len(points))).astype(np.int32)
    cloud = pointcloud.PointCloud(points, rng.integers(0, 256, (20_000, 3), np.uint8), frame)
    kept = point_budget.thin(cloud, 500)
    assert len(kept) == 500
    assert 30 < (kept.points[:, 0] < 1).sum() < 75  # 50 of 500 by area, 450 by points
    assert (np.diff(kept.frame) >= 0).all()
    again = point_budget.thin(cloud, 500)
    np.testing.assert_array_equal(kept.points, again.points)
    rows = {tuple(row) for row in np.column_stack([points, cloud.colours])}
    assert {tuple(row) for row in np.column_stack([kept.points, kept.colours])} <= rows
    assert point_budget.thin(cloud, 20_000) is cloud
    assert len(point_budget.thin(cloud, 1)) == 1


def test_points_that_coincide_still_make_up_the_number():
    cloud = pointcloud.PointCloud(
        np.ones((50, 3), np.float32), np.zeros((50, 3), np.uint8), np.zeros(50, np.int32)
    )
    assert len(point_budget.thin(cloud, 20)) == 20


def test_tracks_hold_those_frames_that_see_the_point(scene):
    cloud = point_budget.from_scene(scene, 300)
    tracks = point_tracks.find(scene, cloud)
    assert (np.diff(tracks.frame) >= 0).all()
    own = set(zip(range(len(cloud)), cloud.frame.tolist()))
    seen = set(zip(tracks.point.tolist(), tracks.frame.tolist()))
    assert own <= seen and len(seen) == len(tracks.point) > 3 * len(cloud)
    for t in range(5):
        points = tracks.point[tracks.frame == t]
        pixels, z = point_tracks.project(
            cloud.points[points], scene.world_from_cam[t], scene.intrinsics[t]
        )
        x, y = np.rint(pixels).astype(int).T
        np.testing.assert_allclose(z, scene.depth[t, y, x], rtol=0.021)
        assert not scene.dynamic_mask[t, y, x].any()


def test_what_hides_behind_a_nearer_surface_is_not_seen(scene):
    depth = scene.depth.copy()
    depth[3] *= 0.5  # a wall in front of everything that frame 3 saw
    hidden = dataclasses.replace(scene, depth=depth)
    cloud = point_budget.from_scene(scene, 200)
    tracks = point_tracks.find(hidden, cloud)
    assert (cloud.frame[tracks.point[tracks.frame == 3]] == 3).all()


def test_moving_points_are_seen_by_their_own_frame_alone(scene):
    cloud = point_budget.from_scene(scene, 100, pointcloud.PointFilter(dynamic="only"))
    tracks = point_tracks.find(scene, cloud, moving=np.ones(len(cloud), bool))
    np.testing.assert_array_equal(cloud.frame[tracks.point], tracks.frame)
    assert len(tracks.point) == len(cloud) > 50


def test_long_tracks_are_thinned_evenly():
    standing = bumpy_scene.make(1, 32, 40)
    repeated = {
        name: np.repeat(getattr(standing, name), 60, axis=0)
        for name in ("depth", "world_from_cam", "intrinsics", "confidence", "dynamic_mask")
    }
    long = dataclasses.replace(standing, **repeated)
    cloud = point_budget.from_scene(standing, 40)
    tracks = point_tracks.find(long, cloud)
    for point in range(len(cloud)):
        frames = tracks.frame[tracks.point == point]
        assert len(frames) == point_tracks.LONGEST + 1 and frames[0] == 0
        assert np.diff(frames).max() <= 5 and frames[-1] >= 55
