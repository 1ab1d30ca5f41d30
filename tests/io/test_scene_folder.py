"""The result folder: layout, exact round trip, all or nothing."""

import dataclasses
import errno
import json
import os
import resource
from pathlib import Path

import av
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from align3r_jax.errors import UserError
from align3r_jax.geometry import camera
from align3r_jax.io import scene_folder
from align3r_jax.structs import OpticalFlow, WorkingSize
from tests.viewer import bumpy_scene

FRAMES = 4


@pytest.fixture(scope="module")
def scene():
    # Odd sides and an anisotropic resize with a crop: nothing may be lost on the way.
    made = bumpy_scene.make(FRAMES, 33, 47)
    size = WorkingSize(original=(90, 130), resized=(35, 49), crop=(1, 1), working=(33, 47))
    return dataclasses.replace(made, size=size)


@pytest.fixture(scope="module")
def folder(scene, tmp_path_factory):
    flow = OpticalFlow(
        pairs=np.array([[0, 1], [1, 0], [1, 2], [2, 3]], np.int32),
        flow=np.random.default_rng(0).normal(0, 3, (4, 33, 47, 2)).astype(np.float32),
        weight=np.ones((4, 33, 47), np.float32),
    )
    return scene_folder.save_scene(
        jax.tree.map(jnp.asarray, scene),
        tmp_path_factory.mktemp("results") / "nested" / "wall",
        bumpy_scene.summary(scene),
        prior_depth=scene.depth * 2,
        flow=flow,
        true_world_from_cam=scene.world_from_cam,
    )


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_every_documented_file_is_there_and_no_other(folder):
    per_frame = {
        f"{name}/frame_{t:04d}{suffix}"
        for t in range(FRAMES)
        for name, suffix in [
            ("depth", ".npy"), ("depth", ".png"), ("depth_colour", ".png"), ("conf", ".npy"),
            ("dynamic_mask", ".png"), ("rgb", ".png"), ("prior", ".npy"),
        ]
    }  # fmt: skip
    single = {
        "pred_traj.txt", "pred_intrinsics.txt", "pred_intrinsics_original.txt", "true_traj.txt",
        "points.ply", "scene.glb", "depth.mp4", "summary.json", "depth/png_scale.json",
    }  # fmt: skip
    flow = {f"flow/frame_{t:04d}.png" for t in range(FRAMES - 1)}
    assert _names(folder) == per_frame | single | flow
    assert [path.name for path in folder.parent.iterdir()] == ["wall"]
    documented = (Path(__file__).parents[2] / "docs" / "outputs.md").read_text()
    for name in single | {name.split("/")[0] + "/" for name in per_frame | flow}:
        assert f"`{name.split('/')[-1] or name}`" in documented, name


def test_round_trip(scene, folder):
    loaded = scene_folder.load_scene(folder)
    for name in ("depth", "confidence", "dynamic_mask", "colours"):
        original = getattr(scene, name)
        assert getattr(loaded, name).dtype == original.dtype
        np.testing.assert_array_equal(getattr(loaded, name), original)
    np.testing.assert_allclose(loaded.world_from_cam, scene.world_from_cam, atol=1e-6)
    np.testing.assert_allclose(loaded.intrinsics, scene.intrinsics, atol=1e-5)
    np.testing.assert_allclose(loaded.times, scene.times, atol=1e-6)
    np.testing.assert_array_equal(loaded.pair_losses, scene.pair_losses)
    assert loaded.trace.keys() == scene.trace.keys()
    for name, values in scene.trace.items():
        np.testing.assert_array_equal(loaded.trace[name], values)
    assert (loaded.size, loaded.names, loaded.metric) == (scene.size, scene.names, True)
    np.testing.assert_array_equal(scene_folder.load_prior_depth(folder), scene.depth * 2)
    assert sorted(scene_folder.load_flow_images(folder)) == [0, 1, 2]
    np.testing.assert_allclose(
        scene_folder.load_true_poses(folder), scene.world_from_cam, atol=1e-6
    )


def test_depth_png_times_its_scale_is_the_depth(scene, folder):
    scale = json.loads((folder / "depth/png_scale.json").read_text())
    levels = [cv2.imread(str(folder / f"depth/frame_{t:04d}.png"), cv2.IMREAD_UNCHANGED)
              for t in range(FRAMES)]  # fmt: skip
    assert levels[0].dtype == np.uint16 and np.max(levels) == 65535
    error = np.abs(np.array(levels) * scale["depth_per_level"] - scene.depth)
    assert error.max() <= 0.501 * scale["depth_per_level"]


def test_trajectory_is_in_tum_order(scene, folder):
    rows = np.loadtxt(folder / "pred_traj.txt")
    assert rows.shape == (FRAMES, 8)
    np.testing.assert_allclose(rows[:, 0], scene.times, atol=1e-6)
    np.testing.assert_allclose(rows[:, 1:4], scene.world_from_cam[:, :3, 3], atol=1e-6)
    rotation = Rotation.from_quat(rows[:, 4:]).as_matrix()  # scalar last
    np.testing.assert_allclose(rotation, scene.world_from_cam[:, :3, :3], atol=1e-6)


def test_original_intrinsics_see_the_same_ray_at_the_original_pixel(scene, folder):
    working = np.loadtxt(folder / "pred_intrinsics.txt").reshape(-1, 3, 3)
    original = np.loadtxt(folder / "pred_intrinsics_original.txt").reshape(-1, 3, 3)
    point = np.array([0.3, -0.2, 2.0])
    at_working = np.asarray(camera.project(point, working[0]))
    at_original = np.asarray(camera.project(point, original[0]))
    scale = np.array([49 / 130, 35 / 90])
    np.testing.assert_allclose((at_original + 0.5) * scale - 0.5 - 1, at_working, atol=1e-4)


def test_masks_and_colours_are_plain_pictures(scene, folder):
    mask = cv2.imread(str(folder / "dynamic_mask/frame_0002.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask, scene.dynamic_mask[2] * np.uint8(255))
    rgb = cv2.imread(str(folder / "rgb/frame_0002.png"))[..., ::-1]
    np.testing.assert_array_equal(rgb, scene.colours[2])


def test_video_plays_anywhere_and_shows_rgb_beside_depth(scene, folder):
    with av.open(str(folder / "depth.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
        assert (stream.height, stream.width) == (34, 94)  # 33 is odd: one row repeated
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == FRAMES
    left = frames[1][:33, :47].astype(float) - scene.colours[1]
    assert np.abs(left).mean() < 12
    depth = cv2.imread(str(folder / "depth_colour/frame_0001.png"))[..., ::-1]
    assert np.abs(frames[1][:33, 47:].astype(float) - depth).mean() < 20


def test_points_and_glb_hold_the_same_cloud(folder):
    cloud = trimesh.load(folder / "points.ply")
    glb = trimesh.load(folder / "scene.glb")
    count = json.loads((folder / "summary.json").read_text())["scene"]["points"]
    assert len(cloud.vertices) == len(glb.geometry["points"].vertices) == count > 1000


def test_summary_is_strict_json_and_keeps_numbers_that_are_none(scene, tmp_path):
    trace = {"total": np.array([1.0, np.nan, np.inf], np.float32)}
    damaged = dataclasses.replace(scene, trace=trace)
    path = scene_folder.save_scene(damaged, tmp_path / "a", {"errors": {"ATE": np.float32("nan")}})

    def refuse(name):
        raise AssertionError(name)

    summary = json.loads((path / "summary.json").read_text(), parse_constant=refuse)
    assert summary["errors"] == {"ATE": None}
    assert summary["scene"]["trace"] == {"total": [1.0, None, None]}
    loaded = scene_folder.load_scene(path).trace["total"]
    np.testing.assert_array_equal(loaded, np.array([1, np.nan, np.nan], np.float32))


def test_existing_output_stays_unless_overwritten(scene, tmp_path):
    path = scene_folder.save_scene(scene, tmp_path / "a", {"predictor": "first"})
    with pytest.raises(UserError, match="--overwrite"):
        scene_folder.save_scene(scene, path, {"predictor": "second"})
    assert scene_folder.load_summary(path)["predictor"] == "first"
    (path / "stale.txt").write_text("from the first run")
    scene_folder.save_scene(scene, path, {"predictor": "second"}, overwrite=True)
    assert scene_folder.load_summary(path)["predictor"] == "second"
    assert not (path / "stale.txt").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_overwrite_never_removes_files_of_others(scene, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no earlier result"):
        scene_folder.save_scene(scene, tmp_path, {}, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_may_be_filled(scene, tmp_path):
    (tmp_path / "empty").mkdir()
    scene_folder.save_scene(scene, tmp_path / "empty", {})
    assert (tmp_path / "empty" / "summary.json").exists()


def test_outputs_that_cannot_be(scene, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        scene_folder.check_output(tmp_path / "file", overwrite=True)
    with pytest.raises(UserError, match="not a folder"):
        scene_folder.save_scene(scene, tmp_path / "file" / "below", {})
    with pytest.raises(UserError, match="could not be written"):
        scene_folder.check_output(tmp_path / ("x" * 300))
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(UserError, match="may write"):
            scene_folder.save_scene(scene, tmp_path / "locked" / "a", {})


@pytest.mark.parametrize("limit", [1500, 9000])
def test_full_disk_leaves_the_old_result_and_nothing_else(scene, tmp_path, limit):
    """A real failure of the file system: no file may grow beyond `limit` bytes."""
    path = scene_folder.save_scene(scene, tmp_path / "a", {"predictor": "first"})
    before = _names(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError, match="disk is full"):
            scene_folder.save_scene(scene, path, {"predictor": "second"}, overwrite=True)
        with pytest.raises(UserError, match="disk is full"):
            scene_folder.save_scene(scene, tmp_path / "b", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert _names(path) == before
    assert scene_folder.load_summary(path)["predictor"] == "first"


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_interrupted_at_the_last_moment(scene, tmp_path, failure):
    path = scene_folder.save_scene(scene, tmp_path / "a", {"predictor": "first"})

    def finish(folder: Path) -> None:
        assert (folder / "summary.json").exists()
        raise failure

    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else UserError
    with pytest.raises(expected):
        scene_folder.save_scene(scene, path, {}, overwrite=True, finish=finish)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert scene_folder.load_summary(path)["predictor"] == "first"


def test_loading_what_is_no_result(scene, tmp_path):
    with pytest.raises(UserError, match="holds no result"):
        scene_folder.load_scene(tmp_path)
    (tmp_path / "summary.json").write_text('{"format": "something else"}')
    with pytest.raises(UserError, match="not of the format"):
        scene_folder.load_scene(tmp_path)
    path = scene_folder.save_scene(scene, tmp_path / "a", {})
    (path / "depth" / "frame_0001.npy").unlink()
    with pytest.raises(UserError, match="damaged"):
        scene_folder.load_scene(path)


def test_depth_without_a_single_valid_pixel_can_be_saved(scene, tmp_path):
    empty = dataclasses.replace(scene, depth=np.full_like(scene.depth, np.nan))
    path = scene_folder.save_scene(empty, tmp_path / "a", {})
    assert len(trimesh.load(path / "scene.glb").geometry) == FRAMES + 1  # cameras and path
    assert np.isnan(scene_folder.load_scene(path).depth).all()
