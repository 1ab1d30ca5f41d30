"""PointOdyssey as training scenes: both layouts, splits, priors, MonST3R's choice, bad files."""

import numpy as np
import pytest

from align3r_jax.errors import UserError
from data.readers import poses, training_sets
from data.readers.training import TrainingOptions
from tests.data.readers import checks, folders

HALF_STEP = 0.5 / 65.535  # metres; the files hold 65.535 values per metre


def scenes(root, **options):
    return training_sets.scenes("pointodyssey", root, TrainingOptions(**options))


@pytest.fixture
def raw(tmp_path, training_world):
    folders.pointodyssey(tmp_path, "ani", training_world)
    (tmp_path / "val").rename(tmp_path / "train")
    folders.pointodyssey(tmp_path, "gso", training_world)
    return tmp_path


def test_raw_layout(raw, training_world):
    (scene,), skipped = scenes(raw)
    assert (scene.dataset, scene.name, scene.frames[3]) == ("pointodyssey", "ani", "rgb_00003")
    assert not skipped
    nearest = training_world.depth.min()
    exact = folders.World(
        training_world.images, np.round(training_world.depth * 65.535) / 65.535,
        training_world.world_from_cam, training_world.intrinsics, training_world.dynamic_mask,
    )  # fmt: skip
    checks.assert_scene(scene, exact, images=False)
    read = scene.load(0).depth
    np.testing.assert_allclose(read, training_world.depth[0], rtol=HALF_STEP / nearest * 1.01)
    assert scenes(raw, split="test")[0][0].name == "gso"
    assert scenes(raw, split="test", parity=True)[0][0].name == "ani"
    assert scenes(raw / "train")[0][0].name == "ani"
    with pytest.raises(UserError, match="holds no train scenes"):
        scenes(raw / "val")


def test_processed_layout(tmp_path, training_world):
    stored = poses.processed_pointodyssey(np.linalg.inv(training_world.world_from_cam))
    folder = tmp_path / "PointOdyssey_proc" / "train" / "ani"
    folders.processed(folder, training_world, stored)
    (scene,), _ = scenes(tmp_path)
    checks.assert_scene(scene, training_world, images=False)
    _, skipped = training_sets.reader("pointodyssey").scenes(
        tmp_path, TrainingOptions(variant="monst3r")
    )
    assert "needs the raw layout" in skipped[0].reason


@pytest.mark.golden
def test_recorded_pose_of_processed_folders(golden_dir, tmp_path, training_world):
    with np.load(golden_dir / "datasets.npz") as stored:
        saved = stored["pose/pointodyssey_saved_metadata"]
        expected = stored["pose/pointodyssey_loader_cam2world"]
        world_from_cam = stored["pose/w2c_cam2world"]
    folder = tmp_path / "PointOdyssey_proc" / "train" / "ani"
    folders.processed(folder, training_world, np.stack([saved] * 4))
    pose = scenes(tmp_path)[0][0].load(0).world_from_cam
    np.testing.assert_allclose(pose, expected, atol=1e-9)
    # Of the raw pose it differs by a turn of the world alone.
    turn = pose @ np.linalg.inv(world_from_cam)
    np.testing.assert_allclose(turn, np.diag([1.0, -1, -1, 1]), atol=1e-9)


def test_scenes_of_few_trajectories_are_left_out_for_monst3r(raw, training_world):
    folders.pointodyssey(raw, "few", training_world)
    folders.pointodyssey(raw, "untold", training_world)
    for name in ("few", "untold"):
        (raw / "val" / name).rename(raw / "train" / name)
    np.savez(raw / "train" / "ani" / "info.npz", trajs_3d=np.array([4, 17, 3]))
    np.savez(raw / "train" / "few" / "info.npz", trajs_3d=np.array([4, 16, 3]))
    found, skipped = scenes(raw, variant="monst3r")
    assert [scene.name for scene in found] == ["ani"]
    assert [scene.name for scene in skipped] == ["few", "untold"]
    assert "16 trajectories" in skipped[0].reason and "does not tell" in skipped[1].reason
    assert len(scenes(raw)[0]) == 3


def test_priors_beside_the_pictures(raw, training_world):
    with pytest.raises(UserError, match="prior 'depthpro'"):
        scenes(raw, prior="depthpro")
    for k, depth in enumerate(training_world.depth):
        path = raw / "train" / "ani" / "rgbs" / f"rgb_{k:05d}_pred_depth_depthpro.npz"
        np.savez(path, depth=depth * 1.1, focallength_px=np.float32(30 + k))
    frame = scenes(raw, prior="depthpro")[0][0].load(2)
    np.testing.assert_allclose(frame.prior_depth, training_world.depth[2] * 1.1, rtol=1e-6)
    assert frame.prior_focal == 32


def test_bad_folders(raw, training_world):
    folder = raw / "train" / "ani"
    np.savez(folder / "anno.npz", intrinsics=np.ones((3, 3, 3)), extrinsics=np.ones((3, 4, 4)))
    with pytest.raises(UserError, match="has 3 cameras for 4 pictures"):
        scenes(raw)
    (folder / "anno.npz").write_bytes(b"junk")
    with pytest.raises(UserError, match="holds no cameras"):
        scenes(raw)
    (folder / "depths" / "depth_00001.png").unlink()
    with pytest.raises(UserError, match="depth_00001.png"):
        scenes(raw)
    with pytest.raises(UserError, match="no variant 'few'; known are: monst3r"):
        scenes(raw, variant="few")
