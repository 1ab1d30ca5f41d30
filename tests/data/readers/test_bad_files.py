"""Damaged downloads: a sentence that names the file, and the other sequences go on."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from align3r_jax.errors import UserError
from align3r_jax.io import hdf5_files, pfm, png16, sintel_files
from data.readers import datasets, sceneflow_files
from data.readers.sequence import EvaluationSequence, FailedSequence, ReaderOptions
from tests.data.readers import folders

COUNT = 5
EVERY = ReaderOptions(sequences="found", start=0, stride=1, max_frames=0)


@pytest.fixture(scope="module")
def world():
    return folders.sample_world(COUNT)


def reason(dataset, root, task, **options):
    """Why the damaged one of two sequences fails; the other must go on."""
    good, bad = sorted(
        datasets.sequences(dataset, root, task, ReaderOptions(**vars(EVERY) | options)),
        key=lambda item: isinstance(item, FailedSequence),
    )
    assert isinstance(good, EvaluationSequence)
    if task != "motion" and good.depth is not None:
        assert np.isfinite(good.depth()).all()
    assert isinstance(bad, FailedSequence) and bad.name == "bad"
    return bad.reason


@pytest.fixture
def sintel(tmp_path, world):
    """Two sequences, `good` and `bad`, still whole."""
    for name in ("good", "bad"):
        folders.sintel(tmp_path, name, world, np.zeros((COUNT - 1, *world.depth.shape[1:], 2)))
    return tmp_path


@pytest.mark.parametrize(
    ("lost", "task", "sentence"),
    [
        ("final/bad/frame_0003.png", "video_depth", r"frame_0004\.png' \(number 4\) follows"),
        ("final/bad/frame_0005.png", "video_depth", r"holds 4 pictures but .*depth/bad' 5 depth"),
        ("depth/bad/frame_0003.dpt", "video_depth", "4 depth files: frames are missing"),
        ("camdata_left/bad/frame_0003.cam", "camera_pose", "4 camdata_left files"),
        ("flow/bad/frame_0003.flo", "motion", r"first missing file is .*flow/bad/frame_0003\.flo"),
        ("depth/bad", "video_depth", r"There are no depth files: the folder .*depth/bad' does not"),
    ],
)
def test_missing_frames_and_counts(sintel, lost, task, sentence):
    path = sintel / "training" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert re.search(sentence, reason("sintel", sintel, task))


def test_what_the_task_does_not_need_may_be_damaged(sintel, tum):
    (sintel / "training/flow/bad/frame_0002.flo").unlink()
    found = datasets.sequences("sintel", sintel, "video_depth", EVERY)
    assert all(isinstance(item, EvaluationSequence) for item in found)
    bad = next(item for item in found if item.name == "bad")
    assert bad.flow is None and "frame_0002.flo" in bad.notes[0]
    truth = tum / "bad" / "groundtruth.txt"
    truth.write_text(truth.read_text()[:-3])
    unposed = datasets.read_sequence("tum", tum, "bad", "video_depth", EVERY)
    assert unposed.world_from_cam is None and f"'{truth}'" in unposed.notes[0]
    shutil.copy(tum / "good" / "groundtruth.txt", truth)
    path = next((tum / "bad" / "depth").iterdir())
    Image.new("L", (32, 24)).save(path)
    posed = datasets.read_sequence("tum", tum, "bad", "camera_pose", EVERY)
    assert posed.depth is None and f"'{path}' is an 8-bit picture" in posed.notes[0]


def test_damaged_files_are_named(sintel):
    training = sintel / "training"
    depth = training / "depth/bad/frame_0002.dpt"
    depth.write_bytes(depth.read_bytes()[:-1])
    (sequence,) = datasets.sequences(
        "sintel", sintel, "video_depth", ReaderOptions(sequences=("bad",))
    )
    with pytest.raises(UserError, match=r"frame_0002\.dpt' says 32 x 24 pixels but has"):
        sequence.depth()
    camera = training / "camdata_left/bad/frame_0004.cam"
    camera.write_bytes(b"XXXX" + camera.read_bytes()[4:])
    assert "frame_0004.cam' is no .cam file" in reason("sintel", sintel, "camera_pose")
    picture = training / "final/bad/frame_0003.png"
    Image.new("RGB", (9, 9)).save(picture)
    assert "frame_0003.png' is 9 x 9 pixels" in reason("sintel", sintel, "video_depth")
    picture.write_bytes(b"nonsense")
    assert "frame_0003.png' cannot be read" in reason("sintel", sintel, "video_depth")


@pytest.fixture
def tum(tmp_path, world):
    """Two TUM sequences, `good` and `bad`, with tables, still whole."""
    tmp_path = tmp_path / "tum"
    for name in ("good", "bad"):
        folders.tum(tmp_path / name, world, 5 + np.arange(COUNT) / 30, tables=True)
    return tmp_path


def test_eight_bit_depth_is_refused(tum, world):
    path = sorted((tum / "bad" / "depth").iterdir())[2]
    Image.fromarray((world.depth[2] * 50).astype(np.uint8)).save(path)
    sentence = reason("tum", tum, "video_depth")
    assert f"'{path}' is an 8-bit picture" in sentence and "16 bits" in sentence
    # The same values in a file of 16 bits show only when it is decoded.
    Image.fromarray((world.depth[2] * 50).astype(np.uint16)).save(path)
    sequence = datasets.read_sequence("tum", tum, "bad", "video_depth", EVERY)
    with pytest.raises(UserError, match=f"'{path}' has no value above 255"):
        sequence.depth()


def test_frames_without_any_depth(tum, world):
    path = sorted((tum / "bad" / "depth").iterdir())[1]
    folders.png16(path, np.zeros_like(world.depth[1]), 5000)
    sequence = datasets.read_sequence("tum", tum, "bad", "video_depth", EVERY)
    with pytest.raises(UserError, match=f"'{path}' holds no measured depth at all"):
        sequence.depth()
    folders.png16(path, world.depth[1][:-2], 5000)
    with pytest.raises(UserError, match=r"must be of one size"):
        sequence.depth()


@pytest.mark.parametrize(
    ("name", "edit", "task", "sentence"),
    [
        ("groundtruth.txt", "swap", "camera_pose", "bad/groundtruth.txt': the time stamps are not"),
        ("rgb.txt", "swap", "video_depth", "bad/rgb.txt': the time stamps are not sorted; file 4"),
        ("groundtruth.txt", "cut", "camera_pose", "groundtruth.txt', line 4: expected 8 finite"),
        ("groundtruth.txt", "delete", "camera_pose", "holds no groundtruth.txt or poses_tum.txt"),
        ("groundtruth.txt", "clock", "camera_pose", "no picture has one of its poses within 20 ms"),
        ("rgb.txt", "rename", "video_depth", "1 of the 5 files of .*bad/rgb.txt' are missing"),
    ],
)
def test_time_stamps(tum, name, edit, task, sentence):
    path = tum / "bad" / name
    lines = path.read_text().splitlines()
    if edit == "swap":
        lines[3], lines[4] = lines[4], lines[3]
    elif edit == "cut":
        lines[3] = lines[3][:-2]
    elif edit == "rename":
        lines[3] += ".png"
    elif edit == "clock":
        lines = [
            f"{float(line.split()[0]) + 1000} {' '.join(line.split()[1:])}" for line in lines[1:]
        ]
    path.write_text("\n".join(lines))
    if edit == "delete":
        path.unlink()
    assert re.search(sentence, reason("tum", tum, task))


def test_counts_by_position(tum):
    sorted((tum / "bad" / "rgb").iterdir())[1].unlink()
    (tum / "bad" / "rgb.txt").unlink()
    rows = (tum / "good" / "groundtruth.txt").read_text().splitlines()
    (tum / "good" / "groundtruth.txt").write_text("\n".join(rows[: COUNT + 1]))
    sentence = reason("tum", tum, "camera_pose", association="position")
    assert "poses for 4 pictures" in sentence and "association='stamps'" in sentence


def test_numbered_frames_must_match(tmp_path, world):
    for k in range(COUNT):
        folders.picture(tmp_path / "bad" / "rgb" / f"{k}.png", world.images[k])
        if k != 3:
            folders.png16(tmp_path / "bad" / "depth" / f"{k}.png", world.depth[k], 5000)
    folders.tum(tmp_path / "good", world, 5 + np.arange(COUNT) / 30, tables=False)
    sentence = reason("tum", tmp_path, "video_depth")
    assert "5 pictures and 4 depth maps" in sentence and "bad/rgb/3.png' has no partner" in sentence


def test_other_data_sets(tmp_path, world):
    """One damage each; the sentence names the file."""
    name = "2011_09_26_drive_0002_sync"
    for kitti in (name, "bad"):
        folders.kitti(tmp_path / "kitti", kitti, world, first=0)
    bad = tmp_path / "kitti" / "bad" / "bad" / "image_02" / "data" / f"{2:010d}.png"
    bad.unlink()
    assert f"missing file is '{bad}'" in reason("kitti", tmp_path / "kitti", "video_depth")

    for scene in ("good", "bad"):
        folders.pointodyssey(tmp_path / "po", scene, world)
    anno = tmp_path / "po" / "val" / "bad" / "anno.npz"
    np.savez(anno, intrinsics=world.intrinsics[1:], extrinsics=world.world_from_cam[1:])
    assert f"'{anno}' has 4 cameras for 5 pictures" in reason(
        "pointodyssey", tmp_path / "po", "video_depth"
    )
    np.savez(anno, intrinsics=world.intrinsics)
    assert "holds no cameras" in reason("pointodyssey", tmp_path / "po", "video_depth")

    for k, name in enumerate(("good", "bad")):
        folders.nyu(tmp_path / f"nyu/{name}.h5", world.images[k], world.depth[k, : 24 - 2 * k])
    assert "bad.h5': depth is (22, 32), rgb (24, 32)" in reason(
        "nyu", tmp_path / "nyu", "single_depth"
    )

    for name in ("good", "bad"):
        folders.davis(tmp_path / "davis", name, world, palette=False)
        folders.scannet(tmp_path / "scannet", name, world)
    (tmp_path / "davis/Annotations/480p/bad/00002.png").unlink()
    assert "4 annotations: frames are missing" in reason("davis", tmp_path / "davis", "motion")
    pose = tmp_path / "scannet/bad/pose/3.txt"
    pose.write_text("1 2 3")
    assert f"'{pose}' does not hold the 16 numbers" in reason(
        "scannet", tmp_path / "scannet", "camera_pose"
    )


def test_flyingthings_cameras_by_frame_number(tmp_path, world):
    folders.flyingthings(tmp_path, "A", "0000", world)
    path = tmp_path / "camera_data/TEST/A/0000/camera_data.txt"
    blocks = path.read_text().split("\n\n")
    path.write_text("\n\n".join(blocks[:2] + blocks[3:]))
    (failed, _) = datasets.sequences("flyingthings", tmp_path, "video_depth", EVERY)
    assert isinstance(failed, FailedSequence) and f"'{path}' has no camera of frame 8" in failed[1]
    by_position = ReaderOptions(sequences=("A_0000_left",), association="position")
    (cut,) = datasets.sequences("flyingthings", tmp_path, "video_depth", by_position)
    assert cut.num_frames == COUNT - 1  # cut to the shortest
    np.testing.assert_allclose(cut.world_from_cam[2], world.world_from_cam[3], atol=1e-12)
    path.write_text("\n\n".join([blocks[1], blocks[0]]))
    with pytest.raises(UserError, match="line 5: 'Frame 6' is not understood"):
        sceneflow_files.read_camera_data(path)


def test_formats_refuse_other_bytes(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\x89PNG")
    for read, sentence in (
        (sintel_files.read_dpt, "is no .dpt file"),
        (sintel_files.read_cam, "is no .cam file"),
        (pfm.read_pfm, "is no PFM file"),
        (png16.check_png16, "is no PNG file, or is cut short"),
        (png16.read_png16, "cannot be read"),
        (hdf5_files.read_dsp5, "cannot be read as HDF5"),
    ):
        with pytest.raises(UserError, match=sentence):
            read(path)
        with pytest.raises(UserError, match="none"):
            read(tmp_path / "none")
    path.write_bytes(b"Pf\n3 3\n-1\n" + bytes(35))
    with pytest.raises(UserError, match="cannot be read"):
        pfm.read_pfm(path)
    folders.nyu(path, np.zeros((2, 2, 3), np.uint8), np.ones((2, 2)))
    with pytest.raises(UserError, match="no array 'disparity'; it holds depth, rgb"):
        hdf5_files.read_dsp5(path)
