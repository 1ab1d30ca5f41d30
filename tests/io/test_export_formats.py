"""Exports read back by other libraries, at both sizes, against what the scene is known to be."""

import copy
import json

import cv2
import numpy as np
import OpenEXR
import pycolmap
import pytest
import trimesh
from evo.tools import file_interface

from align3r_jax.errors import UserError
from align3r_jax.geometry import camera
from align3r_jax.io import cameras, depth_files, export, export_formats, scene_folder
from align3r_jax.io.export_formats import FORMATS, ExportOptions
from tests.io import export_scene
from tests.viewer import bumpy_scene

POINTS = 300
SAFE = ("walk_002", "walk_005", "walk_008")
RESOLUTIONS = ("network", "original")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return export_scene.save(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory):
    """Resolution -> (folder of each format, the scene as it was seen at that size)."""
    result, _, scene, original = saved
    done = {}
    for resolution, truth in zip(RESOLUTIONS, (scene, original)):
        options = ExportOptions(resolution=resolution, points=POINTS)
        output = tmp_path_factory.mktemp(resolution)
        done[resolution] = export.export_result(result, FORMATS, options, output=output), truth
    return done


def on_the_wall(points, tolerance, share=1.0):
    """Whether at least this share of the points lies on the surface that everything shows."""
    x, y, z = np.asarray(points, np.float64).reshape(-1, 3).T
    assert (np.abs(z - bumpy_scene._wall(x, y)) <= tolerance).mean() >= share


def unproject(depth, intrinsics, world_from_cam):
    """In float64 and by hand: what another program would do."""
    rows, columns = np.nonzero(np.isfinite(depth) & (depth > 0))
    z = depth[rows, columns].astype(np.float64)
    pixels = np.stack([columns, rows, np.ones(len(z))], -1)
    in_camera = z[:, None] * (pixels @ np.linalg.inv(intrinsics).T)
    return in_camera @ world_from_cam[:3, :3].T + world_from_cam[:3, 3], rows, columns


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("name", ["colmap", "colmap_bin"])
def test_colmap_reads_its_model_and_points_project_onto_their_observations(
    exported, name, resolution
):
    paths, truth = exported[resolution]
    model = pycolmap.Reconstruction(str(paths[name] / "sparse" / "0"))
    assert len(model.points3D) == POINTS and len(model.images) == 3 and len(model.cameras) == 1
    height, width = truth.depth.shape[1:]
    lens = model.cameras[1]
    assert (lens.model.name, lens.width, lens.height) == ("PINHOLE", width, height)
    checked = 0
    for image in model.images.values():
        t = SAFE.index(image.name.removesuffix(".png"))
        picture = cv2.imread(str(paths[name] / "images" / image.name))[..., ::-1]
        np.testing.assert_array_equal(picture, truth.colours[t])
        centre = image.projection_center()
        np.testing.assert_allclose(centre, truth.world_from_cam[t, :3, 3], atol=1e-5)
        for index, seen in enumerate(image.points2D):
            point = model.points3D[seen.point3D_id]
            assert np.abs(image.project_point(point.xyz) - seen.xy).max() < 1e-3
            # COLMAP's pixels begin at the corner: the surface there is the point's.
            x, y = np.floor(seen.xy).astype(int)
            depth = (image.cam_from_world() * point.xyz)[2]
            assert abs(truth.depth[t, y, x] / depth - 1) < 0.03
            assert (image.image_id, index) in {
                (e.image_id, e.point2D_idx) for e in point.track.elements
            }
            checked += 1
    assert checked > 2 * POINTS
    on_the_wall([point.xyz for point in model.points3D.values()], 0.01)
    masks = [cv2.imread(str(paths[name] / "masks" / f"{n}.png.png"), cv2.IMREAD_UNCHANGED)
             for n in SAFE]  # fmt: skip
    differs = (np.array(masks) == 0) != truth.dynamic_mask
    assert set(np.unique(masks)) == {0, 255} and differs.mean() < 0.02


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_colmap_puts_pixels_half_a_pixel_further(exported, resolution):
    paths, truth = exported[resolution]
    lens = pycolmap.Reconstruction(str(paths["colmap_bin"] / "sparse" / "0")).cameras[1]
    (fx, _, cx), (_, fy, cy) = np.asarray(truth.intrinsics, np.float64)[0, :2]
    np.testing.assert_allclose(lens.params, [fx, fy, cx + 0.5, cy + 0.5], rtol=1e-5)


def test_both_sizes_see_a_point_at_the_same_place_of_the_scene(exported, saved):
    scene = saved[2]
    point = np.array([0.31, -0.22, 3.1])
    at = {}
    for resolution in RESOLUTIONS:
        matrix = np.loadtxt(exported[resolution][0]["npz"] / "intrinsics.txt").reshape(-1, 3, 3)
        at[resolution] = np.asarray(camera.project(point, matrix[1]))
    size = scene.size
    scale = np.array(size.resized[::-1]) / np.array(size.original[::-1])
    expected = (at["original"] + 0.5) * scale - 0.5 - np.array(size.crop[::-1])
    np.testing.assert_allclose(at["network"], expected, atol=1e-4)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_nerfstudio_has_opengl_axes_and_files_that_exist(exported, resolution):
    paths, truth = exported[resolution]
    folder = paths["nerfstudio"]
    content = json.loads((folder / "transforms.json").read_text())
    height, width = truth.depth.shape[1:]
    assert (content["w"], content["h"]) == (width, height)
    assert content["depth_unit_scale_factor"] == 1e-3 and "fl_x" not in content["frames"][0]
    for t, frame in enumerate(content["frames"]):
        matrix = np.array(frame["transform_matrix"])
        np.testing.assert_allclose(matrix[:3, 3], truth.world_from_cam[t, :3, 3], atol=1e-5)
        # Looking along -z, y up: against the columns of an OpenCV camera.
        axes = truth.world_from_cam[t, :3, :3] * [1, -1, -1]
        np.testing.assert_allclose(matrix[:3, :3], axes, atol=1e-5)
        depth = cv2.imread(str(folder / frame["depth_file_path"]), cv2.IMREAD_UNCHANGED)
        mask = cv2.imread(str(folder / frame["mask_path"]), cv2.IMREAD_UNCHANGED)
        assert (folder / frame["file_path"]).exists()
        assert depth.dtype == np.uint16 and depth.shape == mask.shape == (height, width)
        assert not depth[mask == 0].any() and (depth[mask > 0] > 0).mean() > 0.5
        lens = np.array([[content["fl_x"], 0, content["cx"] - 0.5],
                         [0, content["fl_y"], content["cy"] - 0.5], [0, 0, 1]])  # fmt: skip
        matrix[:3, :3] *= [1, -1, -1]
        metres = depth * content["depth_unit_scale_factor"]
        points, rows, columns = unproject(metres, lens, matrix)
        still = ~truth.dynamic_mask[t, rows, columns]
        on_the_wall(points[still], 0.03, share=0.98)
    vertices = cv2.loadPointCloud(str(folder / content["ply_file_path"]))[0].reshape(-1, 3)
    assert len(vertices) == POINTS
    on_the_wall(vertices, 0.01)


def test_cameras_with_lenses_of_their_own(saved):
    scene = saved[2].replace(
        intrinsics=saved[2].intrinsics * np.array([1, 1.1, 1.2])[:, None, None]
    )
    scene.intrinsics[:, 2, 2] = 1
    job = export_formats.Job(scene, ExportOptions())
    content = json.loads(
        export_formats.nerfstudio.encode(
            job.intrinsics, scene.world_from_cam, (32, 48), [{"file_path": n} for n in SAFE]
        )
    )
    assert "fl_x" not in content
    lenses = [frame["fl_x"] for frame in content["frames"]]
    np.testing.assert_allclose(lenses, scene.intrinsics[:, 0, 0])


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_depth_in_every_format_is_the_depth(exported, resolution, saved):
    paths, truth = exported[resolution]
    maps = {
        "npz": [np.load(paths["npz"] / f"{name}.npz") for name in SAFE],
        "exr": [OpenEXR.File(str(paths["exr"] / f"{name}.exr"), separate_channels=True)
                .channels()["Z"].pixels for name in SAFE],
    }  # fmt: skip
    for stored in maps["npz"]:
        np.testing.assert_allclose(stored["focallength_px"], truth.intrinsics[0, 0, 0], rtol=1e-5)
    arrays = np.stack([stored["depth"] for stored in maps["npz"]])
    np.testing.assert_array_equal(np.stack(maps["exr"]), arrays)
    known = np.isfinite(arrays)
    if resolution == "network":
        np.testing.assert_array_equal(arrays, saved[2].depth)
    else:
        # The crop cut off 5 of 42 rows above and below, 1 of 50 columns on either side.
        assert 0.70 < known.mean() < 0.75
        error = np.abs(arrays[known] / truth.depth[known] - 1)
        assert np.median(error) < 1e-3 and (error > 0.05).mean() < 0.01
    scale = json.loads((paths["png16"] / "depth.json").read_text())["scale"]
    levels = np.stack([cv2.imread(str(paths["png16"] / f"{name}.png"), cv2.IMREAD_UNCHANGED)
                       for name in SAFE])  # fmt: skip
    assert levels.dtype == np.uint16 and ((levels == 0) == ~known).all()
    assert np.abs(levels[known] / scale - arrays[known]).max() <= 0.501 / scale


def test_exported_depth_is_a_prior_again(exported):
    for name in ("npz", "exr", "png16"):
        folder = depth_files.read_depth_folder(exported["original"][0][name], SAFE)
        assert folder.metric and not folder.inverse and folder.depth.shape == (3, 84, 120)


def test_exported_cameras_are_known_cameras_again(exported, saved):
    scene = saved[2]
    for name in ("colmap", "colmap_bin", "nerfstudio"):
        file = cameras.read_cameras(exported["network"][0][name])
        np.testing.assert_allclose(file.world_from_cam, scene.world_from_cam, atol=1e-5)
        np.testing.assert_allclose(file.intrinsics, scene.intrinsics, atol=1e-4)


def test_scale_of_depth_as_16_bits():
    scene, _ = export_scene.make()

    def scale(factor, metric):
        job = export_formats.Job(
            scene.replace(depth=scene.depth * np.float32(factor), metric=metric), ExportOptions()
        )
        return job.values_per_unit

    farthest = float(scene.depth.max())
    assert scale(1, True) == scale(1, False) == scale(0.05, True) == 1000
    assert scale(100, True) == pytest.approx(65535 / (100 * farthest), rel=1e-6)
    assert scale(0.05, False) == pytest.approx(65535 / (0.05 * farthest), rel=1e-6)


def test_points_as_ply_and_glb(exported, saved):
    paths, _ = exported["network"]
    cloud = {}
    for part in ("static", "dynamic"):
        vertices, _, colours = cv2.loadPointCloud(str(paths["ply"] / f"points_{part}.ply"))
        cloud[part] = vertices.reshape(-1, 3)
        assert len(vertices) == len(colours)
    assert len(cloud["static"]) == POINTS and 0 < len(cloud["dynamic"]) <= POINTS
    on_the_wall(cloud["static"], 0.01)
    in_camera = [
        (cloud["dynamic"] - pose[:3, 3]) @ pose[:3, :3] for pose in saved[2].world_from_cam
    ]
    # The disc lies at depth 2.5 of the frame that it was seen by.
    assert np.abs(np.array(in_camera)[..., 2] - 2.5).min(axis=0).max() < 1e-4
    glb = trimesh.load(paths["glb"] / "scene.glb")
    first = saved[2].world_from_cam[0].astype(np.float64)
    for part, points in cloud.items():
        transform, name = glb.graph[f"points_{part}"]
        vertices = trimesh.transform_points(glb.geometry[name].vertices, transform)
        expected = (points - first[:3, 3]) @ first[:3, :3] * [1, -1, -1]
        np.testing.assert_allclose(vertices, expected, atol=1e-4)


def test_evo_reads_the_trajectories(exported, saved):
    paths, _ = exported["network"]
    scene = saved[2]
    tum = file_interface.read_tum_trajectory_file(str(paths["tum"] / "trajectory.txt"))
    kitti = file_interface.read_kitti_poses_file(str(paths["kitti"] / "poses.txt"))
    for path in (tum, kitti):
        np.testing.assert_allclose(path.poses_se3, scene.world_from_cam, atol=1e-5)
    np.testing.assert_allclose(tum.timestamps, scene.times, atol=1e-6)
    np.testing.assert_allclose(np.loadtxt(paths["kitti"] / "times.txt"), scene.times, atol=1e-6)


@pytest.mark.parametrize("split", ["static", "dynamic", "both"])
def test_split(saved, tmp_path, split):
    result, _, scene, _ = saved
    formats = ("npz", "ply", "colmap_bin", "nerfstudio")
    paths = export.export_result(
        result, formats, ExportOptions(split=split, points=50), output=tmp_path
    )
    used = {"static": ~scene.dynamic_mask, "dynamic": scene.dynamic_mask}.get(split)
    depth = np.stack([np.load(paths["npz"] / f"{name}.npz")["depth"] for name in SAFE])
    known = np.isfinite(depth)
    np.testing.assert_array_equal(known, np.ones_like(known) if used is None else used)
    parts = ("static", "dynamic") if split == "both" else (split,)
    assert {file.stem for file in paths["ply"].glob("*.ply")} == {f"points_{p}" for p in parts}
    model = pycolmap.Reconstruction(str(paths["colmap_bin"] / "sparse" / "0"))
    assert len(model.points3D) == 50 * len(parts)
    lengths = [point.track.length() for point in model.points3D.values()]
    assert lengths.count(1) >= 50 if "dynamic" in parts else min(lengths) >= 1
    assert (paths["nerfstudio"] / "masks").exists() == (split != "both")


def test_all_or_nothing(saved, tmp_path, monkeypatch):
    result = saved[0]
    broken = copy.copy(FORMATS)

    def fail(folder, job, split):
        (folder / "half").write_text("written")
        raise OSError(28, "No space left on device")

    broken["tum"] = FORMATS["tum"]._replace(whole=fail)
    monkeypatch.setattr(export, "FORMATS", broken)
    with pytest.raises(UserError, match="disk is full"):
        export.export_result(result, ["kitti", "tum"], output=tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_only_earlier_exports_are_replaced(saved, tmp_path):
    result = saved[0]
    paths = export.export_result(result, ["tum"], output=tmp_path)
    (paths["tum"] / "stale").write_text("of the first export")
    with pytest.raises(UserError, match="--overwrite"):
        export.export_result(result, ["kitti", "tum"], output=tmp_path)
    assert not (tmp_path / "kitti").exists()
    export.export_result(result, ["tum"], output=tmp_path, overwrite=True)
    assert not (paths["tum"] / "stale").exists()
    (tmp_path / "ply").mkdir()
    (tmp_path / "ply" / "mine.ply").write_text("a week of scanning")
    with pytest.raises(UserError, match="no earlier export"):
        export.export_result(result, ["ply"], output=tmp_path, overwrite=True)
    assert (tmp_path / "ply" / "mine.ply").exists()


def test_the_original_frames_must_be_those_of_the_result(saved, tmp_path):
    result, pictures, scene, _ = saved
    options = ExportOptions(resolution="original")

    def sentence(folder, **given):
        with pytest.raises(UserError) as raised:
            export.export_result(folder, ["npz"], options, output=tmp_path / "out", **given)
        assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
        return str(raised.value)

    assert "may have moved" in sentence(result, source=tmp_path / "gone.mp4")
    nameless = scene_folder.save_scene(scene, tmp_path / "nameless", {})
    assert "does not say which" in sentence(nameless)
    other = tmp_path / "other"
    other.mkdir()
    (other / "walk 002.png").write_bytes((pictures / "walk 002.png").read_bytes())
    (other / "walk 005.png").write_bytes((pictures / "walk 003.png").read_bytes())
    assert "'walk 005' differs by" in sentence(result, source=other)
    (other / "walk 005.png").write_bytes((pictures / "walk 005.png").read_bytes())
    assert "has no frame 'walk 008'" in sentence(result, source=other)
    cv2.imwrite(str(other / "walk 008.png"), np.zeros((40, 60, 3), np.uint8))
    assert "it was 120 x 84" in sentence(result, source=other)


def test_what_cannot_be_exported(saved, tmp_path):
    with pytest.raises(UserError, match="holds no result"):
        export.export_result(tmp_path / "nothing", ["ply"])
    with pytest.raises(UserError, match="known are colmap"):
        export.export_result(saved[0], ["usdz"])


def test_names_of_files_are_safe_and_stay_apart():
    scene, _ = export_scene.make()
    names = export_formats.export_frames.file_names(scene.replace(names=("a b", "a/b", "ü.1")))
    assert names == ("000000_a_b", "000001_a_b", "000002__.1")
