"""Each data set in its public format, written from a rendered world, is read back as that world."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from align3r_jax.errors import UserError
from data.readers import datasets, sintel, tum
from data.readers.sequence import FailedSequence, ReaderOptions
from tests.data.readers import folders

COUNT = 8


@pytest.fixture(scope="module")
def world():
    return folders.sample_world(COUNT)


def read(dataset, root, task, **options):
    """The only sequence."""
    (sequence,) = datasets.sequences(dataset, root, task, ReaderOptions(**options))
    assert not isinstance(sequence, FailedSequence), sequence.reason
    return sequence


def assert_world(sequence, world, frames=slice(None), depth=1e-6, poses=1e-12):
    """Depth within `depth` metres, poses, intrinsics and size are those of the world's frames."""
    expected = world.depth[frames]
    assert sequence.num_frames == len(expected)
    got = sequence.depth()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=depth)
    np.testing.assert_allclose(sequence.world_from_cam, world.world_from_cam[frames], atol=poses)
    np.testing.assert_allclose(sequence.intrinsics, world.intrinsics[frames], rtol=1e-12)
    assert sequence.image_size == world.depth.shape[1:]
    assert sequence.load_image(sequence.images[0]).shape == (*sequence.image_size, 3)


def static_flow(world):
    """Flow of a world that stands still, by projection in float64."""
    height, width = world.depth.shape[1:]
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x, y, np.ones_like(x)], -1).astype(np.float64)
    flows = []
    for k in range(len(world.depth) - 1):
        points = pixels @ np.linalg.inv(world.intrinsics[k]).T * world.depth[k][..., None]
        step = np.linalg.inv(world.world_from_cam[k + 1]) @ world.world_from_cam[k]
        seen = (points @ step[:3, :3].T + step[:3, 3]) @ world.intrinsics[k + 1].T
        flows.append(seen[..., :2] / seen[..., 2:] - pixels[..., :2])
    return np.stack(flows)


def test_sintel(tmp_path, world):
    flow = static_flow(world)
    moving = world.dynamic_mask[:-1]
    flow[moving] += 0.2
    folders.sintel(tmp_path, "alley_2", world, flow)
    sequence = read("sintel", tmp_path, "motion", sequences=("alley_2",))
    assert_world(sequence, world)
    assert sequence.frame_names[0] == "frame_0001"
    np.testing.assert_allclose(sequence.flow(), flow, atol=1e-5)
    assert moving.any() and not moving.all()
    mask = sequence.dynamic_mask()
    assert sequence.mask_frames == tuple(range(COUNT - 1))  # nothing follows the last frame
    np.testing.assert_array_equal(mask[:-1], moving)
    blunt = read(
        "sintel", tmp_path, "motion", sequences=("alley_2",), motion_threshold=0.3, stride=3
    )
    assert blunt.frame_names == ("frame_0001", "frame_0004", "frame_0007") and blunt.flow is None
    assert not blunt.dynamic_mask().any()
    clean = read("sintel", tmp_path, "video_depth", sequences=("alley_2",), render_pass="clean")
    np.testing.assert_array_equal(clean.load_image(clean.images[0]), 255 - world.images[0])
    assert clean.prior_files("depthpro")[0] == (
        tmp_path / "training/depth_prediction_depthpro/alley_2/frame_0001.npz"
    )
    label = np.where(world.dynamic_mask[1], 255, 0).astype(np.uint8)
    folders.picture(tmp_path / "training/dynamic_label_perfect/alley_2/frame_0002.png", label)
    stored = read("sintel", tmp_path, "motion", sequences=("alley_2",))
    assert stored.mask_frames == (1,)
    np.testing.assert_array_equal(stored.dynamic_mask()[1], world.dynamic_mask[1])


def test_sintel_lists(tmp_path, world):
    folders.sintel(tmp_path, "alley_2", world, static_flow(world))
    for task, names in (("video_depth", sintel.ALL), ("camera_pose", sintel.POSE)):
        found = datasets.sequences("sintel", tmp_path, task)
        assert [item.name for item in found] == list(names)
        failed = [item for item in found if isinstance(item, FailedSequence)]
        assert len(failed) == len(names) - 1
        assert "training/final/" in failed[0].reason and "does not exist" in failed[0].reason
    assert (len(sintel.ALL), len(sintel.POSE)) == (23, 14)


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize(
    ("dataset", "name"),
    [("tum", "rgbd_dataset_freiburg3_walking_xyz"), ("bonn", "rgbd_bonn_crowd2")],
)
def test_tum_and_bonn_by_time(tmp_path, world, dataset, name, tables):
    # Names without trailing zeros: by its digits, .9 would come before .86633.
    stamps = 1548266469.9 + (np.arange(COUNT) - 1) * 0.033735
    stamps[0] = 1548266469.86633
    folders.tum(tmp_path / name, world, stamps, tables=tables)
    (tmp_path / name / "K.txt").write_text(
        "\n".join(folders.numbers(row) for row in world.intrinsics[0])
    )
    for task in ("video_depth", "camera_pose"):
        sequence = read(dataset, tmp_path, task, sequences="found", start=0, stride=1, max_frames=0)
        assert_world(sequence, world, depth=1.01e-4)
        np.testing.assert_allclose(sequence.times, np.round(stamps, 5), atol=2e-6)
    alone = read(
        dataset, tmp_path / name, "camera_pose", sequences="found", start=1, stride=2, max_frames=3
    )
    assert_world(alone, world, slice(1, 6, 2), depth=1.01e-4)
    folder = tmp_path / name / "rgb_depth_prediction_depthpro"
    assert alone.prior_files("depthpro")[0].parent == folder


def test_tum_other_associations(tmp_path, world):
    folder = tmp_path / "rgbd_dataset_freiburg3_sitting_rpy"
    stamps = 1305031102.175304 + np.arange(COUNT) / 30
    folders.tum(folder, world, stamps, tables=False)
    every = {"start": 0, "stride": 1, "max_frames": 0, "sequences": ("sitting_rpy",)}
    rows = np.loadtxt(folder / "groundtruth.txt")
    wrong = read(
        "tum", tmp_path, "camera_pose", **every | {"start": 2}, association="reference_rows"
    )
    np.testing.assert_array_equal(wrong.world_from_cam[:, :3, 3], rows[2:COUNT, 1:4])
    np.testing.assert_array_equal(
        wrong.intrinsics[0], [[535.4, 0, 320.1], [0, 539.2, 247.6], [0, 0, 1]]
    )
    # A lost depth map shifts the k-th of one against the k-th of the other, but not the times.
    depth = sorted((folder / "depth").iterdir())
    depth[3].unlink()
    by_time = read("tum", tmp_path, "video_depth", **every)
    kept = [k for k in range(COUNT) if k != 3]
    np.testing.assert_allclose(by_time.depth(), world.depth[kept], atol=1.01e-4)
    np.testing.assert_allclose(by_time.world_from_cam, world.world_from_cam[kept], atol=1e-12)
    assert any("1 of 8 pictures have no partner" in note for note in by_time.notes)
    shifted = read("tum", tmp_path, "video_depth", **every, association="position")
    np.testing.assert_allclose(shifted.depth(), world.depth[kept], atol=1.01e-4)
    assert shifted.frame_names[3] < by_time.frame_names[3]  # its depth is that of the next frame
    assert shifted.world_from_cam is None and "by position" in " ".join(shifted.notes)


def test_bonn_camera_axes(tmp_path, world):
    """The calibration turns the markers' pose into the camera's: a rigid motion about as long."""
    folders.tum(tmp_path / "rgbd_bonn_crowd2", world, 5 + np.arange(COUNT) / 30, tables=True)
    options = {"sequences": ("crowd2",), "start": 0, "max_frames": 0}
    markers = read("bonn", tmp_path, "camera_pose", **options)
    camera = read("bonn", tmp_path, "camera_pose", **options, bonn_poses="camera")
    turn = camera.world_from_cam[:, :3, :3]
    np.testing.assert_allclose(
        turn @ np.swapaxes(turn, 1, 2), np.tile(np.eye(3), (COUNT, 1, 1)), atol=1e-9
    )
    axes = np.array([[-1, 0, 0], [0, 0, 1], [0, 1, 0]])
    positions = camera.world_from_cam[:, :3, 3] - markers.world_from_cam[:, :3, 3] @ axes
    assert np.linalg.norm(positions, axis=1).max() < 0.03  # the markers sit on the camera
    assert any("markers" in note for note in markers.notes) and not camera.notes


def test_tum_default_frames(tmp_path, world):
    """The benchmark's slice is for its sequences; a folder of one's own is read whole."""
    for name in (tum.DYNAMIC[0], "rgbd_dataset_freiburg1_xyz"):
        folders.tum(tmp_path / name, world, 5 + np.arange(COUNT) / 30, tables=False)
    listed = datasets.sequences("tum", tmp_path, "camera_pose")
    assert [item.name for item in listed] == list(tum.DYNAMIC)
    assert listed[0].num_frames == 3  # every third
    assert all(isinstance(item, FailedSequence) for item in listed[1:])
    own = read("tum", tmp_path / "rgbd_dataset_freiburg1_xyz", "camera_pose")
    assert own.num_frames == COUNT and own.intrinsics[0, 0, 0] == 517.3


def test_tum_numbered_frames(tmp_path, world):
    """Numbered pictures and poses, as in excerpts of the benchmark."""
    for k, depth in enumerate(world.depth):
        folders.picture(tmp_path / "rgb" / f"{k:04d}.jpg", world.images[k])
        folders.png16(tmp_path / "depth" / f"{k:04d}.png", depth, 5000)
    stamps = np.arange(COUNT, dtype=float)
    rows = folders.trajectory(stamps, world.world_from_cam).splitlines()
    own = [row for row in rows if row[0] == "#" or float(row.split()[0]) in stamps]
    (tmp_path / "poses_tum.txt").write_text("\n".join(own))
    np.savetxt(tmp_path / "K.txt", world.intrinsics[0], fmt="%.17g")
    sequence = read("tum", tmp_path, "camera_pose")
    assert_world(sequence, world, depth=1.01e-4)
    assert sequence.times is None and "by number" in sequence.notes[0]


def test_kitti(tmp_path, world):
    name = "2011_09_26_drive_0002_sync"
    sparse = dataclasses.replace(world, depth=np.where(world.dynamic_mask, 0, world.depth))
    folders.kitti(tmp_path, name, sparse, first=5)
    sequence = read("kitti", tmp_path, "video_depth", sequences=(name,))
    np.testing.assert_allclose(sequence.depth(), sparse.depth, atol=0.5001 / 256)
    np.testing.assert_allclose(sequence.intrinsics, world.intrinsics, rtol=1e-12)
    assert sequence.frame_names == tuple(f"{k:010d}" for k in range(5, 5 + COUNT))
    np.testing.assert_array_equal(sequence.load_image(sequence.images[2]), world.images[2])
    np.testing.assert_allclose(sequence.times, 0.5 + np.arange(COUNT) / 10, atol=1e-6)
    stamps = tmp_path / "2011_09_26" / name / "image_02" / "timestamps.txt"
    lines = stamps.read_text().splitlines()
    stamps.write_text("\n".join([*lines[:7], lines[8], lines[7], *lines[9:]]))
    failed = datasets.read_sequence("kitti", tmp_path, name, "video_depth")
    assert isinstance(failed, FailedSequence)
    assert f"'{stamps}': the time stamps are not sorted; line 9" in failed.reason
    stamps.unlink()
    (tmp_path / "2011_09_26" / "calib_cam_to_cam.txt").unlink()
    bare = datasets.read_sequence("kitti", tmp_path, name, "video_depth")
    assert bare.times is None and bare.intrinsics is None
    assert "calib_cam_to_cam.txt' is missing" in bare.notes[0]


def test_nyu(tmp_path, world):
    for k in range(2):
        path = tmp_path / "val" / "official" / f"{k + 1:05d}.h5"
        folders.nyu(path, world.images[k], world.depth[k])
    found = datasets.sequences("nyu", tmp_path, "single_depth")
    assert [item.name for item in found] == ["00001", "00002"]
    for k, item in enumerate(found):
        np.testing.assert_array_equal(item.depth(), world.depth[k : k + 1])
        np.testing.assert_array_equal(item.load_image(item.images[0]), world.images[k])
        assert item.image_size == world.depth.shape[1:]


def test_scannet(tmp_path, world):
    """Numbers without leading zeros; where tracking was lost there is no pose."""
    longer = folders.sample_world(12)
    folders.scannet(tmp_path, "scene0707_00", longer)
    lost = tmp_path / "scene0707_00" / "pose" / "9.txt"
    lost.write_text("\n".join(["-inf -inf -inf -inf"] * 4))
    sequence = read("scannet", tmp_path, "camera_pose", sequences=("scene0707_00",))
    assert sequence.frame_names == ("0", "3", "6") and "tracking was lost" in sequence.notes[0]
    np.testing.assert_allclose(
        sequence.world_from_cam, longer.world_from_cam[[0, 3, 6]], atol=1e-12
    )
    np.testing.assert_allclose(sequence.depth(), longer.depth[[0, 3, 6]], atol=5.01e-4)
    assert sequence.image_size == (2 * longer.depth.shape[1], 2 * longer.depth.shape[2])
    np.testing.assert_allclose(sequence.intrinsics[0], longer.intrinsics[0])
    every = read("scannet", tmp_path, "camera_pose", sequences=("scene0707_00",), stride=1)
    assert every.frame_names == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "10", "11")


@pytest.mark.parametrize("palette", [False, True])
def test_davis(tmp_path, world, palette):
    folders.davis(tmp_path, "bear", world, palette=palette)
    sequence = read("davis", tmp_path, "motion")
    np.testing.assert_array_equal(sequence.dynamic_mask(), world.dynamic_mask)
    assert sequence.mask_frames is None and sequence.depth is None
    expected = tmp_path / "depth_prediction_depthpro/1080p/bear/00000.npz"
    assert sequence.prior_files("depthpro")[0] == expected


def test_pointodyssey_in_both_layouts(tmp_path, world):
    folders.pointodyssey(tmp_path / "raw", "ani", world)
    raw = read("pointodyssey", tmp_path / "raw", "video_depth", max_frames=5)
    assert_world(raw, world, slice(5), depth=0.5001 / 65.535)
    flip = np.diag([1.0, -1, -1, 1])
    saved = np.linalg.inv(world.world_from_cam) @ flip
    folder = tmp_path / "made" / "PointOdyssey_proc" / "val" / "ani"
    folders.processed(folder, world, saved)
    made = read("pointodyssey", tmp_path / "made", "video_depth")
    flipped = dataclasses.replace(world, world_from_cam=flip @ world.world_from_cam)
    assert_world(made, flipped, poses=1e-9)
    assert made.prior_files("depthpro")[0].name == "00000_rgb_pred_depth_depthpro.npz"


def test_flyingthings_in_both_layouts(tmp_path, world):
    for clip in range(11):
        empty = tmp_path / "raw" / "frames_finalpass" / "TEST" / "B" / f"{clip:04d}"
        for side in ("left", "right"):
            (empty / side).mkdir(parents=True)
    folders.flyingthings(tmp_path / "raw", "A", "0000", world)
    names = datasets.sequence_names("flyingthings", tmp_path / "raw", "video_depth")
    assert names == ["A_0000_left", "B_0009_left"]  # every twentieth side
    constants = np.array([[1050, 0, 479.5], [0, 1050, 269.5], [0, 0, 1]])
    shift = np.eye(4)
    shift[0, 3] = 1
    expected = dataclasses.replace(world, intrinsics=np.tile(constants, (COUNT, 1, 1)))
    for side, poses in (("left", world.world_from_cam), ("right", world.world_from_cam @ shift)):
        sequence = read(
            "flyingthings", tmp_path / "raw", "camera_pose", sequences=(f"A_0000_{side}",)
        )
        assert_world(sequence, dataclasses.replace(expected, world_from_cam=poses))
        assert sequence.frame_names[0] == "0006"
    folder = tmp_path / "made" / "FlyingThings3D_proc" / "TEST" / "A" / "0000" / "left"
    folders.processed(folder, world, world.world_from_cam)
    made = read("flyingthings", tmp_path / "made", "video_depth")
    assert made.name == "A_0000_left"
    assert_world(made, world)


def test_tasks_and_data_sets_are_checked(tmp_path):
    for arguments, sentence in (
        (("sintle", tmp_path, "motion"), "known are sintel, bonn, tum"),
        (("sintel", tmp_path, "depth"), "known are video_depth"),
        (("davis", tmp_path, "video_depth"), "davis has no truth for video_depth"),
        (("sintel", tmp_path / "no", "motion"), "does not exist"),
        (("sintel", tmp_path, "motion"), "holds no sequence of sintel: expected training/final"),
    ):
        with pytest.raises(UserError, match=sentence):
            datasets.sequences(*arguments)
    (tmp_path / "training" / "final" / "alley_1").mkdir(parents=True)
    with pytest.raises(UserError, match="no list of sequences 'all23'; known are default, found"):
        datasets.sequences("sintel", tmp_path, "motion", ReaderOptions(sequences="all23"))
    for options in ({"association": "order"}, {"stride": 0}, {"max_time_difference": 0}):
        with pytest.raises(UserError, match=next(iter(options))):
            datasets.sequences("sintel", tmp_path, "motion", ReaderOptions(**options))


def test_pictures_are_not_decoded_to_list_them(tmp_path, world, monkeypatch):
    folders.pointodyssey(tmp_path, "ani", world)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    sequence = read("pointodyssey", tmp_path, "video_depth")
    monkeypatch.undo()
    assert sequence.depth().shape == world.depth.shape
