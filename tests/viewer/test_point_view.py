"""The data of the 3-D view: quantised points where the scene has them, cameras upright."""

import base64
import dataclasses
import json

import numpy as np
import pytest

from align3r_jax.io import pointcloud
from align3r_jax.viewer import point_view
from tests.viewer import bumpy_scene


@pytest.fixture(scope="module")
def scene():
    return bumpy_scene.make(5, 32, 40)


def _decoded(meta, data):
    raw = base64.b64decode(data)
    count = meta["points"]
    assert len(raw) == 9 * count
    levels = np.frombuffer(raw[: 6 * count], "<u2").reshape(-1, 3)
    points = np.array(meta["low"]) + np.array(meta["extent"]) * (levels / 65535)
    return points, np.frombuffer(raw[6 * count :], np.uint8).reshape(-1, 3)


def test_decoded_points_are_the_clouds_up_to_one_rigid_motion(scene):
    rules = pointcloud.PointFilter()
    meta, data = point_view.build(scene, rules)
    points, colours = _decoded(meta, data)
    static = pointcloud.from_scene(scene, rules)
    moving = pointcloud.from_scene(scene, dataclasses.replace(rules, dynamic="only"))
    expected = np.concatenate([static.points, moving.points])
    assert len(points) == len(expected)
    np.testing.assert_array_equal(colours, np.concatenate([static.colours, moving.colours]))
    # Distances to one camera centre survive a rigid motion.
    eye = scene.world_from_cam[1, :3, 3]
    distance = np.linalg.norm(points - np.array(meta["frusta"][1][0]), axis=1)
    np.testing.assert_allclose(distance, np.linalg.norm(expected - eye, axis=1), atol=5e-4)
    # Moving points follow, frame by frame.
    starts = np.array(meta["movingStarts"])
    assert starts[0] == len(static) and starts[-1] == len(expected)
    np.testing.assert_array_equal(np.diff(starts), np.bincount(moving.frame, minlength=5))


def test_the_view_is_upright_and_looks_where_the_cameras_look(scene):
    meta, data = point_view.build(scene, pointcloud.PointFilter())
    points, _ = _decoded(meta, data)
    for centre, top_left, top_right, bottom_right, bottom_left in np.array(meta["frusta"]):
        assert top_left[1] > bottom_left[1] and top_right[1] > bottom_right[1]
        assert top_right[0] > top_left[0]
        assert centre[2] > top_left[2]  # cameras stand nearer to the viewer (+z), looking along -z
    assert np.median(points[:, 2]) < np.array(meta["frusta"])[:, 0, 2].min()
    assert meta["distance"] > np.array(meta["frusta"])[:, 0, 2].max()
    assert not meta["allAround"]


def test_cameras_all_around_turn_right_round(scene):
    angle = np.linspace(0, 2 * np.pi, 6)[:5]
    poses = np.tile(np.eye(4, dtype=np.float32), (5, 1, 1))
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(angle)
    poses[:, 0, 2], poses[:, 2, 0] = np.sin(angle), -np.sin(angle)
    poses[:, :3, 3] = -4 * poses[:, :3, 2]
    around = dataclasses.replace(scene, world_from_cam=poses)
    meta, _ = point_view.build(around, pointcloud.PointFilter())
    assert meta["allAround"]
    frusta = np.array(meta["frusta"])
    assert (frusta[:, 1, 1] > frusta[:, 4, 1]).all()


def test_far_outliers_do_not_take_the_resolution(scene):
    depth = scene.depth.copy()
    depth[0, 10, 10] = 1e6
    rules = pointcloud.PointFilter(edge=0)
    meta, _ = point_view.build(dataclasses.replace(scene, depth=depth), rules)
    assert max(meta["extent"]) < 50


def test_budgets_bound_the_page(monkeypatch, scene):
    monkeypatch.setattr(point_view, "STATIC_POINTS", 500)
    monkeypatch.setattr(point_view, "MOVING_POINTS", 100)
    meta, data = point_view.build(scene, pointcloud.PointFilter())
    assert meta["points"] == 600 and len(data) == 600 * 9 * 4 // 3


def test_no_points_at_all_is_still_valid(scene):
    meta, data = point_view.build(scene, pointcloud.PointFilter(min_confidence=1e9))
    assert meta["points"] == 0 and data == "" and meta["movingStarts"] == [0] * 6
    json.dumps(meta, allow_nan=False)
