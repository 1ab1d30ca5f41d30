"""Which pixels become points, and where those points lie."""

import dataclasses

import numpy as np
import pytest
import trimesh

from align3r_jax.io import pointcloud
from tests.viewer import bumpy_scene

ALL = pointcloud.PointFilter(min_confidence=0, edge=0, dynamic="keep", max_points=None)


@pytest.fixture(scope="module")
def scene():
    return bumpy_scene.make(3, 32, 40)


def test_static_points_of_all_frames_lie_on_the_wall(scene):
    cloud = pointcloud.from_scene(scene, dataclasses.replace(ALL, dynamic="drop"))
    assert len(cloud) == (~scene.dynamic_mask).sum()
    x, y, z = cloud.points.T
    np.testing.assert_allclose(z, bumpy_scene._wall(x, y), atol=2e-4)


def test_points_keep_their_colour_and_frame(scene):
    cloud = pointcloud.from_scene(scene, dataclasses.replace(ALL, dynamic="only"))
    assert len(cloud) == scene.dynamic_mask.sum()
    np.testing.assert_array_equal(cloud.colours, scene.colours[scene.dynamic_mask])
    np.testing.assert_array_equal(cloud.frame, np.nonzero(scene.dynamic_mask)[0])


def test_confidence_threshold_and_invalid_depth(scene):
    depth = scene.depth.copy()
    depth[0, :2] = np.nan
    depth[0, 2:4] = 0
    damaged = dataclasses.replace(scene, depth=depth)
    keep = pointcloud.kept_pixels(damaged, dataclasses.replace(ALL, min_confidence=3.0))
    assert not keep[0, :4].any()
    np.testing.assert_array_equal(keep[1:], scene.confidence[1:] >= 3.0)


def test_a_grazing_plane_has_no_edges_and_a_step_has():
    x, y = np.meshgrid(np.arange(40.0), np.arange(30.0))
    # 1 / depth affine in the pixel: a plane seen at a grazing angle; neighbours differ by 20 %.
    plane = 1 / (0.02 + 0.01 * x + 0.003 * y)
    assert np.abs(np.diff(plane, axis=1) / plane[:, 1:]).max() > 0.2
    assert not pointcloud.depth_edges(plane, 0.01).any()
    step = np.where(x < 20, 2.0, 3.0)
    edges = pointcloud.depth_edges(step, 0.04)
    np.testing.assert_array_equal(np.nonzero(edges.any(0))[0], [19, 20])
    # A flying pixel between the two goes, and so do the pixels that it borders on.
    step[:, 20] = 2.5
    assert pointcloud.depth_edges(step, 0.04)[:, 19:22].all()


def test_missing_depth_is_no_edge_for_its_neighbours():
    depth = np.full((9, 9), 2.0)
    depth[4, 4] = np.nan
    assert not pointcloud.depth_edges(depth, 0.01).any()


def test_the_subset_is_the_same_in_every_run_and_spread_over_frames(scene):
    few = dataclasses.replace(ALL, max_points=600)
    first, second = (pointcloud.from_scene(scene, few) for _ in range(2))
    np.testing.assert_array_equal(first.points, second.points)
    assert len(first) == 600
    assert (np.bincount(first.frame, minlength=3) > 120).all()
    assert (np.diff(first.frame) >= 0).all()


def test_ply_is_binary_and_keeps_points_and_colours(scene):
    cloud = pointcloud.from_scene(scene, dataclasses.replace(ALL, max_points=500))
    data = pointcloud.encode_ply(cloud)
    assert data.startswith(b"ply\nformat binary_little_endian 1.0")
    loaded = trimesh.load(trimesh.util.wrap_as_stream(data), file_type="ply")
    np.testing.assert_array_equal(np.asarray(loaded.vertices, np.float32), cloud.points)
    np.testing.assert_array_equal(loaded.colors[:, :3], cloud.colours)


def test_an_empty_cloud_is_a_valid_file(scene):
    cloud = pointcloud.from_scene(scene, dataclasses.replace(ALL, min_confidence=1e9))
    assert len(cloud) == 0
    assert b"element vertex 0" in pointcloud.encode_ply(cloud)
