"""Folders of one's own: every format that a scene may come in, and every problem at once."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from align3r_jax.errors import UserError
from align3r_jax.io import depth_files
from data.readers import own_folder, training_sets
from data.readers.training import TrainingOptions
from tests.data.readers import checks, folders

FLIP = np.diag([1.0, -1, -1, 1])


def street(count=6, height=48, width=64, focal=60.0):
    """A textured floor and wall in front of a camera that walks and turns: exact depth."""
    intrinsics = np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1]])
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(intrinsics).T
    images, depths, poses = [], [], []
    for k in range(count):
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("y", 0.02 * k).as_matrix()
        pose[:3, 3] = 0.15 * k, 0, 0.1 * k
        directions, origin = rays @ pose[:3, :3].T, pose[:3, 3]
        with np.errstate(divide="ignore"):
            floor = (1.0 - origin[1]) / directions[..., 1]
        wall = (5.0 - origin[2]) / directions[..., 2]
        z = np.where((floor > 0) & (floor < wall), floor, wall)
        points = origin + z[..., None] * directions
        grey = 128 + 60 * np.sin(3 * points[..., 0]) + 60 * np.sin(4 * points.sum(-1))
        images.append(np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, -1))
        depths.append(z.astype(np.float32))
        poses.append(pose)
    masks = np.zeros((count, height, width), bool)
    return folders.World(
        np.stack(images), np.stack(depths), np.stack(poses), np.stack([intrinsics] * count), masks
    )


WORLD = street()


def cameras_json(world, *, size=None, names=None):
    names = names or [f"f{k}" for k in range(len(world.depth))]
    content = {
        "intrinsics": world.intrinsics[0].tolist(),
        "frames": [
            {"name": name, "world_from_cam": pose.tolist()}
            for name, pose in zip(names, world.world_from_cam)
        ],
    }
    return content | ({"image_size": size} if size else {})


def write(folder, world, *, suffix=".npy", cameras=None, scale=None):
    for k, depth in enumerate(world.depth):
        folders.picture(folder / "images" / f"f{k}.png", world.images[k])
        (folder / "depth").mkdir(parents=True, exist_ok=True)
        depth_files.write_depth(folder / "depth" / f"f{k}{suffix}", depth, scale=scale or 1000.0)
    if scale:
        folders.text(folder / "depth" / "depth.json", json.dumps({"scale": scale}))
    if cameras is None:
        cameras = cameras_json(world)
    if cameras:
        folders.text(folder / "cameras.json", json.dumps(cameras))
    return folder


def scenes(root, **options):
    return training_sets.scenes("folder", root, TrainingOptions(**options))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pfm", ".exr"])
def test_depth_formats(tmp_path, suffix):
    write(tmp_path / "a", WORLD, suffix=suffix)
    (scene,), skipped = scenes(tmp_path)
    assert (scene.dataset, scene.name, scene.frames[1]) == ("folder", "a", "f1") and not skipped
    checks.assert_scene(scene, WORLD)
    assert own_folder.validate(tmp_path) == []


def test_png_with_a_scale_and_inverse_depth(tmp_path):
    write(tmp_path / "png", WORLD, suffix=".png", scale=5000.0)
    inverse = tmp_path / "inverse"
    write(inverse, dataclasses.replace(WORLD, depth=1 / WORLD.depth))
    folders.text(inverse / "depth" / "depth.json", '{"inverse": true, "metric": true}')
    (first, second), _ = scenes(tmp_path)
    checks.assert_scene(first, WORLD)
    np.testing.assert_allclose(second.load(3).depth, WORLD.depth[3], atol=1.1e-4)
    assert own_folder.validate(tmp_path) == []


def colmap(folder, world):
    (fx, _, cx), (_, fy, cy) = world.intrinsics[0, 0], world.intrinsics[0, 1]
    height, width = world.depth.shape[1:]
    camera = f"1 PINHOLE {width} {height} {fx} {fy} {cx + 0.5} {cy + 0.5}\n"
    folders.text(folder / "sparse" / "0" / "cameras.txt", camera)
    lines = []
    for k, pose in enumerate(np.linalg.inv(world.world_from_cam)):
        x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
        numbers = folders.numbers([w, x, y, z, *pose[:3, 3]])
        lines += [f"{k + 1} {numbers} 1 f{k}.png", "0 0 -1"]
    folders.text(folder / "sparse" / "0" / "images.txt", "\n".join(lines) + "\n")


def nerfstudio(folder, world):
    (fx, _, cx), (_, fy, cy) = world.intrinsics[0, 0], world.intrinsics[0, 1]
    height, width = world.depth.shape[1:]
    frames = [
        {"file_path": f"images/f{k}.png", "transform_matrix": (pose @ FLIP).tolist()}
        for k, pose in enumerate(world.world_from_cam)
    ]
    content = {"fl_x": fx, "fl_y": fy, "cx": cx + 0.5, "cy": cy + 0.5, "w": width, "h": height}
    content["frames"] = frames
    folders.text(folder / "transforms.json", json.dumps(content))


def trajectory(folder, world):
    rows = [
        folders.numbers([k / 30, *pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()])
        for k, pose in enumerate(world.world_from_cam)
    ]
    folders.text(folder / "trajectory.txt", "\n".join(rows))
    folders.text(folder / "K.txt", "\n".join(map(folders.numbers, world.intrinsics[0])))


@pytest.mark.parametrize("cameras", [colmap, nerfstudio, trajectory])
def test_camera_formats(tmp_path, cameras):
    write(tmp_path, WORLD, cameras={})
    cameras(tmp_path, WORLD)
    (scene,), _ = scenes(tmp_path)  # the root is a scene itself
    assert scene.name == tmp_path.name
    checks.assert_scene(scene, WORLD)
    problems = own_folder.validate(tmp_path)
    assert all(problem.warning for problem in problems)
    assert len(problems) == (1 if cameras is trajectory else 0)  # taken in the order of the frames


def test_intrinsics_of_another_size(tmp_path):
    """Calibrated at three times the size: pixel centres lie at integers in both."""
    large = WORLD.intrinsics.copy()
    large[:, :2, 2] += 0.5
    large[:, :2] *= 3
    large[:, :2, 2] -= 0.5
    cameras = cameras_json(dataclasses.replace(WORLD, intrinsics=large), size=[144, 192])
    write(tmp_path, WORLD, cameras=cameras)
    checks.assert_scene(scenes(tmp_path)[0][0], WORLD)
    write(tmp_path, WORLD, cameras=cameras | {"image_size": [144, 180]})
    with pytest.raises(UserError, match="180 x 144 pixels, the picture has 64 x 48"):
        scenes(tmp_path)


def test_depth_in_order(tmp_path):
    write(tmp_path / "a", WORLD)
    for k in range(len(WORLD.depth)):
        (tmp_path / "a" / "depth" / f"f{k}.npy").rename(tmp_path / "a" / "depth" / f"z{k}.npy")
    checks.assert_scene(scenes(tmp_path)[0][0], WORLD)
    (problem,) = own_folder.validate(tmp_path)
    assert problem.warning and "taken in order" in problem.text


def test_splits_and_priors(tmp_path):
    write(tmp_path / "train" / "a", WORLD)
    write(tmp_path / "test" / "b", WORLD)
    assert [scenes(tmp_path, split=split)[0][0].name for split in ("train", "test")] == ["a", "b"]
    assert own_folder.validate(tmp_path) == []
    with pytest.raises(UserError, match="holds no test scenes of folder"):
        scenes(tmp_path / "train", split="test")
    for k in range(len(WORLD.depth)):
        path = tmp_path / "train" / "a" / "images" / f"f{k}_pred_depth_depthpro.npz"
        np.savez(path, depth=WORLD.depth[k] * 2, focallength_px=np.float32(50))
    frame = scenes(tmp_path, prior="depthpro")[0][0].load(1)
    np.testing.assert_array_equal(frame.prior_depth, WORLD.depth[1] * 2)


def test_every_problem_at_once(tmp_path):
    """One scene with many: all are told, with their frames; the reader refuses it."""
    folder = write(tmp_path / "bad", WORLD)
    write(tmp_path / "good", WORLD)
    cameras = cameras_json(WORLD)
    cameras["frames"][0]["world_from_cam"] = (2 * np.eye(4)[:3]).tolist()
    del cameras["frames"][1]
    cameras["frames"][1]["intrinsics"] = [[60, 0, 900], [0, 60, 24], [0, 0, 1]]
    folders.text(folder / "cameras.json", json.dumps(cameras))
    (folder / "depth" / "f3.npy").unlink()
    np.save(folder / "depth" / "f4.npy", np.ones((24, 32)))
    (folder / "images" / "f5.png").write_bytes(b"junk")
    folders.picture(folder / "images" / "f6.png", np.zeros((10, 10, 3), np.uint8))
    folders.picture(folder / "images" / "f6.jpg", WORLD.images[0])
    (tmp_path / "notes").mkdir()
    problems = own_folder.validate(tmp_path)
    told = {}
    for problem in problems:
        place = problem.scene, problem.frame
        told[place] = told.get(place, "") + problem.text * (not problem.warning)
    for frame, text in {
        "f0.png": "columns have the lengths 2, 2, 2",
        "f1.png": "no pose",
        "f2.png": r"principal point (900.0, 24.0) lies outside",
        "f3.png": "no depth map of its name",
        "f4.png": "is 32 x 24 pixels, the picture 64 x 48",
        "f5.png": "cannot be read",
        "f6.png": "must be of one size",
        None: "several pictures are named 'f6'",
    }.items():
        assert text in told["bad", frame], frame
    assert "it is no scene" in told["notes", None]
    assert not any(problem.scene == "good" for problem in problems)
    assert "error: bad/f3.png: no depth map of its name" in map(str, problems)
    found, skipped = scenes(tmp_path)
    assert [scene.name for scene in found] == ["good"]
    assert [scene.name for scene in skipped] == ["bad", "notes"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"depth": WORLD.depth * 1000}, "if depth is multiplied by 0.001"),
        ({"depth": WORLD.depth / 10}, "if depth is multiplied by 10"),
        ({"world_from_cam": np.linalg.inv(WORLD.world_from_cam)}, "the poses are cam_from_world"),
        ({"world_from_cam": WORLD.world_from_cam @ FLIP}, "OpenGL axes"),
        ({"depth": 1 / WORLD.depth}, "depth is inverse"),
        ({"world_from_cam": WORLD.world_from_cam[::-1]}, "do not fit together|fit much better"),
        ({"world_from_cam": WORLD.world_from_cam[[0] * 6]}, "all poses are the same"),
    ],
)
def test_what_only_projection_can_tell(tmp_path, change, sentence):
    write(tmp_path / "a", dataclasses.replace(WORLD, **change))
    problems = own_folder.validate(tmp_path)
    assert all(problem.warning for problem in problems)
    assert any(np.any([part in p.text for part in sentence.split("|")]) for p in problems), problems
    assert len(scenes(tmp_path)[0]) == 1  # warnings stop nothing


def test_units_lenses_and_jumps(tmp_path):
    world = dataclasses.replace(WORLD, depth=WORLD.depth * 1e6,
                                world_from_cam=WORLD.world_from_cam.copy())  # fmt: skip
    world.world_from_cam[5, :3, 3] += 40
    world.intrinsics[:] = np.diag([2000.0, 900.0, 1])
    world.intrinsics[:, :2, 2] = 30, 20
    try:
        write(tmp_path, world)
    finally:
        world.intrinsics[:] = street(1).intrinsics
    np.save(tmp_path / "depth" / "f0.npy", np.where(np.arange(3072) < 9, 1e6, 0).reshape(48, 64))
    text = "\n".join(map(str, own_folder.validate(tmp_path)))
    for sentence in ("median depth of 6 frames is beyond 400", "are both of one unit",
                     "fx and fy differ", "of the long side: unlikely", "only 0.29 %",
                     "the camera jumps by"):  # fmt: skip
        assert sentence in text, sentence


def test_cameras_that_are_missing_or_several(tmp_path):
    assert "does not exist" in own_folder.validate(tmp_path / "nowhere")[0].text
    assert "holds no scenes" in own_folder.validate(tmp_path)[0].text
    folder = write(tmp_path / "a", WORLD, cameras={})
    with pytest.raises(UserError, match="holds no cameras; expected one of"):
        scenes(tmp_path)
    trajectory(folder, WORLD)
    nerfstudio(folder, WORLD)
    with pytest.raises(UserError, match="'transforms.json' and 'trajectory.txt'"):
        scenes(tmp_path)
    (folder / "transforms.json").unlink()
    (folder / "K.txt").unlink()
    with pytest.raises(UserError, match=r"no intrinsics, and there is no intrinsics\.txt"):
        scenes(tmp_path)
    folders.text(folder / "depth" / "depth.json", '{"inverse": true}')
    texts = [problem.text for problem in own_folder.validate(tmp_path)]
    assert any("unknown scale and shift" in text for text in texts)
    assert any("there is no intrinsics.txt" in text for text in texts)
    for k in range(1, 6):
        (folder / "images" / f"f{k}.png").unlink()
    assert "one picture only" in own_folder.validate(tmp_path)[0].text
