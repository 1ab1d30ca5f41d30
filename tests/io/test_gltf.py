"""scene.glb: glTF's axes, frusta that project onto the image corners, readable by others."""

import json
import struct

import numpy as np
import pytest
import trimesh

from align3r_jax.geometry import camera, rigid
from align3r_jax.io import gltf, pointcloud
from tests.viewer import bumpy_scene


@pytest.fixture(scope="module")
def scene():
    return bumpy_scene.make(5, 32, 40)


@pytest.fixture(scope="module")
def loaded(scene):
    cloud = pointcloud.from_scene(scene, pointcloud.PointFilter(max_points=2000))
    data = gltf.encode_glb(scene, cloud)
    return cloud, data, trimesh.load(trimesh.util.wrap_as_stream(data), file_type="glb")


def test_first_camera_is_a_gltf_camera(scene):
    """At the origin, looking along -z, y up: its top left corner is at x < 0, y > 0, z < 0."""
    corners = gltf.frusta(scene, 0.5)[0]
    in_file = np.asarray(rigid.apply(gltf.gltf_from_world(scene), corners.astype(np.float64)))
    np.testing.assert_allclose(in_file[0], 0, atol=1e-6)
    np.testing.assert_allclose(in_file[1:, 2], -0.5, atol=1e-6)
    assert (np.sign(in_file[1:, :2]) == [[-1, 1], [1, 1], [1, -1], [-1, -1]]).all()
    assert np.linalg.det(gltf.gltf_from_world(scene)[:3, :3]) == pytest.approx(1)


def test_frusta_project_onto_the_image_corners(scene):
    cam_from_world = rigid.invert(np.asarray(scene.world_from_cam))
    in_camera = rigid.apply(cam_from_world, gltf.frusta(scene, 0.7)[:, 1:])
    pixels = np.asarray(camera.project(in_camera, scene.intrinsics))
    corners = [[-0.5, -0.5], [39.5, -0.5], [39.5, 31.5], [-0.5, 31.5]]
    np.testing.assert_allclose(pixels, np.tile(corners, (5, 1, 1)), atol=1e-3)


def test_file_holds_points_cameras_and_path(scene, loaded):
    cloud, data, result = loaded
    assert set(result.geometry) == {"points", "path", *(f"camera_{t:04d}" for t in range(5))}
    transform, _ = result.graph["points"]
    points = trimesh.transform_points(result.geometry["points"].vertices, transform)
    expected = np.asarray(rigid.apply(gltf.gltf_from_world(scene), cloud.points))
    np.testing.assert_allclose(points, expected, atol=1e-4)
    np.testing.assert_array_equal(result.geometry["points"].colors[:, :3], cloud.colours)
    length = struct.unpack("<I", data[12:16])[0]
    header = json.loads(data[20 : 20 + length])
    assert header["asset"]["version"] == "2.0"
    modes = sorted(p["mode"] for mesh in header["meshes"] for p in mesh["primitives"])
    assert modes[0] == 0 and set(modes[1:]) <= {1, 3}  # points; lines or line strips


def test_cameras_are_coloured_by_time():
    colours = gltf.camera_colours(9).astype(int)
    assert colours[0].argmax() == 2 and colours[-1].argmax() == 0  # blue to red
    assert len(np.unique(colours, axis=0)) == 9
