"""Processed folders as training scenes: masks, poses, priors, and what may be wrong with them."""

import numpy as np
import pytest

from align3r_jax.errors import UserError
from data.readers import poses, processed_training
from data.readers.training import TrainingOptions
from tests.data.readers import checks, folders


@pytest.fixture
def folder(tmp_path, training_world):
    folders.processed(tmp_path / "clip", training_world, training_world.world_from_cam)
    return tmp_path / "clip"


def scene(folder, *arguments, prior=None, **keywords):
    options = TrainingOptions(prior=prior)
    return processed_training.processed_scene(
        folder, "clip", "some", options, *arguments, **keywords
    )


def store_priors(folder, name, maps, focal):
    for index, depth in enumerate(maps):
        path = folder / f"{index:05d}_rgb_pred_depth_{name}.npz"
        np.savez(path, depth=depth, focallength_px=np.float32(focal))


def test_frames_and_cameras(folder, training_world):
    read = scene(folder)
    assert (read.dataset, read.name) == ("some", "clip")
    assert read.frames == ("00000", "00001", "00002", "00003")
    frames = checks.assert_scene(read, training_world, images=False)
    truth = training_world.images[2].astype(int)
    # JPEG is nearly the picture; red and blue are not swapped
    assert np.abs(frames[2].image - truth).mean() < 20
    assert np.abs(frames[2].image - truth[..., ::-1]).mean() > 40
    assert frames[0].prior_depth is None and frames[0].prior_focal is None


def test_conversion_of_poses_and_units(folder, training_world):
    stored = poses.processed_pointodyssey(np.linalg.inv(training_world.world_from_cam))
    folders.processed(folder, training_world, stored)
    checks.assert_scene(
        scene(folder, poses.from_processed_pointodyssey), training_world, images=False
    )
    scaled = scene(folder, depth_scale=0.065).load(1)
    np.testing.assert_allclose(scaled.depth, 0.065 * training_world.depth[1], rtol=1e-6)


def test_depth_counts_where_the_mask_is_white(folder, training_world):
    mask = np.full(training_world.depth.shape[1:], 255, np.uint8)
    mask[3:9, 5:] = 0
    folders.picture(folder / "00001_mask.png", mask)
    depth = training_world.depth[1].copy()
    depth[0, :3] = np.nan, np.inf, -1
    folders.pfm(folder / "00001_depth.pfm", depth)
    got = scene(folder).load(1).depth
    expected = np.where(mask == 255, training_world.depth[1], 0)
    expected[0, :3] = 0
    np.testing.assert_array_equal(got, expected)


def test_prior_of_the_size_of_the_picture(folder, training_world):
    maps = 2 * training_world.depth + 1
    store_priors(folder, "depthpro", maps, 31.5)
    frame = scene(folder, prior="depthpro").load(3)
    np.testing.assert_array_equal(frame.prior_depth, maps[3])
    assert frame.prior_focal == 31.5 and frame.prior_depth.dtype == np.float32


def test_depth_anything_at_the_size_of_its_network(folder, training_world):
    """(1, h, w) is stretched to the picture; the focal is the data set's, not the file's 200."""
    ramp = np.broadcast_to(np.arange(64, dtype=np.float32), (4, 1, 46, 64))
    store_priors(folder, "depthanything", ramp, 200)
    frame = scene(folder, prior="depthanything").load(0)
    width = training_world.depth.shape[2]
    # bilinear with edges aligned: the value at column x is that of source column 2 x + 0.5
    expected = 64 / width * (np.arange(width) + 0.5) - 0.5
    np.testing.assert_allclose(
        frame.prior_depth, np.broadcast_to(expected, frame.depth.shape), atol=1e-4
    )
    assert frame.prior_focal == pytest.approx(training_world.intrinsics[0, 0, 0])


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("depthpro", (46, 64), r"00000_rgb_pred_depth_depthpro.npz' is \(46, 64\)"),
        ("depthanything", (64, 46), "Estimate it again"),
        ("depthanything", (2, 46, 64), "expected one depth map"),
    ],
)
def test_priors_of_wrong_size(folder, name, shape, sentence):
    store_priors(folder, name, np.ones((4, *shape), np.float32), 30)
    with pytest.raises(UserError, match=sentence):
        scene(folder, prior=name).load(0)


def test_missing_and_damaged_priors(folder, training_world):
    store_priors(folder, "depthpro", training_world.depth[:3], 30)
    with pytest.raises(
        UserError, match=r"1 of 4 .*no prior.*estimate_priors.*00003_rgb_pred_depth_depth"
    ):
        scene(folder, prior="depthpro")
    store_priors(folder, "depthpro", training_world.depth, 30)
    whole = scene(folder, prior="depthpro")
    path = folder / "00002_rgb_pred_depth_depthpro.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=f"'{path}' cannot be read"):
        whole.load(2)
    path.unlink()
    with pytest.raises(UserError, match=f"'{path}' cannot be read"):
        whole.load(2)
    whole.load(1)


@pytest.mark.parametrize("part", ["_depth.pfm", "_mask.png", "_metadata.npz"])
def test_lost_and_damaged_files_are_named(folder, part):
    path = folder / f"00002{part}"
    content = path.read_bytes()
    path.write_bytes(content[:30])
    with pytest.raises(UserError, match=f"'{path}'"):
        scene(folder).load(2)
    path.unlink()
    with pytest.raises(UserError, match=f"1 files of the 4 frames .*first is '00002{part}'"):
        scene(folder)


def test_other_folders_and_sizes_are_refused(folder, training_world):
    folders.pfm(folder / "00001_depth.pfm", training_world.depth[1, :-1])
    with pytest.raises(UserError, match=r"00001_depth.pfm' \(23, 32\)"):
        scene(folder).load(1)
    with pytest.raises(UserError, match="holds no processed frames"):
        scene(folder.parent)
