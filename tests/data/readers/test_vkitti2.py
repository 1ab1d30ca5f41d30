"""Virtual KITTI 2 for training: both layouts, both cameras, the drive held out, damaged files."""

import dataclasses
import re

import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.io import png16
from data.readers import poses, training_sets, vkitti2
from data.readers.training import TrainingOptions
from tests.data.readers import checks, folders, synthetic_folders

ARCHIVES = ("rgb", "depth", "textgt")


@pytest.fixture(scope="module")
def cameras(training_world):
    """Ten times the room, so that centimetres are fine enough; the second is another camera."""
    poses = training_world.world_from_cam.copy()
    poses[:, :3, 3] *= 10
    intrinsics = training_world.intrinsics.copy()
    intrinsics[:, 0, 0] *= 1.25
    intrinsics[:, :2, 2] += 0.375, -0.25
    left = dataclasses.replace(
        training_world,
        depth=10 * training_world.depth,
        world_from_cam=poses,
        intrinsics=intrinsics,
    )
    return left, synthetic_folders.beside(left)


def read(root, **options):
    return training_sets.scenes("vkitti2", root, TrainingOptions(**options))


@pytest.mark.parametrize("apart", [True, False])
def test_raw_gives_back_the_world(tmp_path, cameras, apart):
    roots = {kind: tmp_path / f"vkitti_2.0.3_{kind}" if apart else tmp_path for kind in ARCHIVES}
    for scene, variation in (("Scene20", "15-deg-left"), ("Scene01", "fog"), ("Scene06", "rain")):
        synthetic_folders.vkitti2(roots, scene, variation, cameras)
    found, skipped = read(tmp_path)
    assert not skipped and [scene.name for scene in found] == [
        "Scene01_fog_left", "Scene01_fog_right", "Scene20_15-deg-left_left",
        "Scene20_15-deg-left_right",
    ]  # fmt: skip
    for scene, camera in zip(found[2:], cameras):
        # half a centimetre of 10 to 50 metres
        checks.assert_scene(scene, camera, depth=1e-3, images=False)
    assert found[0].frames[2] == "rgb_00002"
    assert [scene.name for scene in read(tmp_path, split="test")[0]] == [
        "Scene06_rain_left", "Scene06_rain_right"
    ]  # fmt: skip
    for split in ("train", "test"):
        assert len(read(tmp_path, split=split, parity=True)[0]) == 6


def test_sky_is_unknown(tmp_path, cameras):
    synthetic_folders.vkitti2(dict.fromkeys(ARCHIVES, tmp_path), "Scene02", "clone", cameras)
    path = tmp_path / "Scene02/clone/frames/depth/Camera_0/depth_00003.png"
    values = np.full(cameras[0].depth.shape[1:], 200, np.uint16)
    values[0, :5] = 65535, 60000, 59999, 40000, 0
    folders.picture(path, values)
    depth = read(tmp_path)[0][0].load(3).depth
    np.testing.assert_allclose(depth[0, :6], [0, 0, 599.99, 400, 0, 2], rtol=1e-6)


@pytest.mark.golden
def test_recorded_bytes_and_matrix(tmp_path, golden_dir, cameras):
    """A depth file and an extrinsic matrix whose decoded values were recorded."""
    with np.load(golden_dir / "datasets.npz") as stored:
        data, depth = stored["file/png16"].tobytes(), stored["decoded/png16_vkitti"]
        cam_from_world, expected = stored["pose/w2c_file"], stored["pose/w2c_cam2world"]
    height, width = depth.shape
    one = dataclasses.replace(
        cameras[0],
        images=cameras[0].images[:1, :height, :width],
        depth=depth[None],
        world_from_cam=np.linalg.inv(cam_from_world)[None],
        intrinsics=np.array([[[50.0, 0, 1], [0, 60, 1], [0, 0, 1]]]),
    )
    synthetic_folders.vkitti2(dict.fromkeys(ARCHIVES, tmp_path), "Scene18", "fog", (one, one))
    path = tmp_path / "Scene18/fog/frames/depth/Camera_1/depth_00000.png"
    path.write_bytes(data)
    frame = read(tmp_path)[0][1].load(0)
    np.testing.assert_allclose(frame.depth, np.where(depth < 600, depth, 0), rtol=1e-6)
    np.testing.assert_allclose(frame.world_from_cam, expected, atol=1e-9)
    assert png16.VALUES_PER_METRE["vkitti2"] == 100


def test_processed(tmp_path, training_world):
    for number in (0, 19, 20, 29, 30):
        folders.processed(
            tmp_path / "vkitti_proc" / f"scene{number:04d}_right",
            training_world,
            training_world.world_from_cam,
        )
    for root in (tmp_path, tmp_path / "vkitti_proc"):
        found, skipped = read(root)
        assert [scene.name[5:9] for scene in found] == ["0000", "0019", "0030"] and not skipped
        test = read(root, split="test")[0]
        assert [scene.name for scene in test] == ["scene0020_right", "scene0029_right"]
    checks.assert_scene(found[1], training_world, images=False)
    (tmp_path / "vkitti_proc/scene0019_right/00001_mask.png").unlink()
    found, skipped = read(tmp_path)
    assert len(found) == 2 and "the first is '00001_mask.png'" in skipped[0].reason


@pytest.fixture
def two(tmp_path, cameras):
    for variation in ("clone", "fog"):
        roots = dict.fromkeys(ARCHIVES, tmp_path)
        synthetic_folders.vkitti2(roots, "Scene01", variation, cameras)
    return tmp_path


def edit(path, change):
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("extrinsic.txt", lambda lines: lines[:-1], "extrinsic.txt' has no line of frame 3 of cam"),
        ("intrinsic.txt", lambda lines: lines[:2] + lines[4:], "intrinsic.txt' has no line of fra"),
        ("intrinsic.txt", lambda lines: lines[:1], "intrinsic.txt' holds 0 lines"),
        ("extrinsic.txt", lambda lines: [*lines[:4], "3 1 x\n"], "extrinsic.txt' holds no table"),
        ("extrinsic.txt", lambda lines: [*lines[:4], "3 1 0 0\n"], "columns changed from 18 to 4"),
        ("extrinsic.txt", lambda lines: ["\n", "0 0 1 0 0 0\n"], "of 6 numbers; .* 18 in every"),
    ],
)
def test_damaged_camera_files(two, file, change, sentence):
    edit(two / "Scene01/fog" / file, change)
    found, skipped = read(two)
    assert {"Scene01_clone_left", "Scene01_clone_right"} <= {scene.name for scene in found}
    assert "Scene01_fog_right" in {scene.name for scene in skipped}
    assert re.search(sentence, skipped[-1].reason), skipped[-1].reason


def test_rows_of_any_order_belong_to_their_frames(two, cameras):
    """Rows are found by the numbers in them."""
    for file in ("intrinsic.txt", "extrinsic.txt"):
        edit(two / "Scene01/fog" / file, lambda lines: [lines[0], *lines[:0:-1]])
    scene = next(scene for scene in read(two)[0] if scene.name == "Scene01_fog_right")
    checks.assert_scene(scene, cameras[1], depth=1e-3, images=False)
    intrinsics, world_from_cam = vkitti2.read_cameras(two / "Scene01/fog", 1)
    assert sorted(intrinsics) == sorted(world_from_cam) == [0, 1, 2, 3]
    expected = poses.from_extrinsics(np.linalg.inv(cameras[1].world_from_cam[2]))
    np.testing.assert_allclose(world_from_cam[2], expected, atol=1e-9)


def test_lost_depth_and_wrong_depth(two):
    folder = two / "Scene01/fog/frames/depth/Camera_1"
    folders.picture(folder / "depth_00000.png", np.zeros((24, 32), np.uint8))
    scene = next(scene for scene in read(two)[0] if scene.name == "Scene01_fog_right")
    with pytest.raises(UserError, match="depth_00000.png' is an 8-bit picture"):
        scene.load(0)
    folders.picture(folder / "depth_00001.png", np.zeros((12, 16), np.uint16))
    with pytest.raises(UserError, match=r"rgb_00001.jpg': depth is \(12, 16\), its picture"):
        scene.load(1)
    (folder / "depth_00002.png").unlink()
    skipped = read(two)[1]
    assert "1 of 4 frames have no depth map" in skipped[0].reason and len(skipped) == 1


def test_priors_lie_beside_the_pictures(two, cameras):
    """Of raw sets too: all frames of a scene have the prior, or the scene is left out."""
    for number, camera in enumerate(cameras):
        for k, depth in enumerate(camera.depth):
            folder = two / "Scene01/fog/frames/rgb" / f"Camera_{number}"
            path = folder / f"rgb_{k:05d}_pred_depth_depthpro.npz"
            np.savez(path, depth=depth / 2, focallength_px=np.float32(33))
    found, skipped = read(two, prior="depthpro")
    assert [scene.name for scene in found] == ["Scene01_fog_left", "Scene01_fog_right"]
    assert [scene.name for scene in skipped] == ["Scene01_clone_left", "Scene01_clone_right"]
    assert "4 of 4 frames have no prior 'depthpro'" in skipped[0].reason
    frame = checks.assert_scene(found[1], cameras[1], depth=1e-3, images=False)[2]
    np.testing.assert_array_equal(frame.prior_depth, cameras[1].depth[2] / 2)
    assert frame.prior_focal == 33
