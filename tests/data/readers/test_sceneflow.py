"""SceneFlow for training: its three parts in both layouts, splits, and frames that are missing."""

import re
import struct

import numpy as np
import pytest

from align3r_jax.errors import UserError
from data.readers import sceneflow_files, training_sets
from data.readers.training import TrainingOptions
from tests.data.readers import checks, folders, synthetic_folders


def camera(focal):
    return [[focal, 0, 479.5], [0, focal, 269.5], [0, 0, 1]]


@pytest.fixture(scope="module")
def worlds(training_world):
    """Focal -> both sides; 960 x 540."""
    sides = {}
    for focal in (450, 1050):
        left = synthetic_folders.stretched(training_world, 2, 18, 30, camera(focal))
        sides[focal] = {"left": left, "right": synthetic_folders.beside(left)}
    return sides


def read(root, **options):
    return training_sets.scenes("sceneflow", root, TrainingOptions(**options))


def names(root, **options):
    found, skipped = read(root, **options)
    return [scene.name for scene in found], [scene.name for scene in skipped]


def test_raw_parts_give_back_the_world(tmp_path, worlds):
    clips = {
        ("Driving", "15mm_focallength/scene_forwards/fast", 1): 450,
        ("Driving", "35mm_focallength/scene_backwards/slow", 1): 1050,
        ("Monkaa", "a_rain_of_stones_x2", 0): 1050,
        ("FlyingThings3D", "TRAIN/B/0017", 6): 1050,
    }
    for (part, clip, first), focal in clips.items():
        synthetic_folders.sceneflow(tmp_path / part, clip, worlds[focal], first)
    found, skipped = read(tmp_path)
    assert not skipped
    assert [scene.name for scene in found] == [
        f"{clip}_{side}"
        for clip in (
            "driving_15mm_focallength_scene_forwards_fast",
            "driving_35mm_focallength_scene_backwards_slow",
            "monkaa_a_rain_of_stones_x2",
            "flyingthings_TRAIN_B_0017",
        )
        for side in ("left", "right")
    ]
    for index, focal in enumerate(clips.values()):
        side = index % 2  # one side of each, both in all
        checks.assert_scene(found[2 * index + side], list(worlds[focal].values())[side])
    assert found[-1].frames == ("0006", "0007") and found[-1].dataset == "sceneflow"


def test_unknown_and_far_disparity_is_no_depth(tmp_path, worlds):
    synthetic_folders.sceneflow(tmp_path, "TRAIN/A/0000", worlds[1050], 6)
    path = tmp_path / "disparity/TRAIN/A/0000/left/0006.pfm"
    values = np.full((540, 960), 10.0)
    values[0, :6] = np.nan, np.inf, -3, 0, 2.62, 2.63  # 1050 / 2.625 = 400
    rows = [struct.pack(">960f", *row) for row in values[::-1]]
    folders.binary(path, b"Pf\n960 540\n1.000000\n" + b"".join(rows))  # big endian
    depth = read(tmp_path)[0][0].load(0).depth
    np.testing.assert_allclose(depth[0, :7], [0, 0, 0, 0, 0, 1050 / 2.63, 105], rtol=1e-6)
    assert (depth[1:] == 105).all()


def test_one_folder_for_all_parts_and_their_splits(tmp_path, tiny):
    for clip in ("TRAIN/C/0001", "TRAIN/A/0100", "TEST/A/0000", "treeflight_x2",
                 "15mm_focallength/scene_backwards/fast"):  # fmt: skip
        synthetic_folders.sceneflow(tmp_path, clip, tiny, 3)
    both, skipped = names(tmp_path)
    assert [name.removesuffix("_left") for name in both if name.endswith("_left")] == [
        "driving_15mm_focallength_scene_backwards_fast",
        "monkaa_treeflight_x2",
        "flyingthings_TRAIN_A_0100",
        "flyingthings_TRAIN_C_0001",
    ]
    assert len(both) == 8 and not skipped
    assert names(tmp_path, variant="monkaa")[0] == [
        "monkaa_treeflight_x2_left", "monkaa_treeflight_x2_right"
    ]  # fmt: skip
    test = ["flyingthings_TEST_A_0000_left", "flyingthings_TEST_A_0000_right"]
    assert names(tmp_path, split="test") == (test, [])
    assert names(tmp_path, split="test", variant="flyingthings") == (test, [])
    with pytest.raises(UserError, match="driving of SceneFlow has no test clips"):
        read(tmp_path, split="test", variant="driving")


def test_parts_that_are_not_there_are_named(tmp_path, tiny):
    synthetic_folders.sceneflow(tmp_path / "monkaa", "eating_x2", tiny, 0)
    found, skipped = read(tmp_path)
    assert len(found) == 2 and [scene.name for scene in skipped] == ["driving", "flyingthings"]
    assert skipped[0].reason == f"'{tmp_path}' holds no train clips of driving."
    with pytest.raises(UserError, match="holds no test scenes of sceneflow: expected frames_final"):
        read(tmp_path, split="test")


def test_processed_parts(tmp_path, training_world):
    for folder in (
        "Driving_proc/35mm_focallength/scene_forwards/slow",
        "Monkaa_proc/lonetree_x2",
        "FlyingThings3D_proc/TRAIN/A/0002",
        "FlyingThings3D_proc/TEST/B/0003",
    ):
        folders.processed(
            tmp_path / folder / "right", training_world, training_world.world_from_cam
        )
    found, skipped = read(tmp_path)
    assert not skipped and [scene.name for scene in found] == [
        "driving_35mm_focallength_scene_forwards_slow_right",
        "monkaa_lonetree_x2_right",
        "flyingthings_TRAIN_A_0002_right",
    ]
    checks.assert_scene(found[1], training_world, images=False)
    (alone,), _ = read(tmp_path / "Monkaa_proc", variant="monkaa")
    assert alone.name == "monkaa_lonetree_x2_right"
    assert names(tmp_path, split="test")[0] == ["flyingthings_TEST_B_0003_right"]


@pytest.fixture
def gap(tmp_path, tiny):
    """Frames 4 to 7; the second clip is whole."""
    synthetic_folders.sceneflow(tmp_path, "TRAIN/A/0000", tiny, 4, cameras=(4, 6, 7))
    synthetic_folders.sceneflow(tmp_path, "TRAIN/A/0001", tiny, 4)
    return tmp_path


def test_a_missing_camera_shifts_nothing(gap, tiny):
    found, skipped = read(gap, variant="flyingthings")
    assert [scene.name for scene in found] == [
        "flyingthings_TRAIN_A_0001_left", "flyingthings_TRAIN_A_0001_right"
    ]  # fmt: skip
    assert [scene.name for scene in skipped] == [
        "flyingthings_TRAIN_A_0000_left", "flyingthings_TRAIN_A_0000_right"
    ]  # fmt: skip
    assert re.search(r"camera_data.txt' has no camera of frame 5 ", skipped[0].reason)


def test_parity_matches_by_position(gap, tiny):
    """The second picture gets the camera of the third frame, and the last goes without."""
    found, skipped = read(gap, variant="flyingthings", parity=True)
    assert not skipped and found[0].frames == ("0004", "0005", "0006")
    (gap / "disparity/TRAIN/A/0001/left/0004.pfm").unlink()
    shifted = read(gap, variant="flyingthings", parity=True)[0][2]
    assert shifted.frames == ("0004", "0005", "0006")
    poses = sceneflow_files.clip_files(
        gap / "frames_finalpass/TRAIN/A/0000/left",
        gap / "disparity/TRAIN/A/0000/left",
        gap / "camera_data/TRAIN/A/0000/camera_data.txt",
        "left",
        by_position=True,
    ).world_from_cam
    np.testing.assert_allclose(poses[1], tiny["left"].world_from_cam[2], atol=1e-12)


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        ("frames_finalpass/TRAIN/A/0001/left/0005.png", "number 6. follows '0004.png'"),
        ("disparity/TRAIN/A/0001/left/0005.pfm", "holds 4 pictures but .* 3 disparity maps"),
        ("camera_data/TRAIN/A/0001/camera_data.txt", "camera_data.txt' cannot be read"),
    ],
)
def test_lost_files(gap, tiny, lost, sentence):
    synthetic_folders.sceneflow(gap, "TRAIN/A/0002", tiny, 4)
    (gap / lost).unlink()
    found, skipped = read(gap, variant="flyingthings")
    assert {scene.name.split("_")[3] for scene in found} >= {"0002"}
    reasons = {scene.name: scene.reason for scene in skipped}
    assert re.search(sentence, reasons["flyingthings_TRAIN_A_0001_left"])


def test_nothing_usable_is_an_error(gap):
    (gap / "camera_data/TRAIN/A/0001/camera_data.txt").unlink()
    with pytest.raises(UserError, match="No scene of sceneflow .* 4 are left out.*no camera of fr"):
        read(gap, variant="flyingthings")


def test_damaged_and_resized_files_are_named(gap):
    whole = read(gap)[0][0]
    with pytest.raises(UserError, match="not the picture as it was published"):
        whole.load(0)
    path = gap / "frames_finalpass/TRAIN/A/0001/left/0005.png"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=f"'{path}' cannot be read"):
        whole.load(1)


def test_names_and_options_are_checked(tmp_path):
    for options, sentence in (
        (
            {"variant": "sintel"},
            r"no variant 'sintel'; known are: flyingthings \(FlyingThings3D al",
        ),
        ({"split": "val"}, "split='val' is unknown"),
        ({}, "holds no train scenes of sceneflow: expected frames_finalpass"),
    ):
        with pytest.raises(UserError, match=sentence):
            read(tmp_path, **options)
    with pytest.raises(UserError, match="'.*nowhere' of the training set sceneflow does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match="'kitti' is unknown; known are sceneflow"):
        training_sets.scenes("kitti", tmp_path)
