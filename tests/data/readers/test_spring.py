"""Spring as training scenes: both layouts, the baseline, the poses, recorded bytes, bad files."""

import pickle

import h5py
import numpy as np
import pytest

from align3r_jax.errors import UserError
from data.readers import poses, training_sets
from data.readers.training import TrainingOptions
from tests.data.readers import checks, folders

BASELINE = 0.065
SKY = (slice(0, 2), slice(3, 7))  # rows, columns


def raw(root, name, world):
    """Disparity on a grid twice as fine: the samples at even places count, the others are wild."""
    folder = root / "train" / name
    for k, depth in enumerate(world.depth):
        folders.picture(folder / "frame_left" / f"frame_left_{k + 1:04d}.png", world.images[k])
        fine = np.full((2 * depth.shape[0], 2 * depth.shape[1]), 1e4, np.float32)
        fine[::2, ::2] = BASELINE * world.intrinsics[k, 0, 0] / depth
        path = folder / "disp1_left" / f"disp1_left_{k + 1:04d}.dsp5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["disparity"] = fine
    lens = [folders.numbers(matrix[[0, 1, 0, 1], [0, 1, 2, 2]]) for matrix in world.intrinsics]
    folders.text(folder / "cam_data" / "intrinsics.txt", "\n".join(lens))
    rows = [folders.numbers(matrix) for matrix in np.linalg.inv(world.world_from_cam)]
    folders.text(folder / "cam_data" / "extrinsics.txt", "\n".join(rows) + "\n")
    return folder


def processed(root, name, world):
    """As published: no baseline, 1000 fx at the sky, a mask at 400 of these units, E F."""
    folder = root / "spring_proc" / "train" / name
    stored = poses.spring_reference(np.linalg.inv(world.world_from_cam))
    folders.processed(folder, world, stored)
    for k, depth in enumerate(world.depth):
        values = depth / BASELINE
        values[SKY] = 1000 * world.intrinsics[k, 0, 0]
        folders.pfm(folder / f"{k:05d}_depth.pfm", values)
        folders.picture(folder / f"{k:05d}_mask.png", np.where(values < 400, 255, 0).astype("u1"))
    return folder


def scenes(root, **options):
    return training_sets.scenes("spring", root, TrainingOptions(**options))


def test_raw_layout(tmp_path, training_world):
    for name in ("0002", "0010"):
        raw(tmp_path, name, training_world)
    (scene,), skipped = scenes(tmp_path)
    assert (scene.dataset, scene.name, scene.pairs) == ("spring", "0002", None) and not skipped
    assert scene.frames[:2] == ("frame_left_0001", "frame_left_0002")
    checks.assert_scene(scene, training_world)
    (held_out,), _ = scenes(tmp_path, split="test")
    assert held_out.name == "0010"
    published, _ = scenes(tmp_path, split="test", parity=True)
    assert [scene.name for scene in published] == ["0002", "0010"]
    assert scenes(tmp_path / "train")[0][0].name == "0002"


def test_published_mistakes_on_request(tmp_path, training_world):
    raw(tmp_path, "0002", training_world)
    (scene,), _ = scenes(tmp_path, parity=True)
    frame = pickle.loads(pickle.dumps(scene)).load(1)
    depth = training_world.depth[1] / BASELINE
    np.testing.assert_allclose(frame.depth, np.where(depth < 400, depth, 0), rtol=1e-5)
    expected = np.linalg.inv(training_world.world_from_cam[1]) @ np.diag([1.0, -1, -1, 1])
    np.testing.assert_allclose(frame.world_from_cam, expected, atol=1e-12)


def test_processed_layout_is_put_right(tmp_path, training_world):
    """Metres beyond the 26 of the stored mask, and poses that bring pixels to the right places."""
    far = 8  # times as far and as fast: the world reaches to 40 m
    world = folders.World(
        training_world.images, far * training_world.depth, training_world.world_from_cam.copy(),
        training_world.intrinsics, training_world.dynamic_mask,
    )  # fmt: skip
    world.world_from_cam[:, :3, 3] *= far
    assert world.depth.max() > 27
    folder = processed(tmp_path, "0003", world)
    (scene,), _ = scenes(tmp_path)
    frame = pickle.loads(pickle.dumps(scene)).load(2)
    assert (frame.depth[SKY] == 0).all()
    for k in range(len(world.depth)):  # without the sky for the comparison by projection
        folders.pfm(folder / f"{k:05d}_depth.pfm", world.depth[k] / BASELINE)
    checks.assert_scene(scene, world, images=False)
    (published,), _ = scenes(tmp_path, parity=True)
    frame = published.load(0)
    stored = world.depth[0] / BASELINE
    stored[SKY] = 0
    np.testing.assert_allclose(frame.depth, np.where(stored < 400, stored, 0), rtol=1e-6)
    expected = poses.spring_reference(np.linalg.inv(world.world_from_cam[0]))
    np.testing.assert_allclose(frame.world_from_cam, expected)


@pytest.mark.golden
def test_recorded_bytes_and_poses(golden_dir, tmp_path):
    with np.load(golden_dir / "datasets.npz") as stored:
        recorded = {
            key: stored[key]
            for key in stored.files
            if key.startswith(("file/", "decoded/", "pose/"))
        }
    metres = recorded["decoded/dsp5_depth_metric"]
    extrinsics = recorded["pose/w2c_file"]
    folder = tmp_path / "train" / "0001"
    folders.binary(folder / "disp1_left" / "disp1_left_0001.dsp5", recorded["file/dsp5"].tobytes())
    image = np.zeros((*metres.shape, 3), np.uint8)
    folders.picture(folder / "frame_left" / "frame_left_0001.png", image)
    folders.text(folder / "cam_data" / "intrinsics.txt", "1000 1000 2 1\n")
    folders.text(folder / "cam_data" / "extrinsics.txt", folders.numbers(extrinsics))
    published = recorded["decoded/dsp5_depth_reference_align3r"]
    for parity, depth, pose in (
        (False, np.maximum(metres, 0), "w2c_cam2world"),
        (True, np.where(published < 400, published, 0), "spring_reference_align3r_cam2world"),
    ):
        frame = scenes(tmp_path, parity=parity)[0][0].load(0)
        np.testing.assert_allclose(frame.depth, depth, rtol=1e-6)
        np.testing.assert_allclose(frame.world_from_cam, recorded[f"pose/{pose}"], atol=1e-9)


def test_bad_folders(tmp_path, training_world):
    with pytest.raises(UserError, match="no train scenes of spring: expected train/0001"):
        scenes(tmp_path)
    for name in ("0001", "0002", "0003", "0004", "0005"):
        raw(tmp_path, name, training_world)
    train = tmp_path / "train"
    (train / "0001" / "disp1_left" / "disp1_left_0003.dsp5").unlink()
    folders.text(train / "0002" / "cam_data" / "extrinsics.txt", "1 2 3\n")
    lens = (train / "0003" / "cam_data" / "intrinsics.txt").read_text().splitlines()
    folders.text(train / "0003" / "cam_data" / "intrinsics.txt", "\n".join(lens[1:]))
    (train / "0004" / "frame_left" / "frame_left_0002.png").unlink()
    found, skipped = scenes(tmp_path)
    assert [scene.name for scene in found] == ["0005"]
    for scene, sentence in zip(
        skipped, ("disp1_left_0003.dsp5", "16 in every line", "has 3 lines for 4", "are missing")
    ):
        assert sentence in scene.reason, scene
    (train / "0005" / "disp1_left" / "disp1_left_0001.dsp5").write_bytes(b"junk")
    with h5py.File(train / "0005" / "disp1_left" / "disp1_left_0002.dsp5", "w") as file:
        file["disparity"] = np.ones((6, 8), np.float32)
    with pytest.raises(UserError, match="disp1_left_0001.dsp5' cannot be read as HDF5"):
        found[0].load(0)
    with pytest.raises(UserError, match=r"frame_left_0002.png': depth is \(3, 4\)"):
        found[0].load(1)
