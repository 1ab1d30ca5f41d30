"""Recorded bytes of every raw format, and the camera conventions of every data set."""

import numpy as np
import pytest

from align3r_jax.io import flow_files, hdf5_files, pfm, png16, sintel_files
from data.readers import disparity, poses

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def golden(golden_dir):
    with np.load(golden_dir / "datasets.npz") as stored:
        wanted = ("file/", "decoded/", "pose/")
        return {key: stored[key] for key in stored.files if key.startswith(wanted)}


@pytest.fixture(scope="module")
def raw(golden, tmp_path_factory):
    """The recorded files on disk: name -> path."""
    folder = tmp_path_factory.mktemp("raw")
    paths = {}
    for key, value in golden.items():
        if key.startswith("file/"):
            paths[key[5:]] = folder / key[5:]
            paths[key[5:]].write_bytes(value.tobytes())
    flo = paths["flo"].rename(folder / "flow.flo")  # chosen by its suffix
    return paths | {"flo": flo}


def test_sintel_depth_camera_and_flow(golden, raw):
    np.testing.assert_array_equal(sintel_files.read_dpt(raw["dpt"]), golden["decoded/dpt"])
    camera = sintel_files.read_cam(raw["cam"])
    np.testing.assert_array_equal(camera.intrinsics, golden["decoded/cam_K"])
    np.testing.assert_array_equal(camera.cam_from_world, golden["decoded/cam_world2cam"])
    np.testing.assert_allclose(
        poses.from_extrinsics(camera.cam_from_world),
        golden["decoded/cam_cam2world"],
        rtol=0,
        atol=1e-9,
    )
    np.testing.assert_array_equal(flow_files.read_flow(raw["flo"]), golden["decoded/flo"])


def test_pfm_of_both_byte_orders_and_colours(golden, raw):
    for name in ("pfm_little", "pfm_big"):
        np.testing.assert_array_equal(pfm.read_pfm(raw[name]), golden["decoded/pfm"])
    np.testing.assert_array_equal(pfm.read_pfm(raw["pfm_color"]), golden["decoded/pfm_color"])


@pytest.mark.parametrize(
    ("name", "datasets", "missing"),
    [
        ("bonn_tum", ("bonn", "tum"), -1),
        ("kitti", ("kitti",), -1),
        ("pointodyssey", ("pointodyssey",), 0),
        ("vkitti", ("vkitti2",), 0),
        ("scannet_mm", ("scannet",), 0),
    ],
)
def test_png16_of_every_scale(golden, raw, name, datasets, missing):
    values = png16.read_png16(raw["png16"])
    assert values.dtype == np.uint16
    np.testing.assert_array_equal(values, golden["decoded/png16_raw"])
    assert png16.check_png16(raw["png16"]) == values.shape
    for dataset in datasets:
        scale = png16.VALUES_PER_METRE[dataset]
        depth = png16.decode(values, scale, missing=missing)
        np.testing.assert_allclose(depth, golden[f"decoded/png16_{name}"], rtol=1e-6)
        read = png16.read_depth_png16(raw["png16"], scale)
        np.testing.assert_allclose(read, np.maximum(golden[f"decoded/png16_{name}"], 0), rtol=1e-6)


def test_spring_disparity_with_and_without_its_baseline(golden, raw):
    values = hdf5_files.read_dsp5(raw["dsp5"])
    np.testing.assert_array_equal(values, golden["decoded/dsp5_disparity"])
    np.testing.assert_allclose(
        disparity.spring_depth(values, 1000.0, missing=-1),
        golden["decoded/dsp5_depth_metric"],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        disparity.spring_depth(values, 1000.0, reference=True),
        golden["decoded/dsp5_depth_reference_align3r"],
        rtol=1e-6,
    )


def test_camera_conventions(golden):
    get = {key[5:]: value for key, value in golden.items() if key.startswith("pose/")}
    extrinsics = get["w2c_file"]
    saved = poses.processed_pointodyssey(extrinsics)
    for got, expected in (
        (poses.from_ned_lines(get["tartanair_line"])[0], "tartanair_cam2world"),
        (poses.from_blender(get["sceneflow_file_c2w"]), "sceneflow_cam2world"),
        (poses.from_extrinsics(extrinsics), "w2c_cam2world"),
        (saved, "pointodyssey_saved_metadata"),
        (poses.from_processed_pointodyssey(saved), "pointodyssey_loader_cam2world"),
        (poses.spring_reference(extrinsics), "spring_reference_align3r_cam2world"),
        (poses.from_waymo(get["waymo_car2world"], get["waymo_cam2car"]), "waymo_cam2world"),
    ):
        np.testing.assert_allclose(got, get[expected], rtol=0, atol=1e-9, err_msg=expected)
    np.testing.assert_array_equal(poses.CAM_FROM_CAR, get["waymo_axes"])
