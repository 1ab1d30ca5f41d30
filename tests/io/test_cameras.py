"""Cameras of every known format, matched to frames, or refused with a sentence."""

import json
import struct

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from align3r_jax.errors import UserError
from align3r_jax.io import cameras, trajectory
from align3r_jax.structs import Frames, WorkingSize

SIZE = WorkingSize(original=(48, 64), resized=(48, 64), crop=(0, 0), working=(48, 64))


def frames_named(names, times=None):
    count = len(names)
    times = np.arange(count) / 10 if times is None else np.asarray(times)
    return Frames(np.zeros((count, 48, 64, 3), np.uint8), times, SIZE, tuple(names)).check()


def some_poses(count):
    poses = np.tile(np.eye(4), (count, 1, 1))
    rotations = Rotation.from_rotvec(np.random.default_rng(1).normal(size=(count, 3)))
    poses[:, :3, :3] = rotations.as_matrix()
    poses[:, :3, 3] = np.random.default_rng(0).normal(size=(count, 3))
    return poses


def colmap_numbers(pose):
    cam_from_world = np.linalg.inv(pose)
    x, y, z, w = Rotation.from_matrix(cam_from_world[:3, :3]).as_quat()
    return [w, x, y, z, *cam_from_world[:3, 3]]


def write_colmap_text(folder, poses, names, camera="1 SIMPLE_PINHOLE 64 48 50 32 24", points=True):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text(f"# comment\n{camera}\n")
    lines = ["# comment"]
    for k, (pose, name) in enumerate(zip(poses, names)):
        numbers = " ".join(map(repr, map(float, colmap_numbers(pose))))
        lines.append(f"{k + 1} {numbers} 1 {name}")
        if points:
            lines.append("" if k % 2 else "1.5 2.5 -1 3.0 4.0 7")
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_colmap_binary(folder, poses, names):
    folder.mkdir(parents=True, exist_ok=True)
    camera = struct.pack("<QiiQQ4d", 1, 1, 1, 64, 48, 50, 51, 32, 24)
    (folder / "cameras.bin").write_bytes(camera)
    content = struct.pack("<Q", len(poses))
    for k, (pose, name) in enumerate(zip(poses, names)):
        content += struct.pack("<i7di", k + 1, *colmap_numbers(pose), 1) + name.encode() + b"\0"
        content += struct.pack("<Q", k) + b"\1" * (24 * k)
    (folder / "images.bin").write_bytes(content)


@pytest.mark.parametrize("points", [True, False])
def test_colmap_text(tmp_path, points):
    poses, names = some_poses(3), ["b.png", "sub/a.png", "c d.png"]
    write_colmap_text(tmp_path / "sparse" / "0", poses, names, points=points)
    file = cameras.read_cameras(tmp_path)
    assert file.format == "COLMAP" and file.names == tuple(names) and file.notes == ()
    np.testing.assert_allclose(file.world_from_cam, poses, atol=1e-12)
    # COLMAP puts the corner of the image at 0, we the centre of the first pixel.
    np.testing.assert_allclose(file.intrinsics[0], [[50, 0, 31.5], [0, 50, 23.5], [0, 0, 1]])
    np.testing.assert_allclose(file.image_sizes[1], [48, 64])
    matched = cameras.match(file, frames_named(["a", "b", "other"]))
    np.testing.assert_allclose(matched.world_from_cam[:2], poses[[1, 0]], atol=1e-12)
    assert np.isnan(matched.world_from_cam[2]).all() and np.isnan(matched.intrinsics[2]).all()
    assert "2 of 3 frames" in matched.notes[0]


def test_colmap_binary_file_of_a_folder(tmp_path):
    poses = some_poses(3)
    write_colmap_binary(tmp_path, poses, ["000.jpg", "001.jpg", "002.jpg"])
    file = cameras.read_cameras(tmp_path / "images.bin")
    np.testing.assert_allclose(file.world_from_cam, poses, atol=1e-12)
    np.testing.assert_allclose(np.diagonal(file.intrinsics[2]), [50, 51, 1])
    (tmp_path / "images.bin").write_bytes((tmp_path / "images.bin").read_bytes()[:100])
    with pytest.raises(UserError, match="file of COLMAP"):
        cameras.read_cameras(tmp_path)


def test_colmap_distortion(tmp_path):
    poses, names = some_poses(2), ["a", "b"]
    bent = write_colmap_text(tmp_path, poses, names, "1 SIMPLE_RADIAL 64 48 50 32 24 0.1")
    (note,) = cameras.read_cameras(bent).notes
    # r^2 = (32^2 + 24^2) / 50^2, shift = f k r^3.
    assert f"{0.1 * 40**3 / 50**2:.1f} pixels" in note and "Undistort" in note
    straight = write_colmap_text(tmp_path, poses, names, "1 OPENCV 64 48 50 50 32 24 1e-6 0 0 0")
    assert cameras.read_cameras(straight).notes == ()
    fisheye = write_colmap_text(
        tmp_path, poses, names, "1 OPENCV_FISHEYE 64 48 50 50 32 24 0 0 0 0"
    )
    with pytest.raises(UserError, match="OPENCV_FISHEYE"):
        cameras.read_cameras(fisheye)


def test_colmap_camera_without_images_holds_for_every_frame(tmp_path):
    (tmp_path / "cameras.txt").write_text("1 PINHOLE 64 48 50 50 32 24\n")
    matched = cameras.match(cameras.read_cameras(tmp_path), frames_named(["a", "b"]))
    assert matched.world_from_cam is None
    np.testing.assert_allclose(matched.intrinsics[:, 0, 2], [31.5, 31.5])


def test_nerfstudio_axes_and_focals(tmp_path):
    poses = some_poses(2)
    opengl = poses * [1, -1, -1, 1]  # y and z axes of the camera turned round
    frames = [
        {"file_path": f"images/f{k}.png", "transform_matrix": pose[: 3 + k].tolist()}
        for k, pose in enumerate(opengl)
    ]
    content = {"w": 64, "h": 48, "fl_x": 50, "fl_y": 51, "cx": 32, "cy": 24, "frames": frames}
    path = tmp_path / "transforms.json"
    path.write_text(json.dumps(content))
    file = cameras.read_cameras(tmp_path)
    assert file.format == "nerfstudio"
    np.testing.assert_allclose(file.world_from_cam, poses, atol=1e-12)
    np.testing.assert_allclose(file.intrinsics[1], [[50, 0, 31.5], [0, 51, 23.5], [0, 0, 1]])
    matched = cameras.match(file, frames_named(["f1", "f0"]))
    np.testing.assert_allclose(matched.world_from_cam, poses[::-1], atol=1e-12)
    angle = {"w": 64, "h": 48, "camera_angle_x": float(2 * np.arctan(0.5)), "frames": frames}
    path.write_text(json.dumps(angle))
    np.testing.assert_allclose(cameras.read_cameras(path).intrinsics[0, 0, 0], 64)
    path.write_text(json.dumps({"frames": frames}))
    assert cameras.read_cameras(path).intrinsics is None
    path.write_text(json.dumps(content | {"k1": 0.2}))
    assert "distortion" in cameras.read_cameras(path).notes[0]
    path.write_text(json.dumps(content | {"camera_model": "OPENCV_FISHEYE"}))
    with pytest.raises(UserError, match="FISHEYE"):
        cameras.read_cameras(path)


def test_tum_by_time_by_order_and_by_named_time(tmp_path):
    poses = some_poses(4)
    path = tmp_path / "groundtruth.txt"
    trajectory.write_tum(path, np.array([0.0, 0.12, 0.16, 0.3]), poses)
    matched = cameras.match(cameras.read_cameras(path), frames_named("abcd"))
    assert np.isnan(matched.world_from_cam[2, 0, 0]) == False  # noqa: E712  (0.16 is near 0.2)
    np.testing.assert_allclose(matched.world_from_cam, poses, atol=1e-7)
    few = cameras.match(cameras.read_cameras(path), frames_named("ab", [0.0, 1.0]))
    assert np.isfinite(few.world_from_cam[0]).all() and np.isnan(few.world_from_cam[1]).all()

    trajectory.write_tum(path, 1.3e9 + np.arange(4) / 10, poses)
    file = cameras.read_cameras(path)
    assert "another clock" in cameras.match(file, frames_named("abcd")).notes[0]
    with pytest.raises(UserError, match="another clock"):
        cameras.match(file, frames_named("abc"))
    named = frames_named(["1300000000.1004", "1300000000.2001", "1300000000.5000"])
    by_name = cameras.match(file, named).world_from_cam
    np.testing.assert_allclose(by_name[:2], poses[1:3], atol=1e-7)
    assert np.isnan(by_name[2]).all()


def test_intrinsics_alone(tmp_path):
    path = tmp_path / "K.txt"
    path.write_text("50 0 31.5\n0 50 23.5\n0 0 1\n")
    matched = cameras.match(cameras.read_cameras(path), frames_named("abc"))
    assert matched.intrinsics.shape == (3, 3, 3) and matched.world_from_cam is None
    path.write_text("50 0 31 0 50 23 0 0 1\n51 0 31 0 51 23 0 0 1\n")
    matched = cameras.match(cameras.read_cameras(path), frames_named("ab"))
    np.testing.assert_allclose(matched.intrinsics[:, 0, 0], [50, 51])
    with pytest.raises(UserError, match="one per frame"):
        cameras.match(cameras.read_cameras(path), frames_named("abc"))


def test_plain_json(tmp_path):
    path, poses = tmp_path / "cameras.json", some_poses(2)
    path.write_text(json.dumps({
        "image_size": [96, 128], "intrinsics": {"fx": 100, "cx": 63.5, "cy": 47.5},
        "frames": [
            {"index": 7, "world_from_cam": poses[0].tolist()},
            {"index": 3, "cam_from_world": np.linalg.inv(poses[1])[:3].tolist()},
            {"index": 5, "intrinsics": [[90, 0, 60], [0, 90, 40], [0, 0, 1]]},
        ],
    }))  # fmt: skip
    matched = cameras.match(cameras.read_cameras(path), frames_named(["000003", "000005"]))
    np.testing.assert_allclose(matched.world_from_cam[0], poses[1], atol=1e-12)
    assert np.isnan(matched.world_from_cam[1]).all()
    np.testing.assert_allclose(matched.intrinsics[:, 0, 0], [100, 90])
    np.testing.assert_allclose(matched.image_sizes, [[96, 128]] * 2)


POSE = np.eye(4).tolist()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"frames": [{"name": "a", "pose": POSE}]}, ["'pose'", "world_from_cam"]),
        ({"frames": [{"name": "a", "world_from_cam": [1, 2]}]}, ["frame 0", "4x4"]),
        ({"frames": [{"name": "a", "time": 0.0, "world_from_cam": POSE}]}, ["same one"]),
        ({"intrinsics": {"fx": -5, "cx": 1, "cy": 1}}, ["positive"]),
        ({}, ["neither"]),
        ({"frames": [{"name": "a", "world_from_cam": POSE}] * 2}, ["'a'", "more than once"]),
        ({"frames": [{"name": "zzz", "world_from_cam": POSE}]}, ["'zzz'", "numbers differ"]),
        ({"frames": [{"index": 1, "world_from_cam": POSE}]}, ["name instead of index"]),
    ],
)
def test_bad_json_is_a_sentence(tmp_path, content, words):
    path = tmp_path / "cameras.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        cameras.match(cameras.read_cameras(path), frames_named("ab"))
    assert all(word in str(caught.value) for word in words), caught.value


def test_unknown_files_name_the_known_formats(tmp_path):
    (tmp_path / "x.txt").write_text("1 2 3 4\n")
    for path in (tmp_path, tmp_path / "x.txt"):
        with pytest.raises(UserError, match="COLMAP"):
            cameras.read_cameras(path)
    with pytest.raises(UserError, match="do not exist"):
        cameras.read_cameras(tmp_path / "missing.json")


def test_names_that_agree_in_their_number_only(tmp_path):
    poses = some_poses(2)
    write_colmap_text(tmp_path, poses, ["frame_00012.png", "frame_00007.png"])
    matched = cameras.match(cameras.read_cameras(tmp_path), frames_named(["000007", "000012"]))
    np.testing.assert_allclose(matched.world_from_cam, poses[::-1], atol=1e-12)
    assert "by number" in matched.notes[0]
