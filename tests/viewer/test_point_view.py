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
    """points (N, 3), colours (N, 3), confidence level (N,), inverse depth level (N,)."""
    raw = base64.b64decode(data)
    count = meta["points"]
    assert len(raw) == 11 * count
    levels = np.frombuffer(raw[: 6 * count], "<u2").reshape(-1, 3)
    points = np.array(meta["low"]) + np.array(meta["extent"]) * (levels / 65535)
    rest = np.frombuffer(raw[6 * count :], np.uint8)
    return points, rest[: 3 * count].reshape(-1, 3), rest[3 * count : 4 * count], rest[4 * count :]


def test_decoded_points_are_the_clouds_up_to_one_rigid_motion(scene):
    rules = pointcloud.PointFilter()
    meta, data = point_view.build(scene, rules)
    points, colours, sure, near = _decoded(meta, data)
    static = pointcloud.from_scene(scene, rules)
    moving = pointcloud.from_scene(scene, dataclasses.replace(rules, dynamic="only"))
    expected = np.concatenate([static.points, moving.points])
    assert len(points) == len(expected)
    np.testing.assert_array_equal(colours, np.concatenate([static.colours, moving.colours]))
    # Distances to one camera centre survive a rigid motion.
    eye = scene.world_from_cam[1, :3, 3]
    distance = np.linalg.norm(points - np.array(meta["frusta"][1][0]), axis=1)
    np.testing.assert_allclose(distance, np.linalg.norm(expected - eye, axis=1), atol=5e-4)
    # Both follow frame by frame.
    for name, cloud, first in (("staticStarts", static, 0), ("movingStarts", moving, len(static))):
        starts = np.array(meta[name])
        assert starts[0] == first and starts[-1] == first + len(cloud)
        np.testing.assert_array_equal(np.diff(starts), np.bincount(cloud.frame, minlength=5))
    # Confidence and depth are those of each point's own pixel.
    _, pixels = next(iter(pointcloud.sampled_pixels(scene, rules)))
    levels = np.exp(sure[: len(pixels)] / 255 * meta["logConfidence"])
    own = scene.confidence[0].reshape(-1)[pixels]
    np.testing.assert_allclose(levels, np.minimum(own, levels.max()), rtol=0.02)
    order = np.argsort(scene.depth[0].reshape(-1)[pixels])
    assert (np.diff(near[: len(pixels)][order].astype(int)) <= 0).all()


def test_only_frames_of_the_page_give_points_but_all_cameras_are_drawn(scene):
    meta, data = point_view.build(scene, pointcloud.PointFilter(), np.array([0, 2, 4]))
    part = dataclasses.replace(
        scene,
        **{name: getattr(scene, name)[::2] for name in (
            "depth", "confidence", "dynamic_mask", "colours", "world_from_cam", "intrinsics")},
    )  # fmt: skip
    assert meta["points"] == len(
        pointcloud.from_scene(part, pointcloud.PointFilter(dynamic="keep"))
    )
    assert len(meta["staticStarts"]) == len(meta["movingStarts"]) == 4
    assert len(meta["frusta"]) == 5 and meta["shownCameras"] == [0, 2, 4]


def test_of_very_many_cameras_some_are_drawn_the_shown_ones_always(monkeypatch, scene):
    monkeypatch.setattr(point_view, "MAX_CAMERAS", 2)
    everything, _ = point_view.build(scene, pointcloud.PointFilter(), np.array([1, 3]))
    assert len(everything["frusta"]) == 4  # 0 and 4 of the path, 1 and 3 of the page
    assert everything["shownCameras"] == [1, 2]


def test_what_moves_is_shown_though_other_frames_see_through_it(scene):
    seen_through = np.where(scene.dynamic_mask, 0.0, scene.confidence).astype(np.float32)
    meta, data = point_view.build(
        dataclasses.replace(scene, confidence=seen_through), pointcloud.PointFilter()
    )
    first = meta["movingStarts"][0]
    assert meta["points"] - first > 0
    assert (_decoded(meta, data)[2][first:] == 0).all()  # the slider can hide it


def test_the_view_is_upright_and_looks_where_the_cameras_look(scene):
    meta, data = point_view.build(scene, pointcloud.PointFilter())
    points = _decoded(meta, data)[0]
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
    assert meta["points"] == 600 and len(data) == 600 * 11 * 4 // 3


def test_no_points_at_all_is_still_valid(scene):
    meta, data = point_view.build(scene, pointcloud.PointFilter(min_confidence=1e9))
    assert meta["points"] == 0 and data == "" and meta["movingStarts"] == [0] * 6
    assert meta["staticStarts"] == [0] * 6
    json.dumps(meta, allow_nan=False)
