"""TartanAir for training: both layouts, the places each paper takes, damaged files."""

import re

import numpy as np
import pytest

from align3r_jax.errors import UserError
from data.readers import tartanair, training_sets
from data.readers.training import TrainingOptions
from tests.data.readers import checks, folders, synthetic_folders


@pytest.fixture(scope="module")
def sides(training_world):
    """640 x 480."""
    matrix = [[320, 0, 320], [0, 320, 240], [0, 0, 1]]
    left = synthetic_folders.stretched(training_world, 2, 24, 20, matrix)
    return {"left": left, "right": synthetic_folders.beside(left)}


def read(root, **options):
    return training_sets.scenes("tartanair", root, TrainingOptions(**options))


def names(root, **options):
    return [scene.name for scene in read(root, **options)[0]]


def test_raw_gives_back_the_world(tmp_path, sides):
    synthetic_folders.tartanair(tmp_path / "office/Easy/P003", sides)
    found, skipped = read(tmp_path)
    assert not skipped
    assert [scene.name for scene in found] == ["office_Easy_P003_left", "office_Easy_P003_right"]
    for scene, side in zip(found, ("left", "right")):
        checks.assert_scene(scene, sides[side])
    assert found[1].frames == ("000000_right", "000001_right")
    sky = sides["left"].depth[0].copy()
    sky[0, :4] = np.inf, 12345, np.nan, 399
    np.save(tmp_path / "office/Easy/P003/depth_left/000000_left_depth.npy", sky)
    np.testing.assert_array_equal(found[0].load(0).depth[0, :4], [0, 0, 0, 399])


@pytest.mark.golden
def test_recorded_pose(tmp_path, golden_dir, sides):
    with np.load(golden_dir / "datasets.npz") as stored:
        line, expected = stored["pose/tartanair_line"], stored["pose/tartanair_cam2world"]
    synthetic_folders.tartanair(tmp_path / "ocean/Easy/P000", sides)
    path = tmp_path / "ocean/Easy/P000/pose_left.txt"
    path.write_text((folders.numbers(line) + "\n") * 2)
    pose = read(tmp_path)[0][0].load(1).world_from_cam
    np.testing.assert_allclose(pose, expected.reshape(4, 4), atol=1e-9)


@pytest.fixture
def places(tmp_path, tiny):
    for folder in (
        "gascola/Easy/P001",
        "gascola/Hard/P001",
        "hospital/Easy/P000",
        "hospital/Hard/P002",
        "japanesealley/Easy/P001",
        "soulcity/soulcity/Easy/P010",  # as the archives unpack
    ):
        synthetic_folders.tartanair(tmp_path / folder, tiny)
    return tmp_path


def test_what_each_paper_takes(places):
    found, skipped = read(places)
    assert [scene.name for scene in found] == [
        "hospital_Easy_P000_left", "hospital_Easy_P000_right", "soulcity_Easy_P010_left",
        "soulcity_Easy_P010_right",
    ]  # fmt: skip
    ((name, reason),) = skipped
    assert name == "gascola" and "variant='all'" in reason
    assert names(places, variant="easy") == [scene.name for scene in found]
    assert names(places, variant="hard") == ["hospital_Hard_P002_left", "hospital_Hard_P002_right"]
    assert names(places, variant="hard_left") == [
        "gascola_Hard_P001_left", "hospital_Hard_P002_left"
    ]  # fmt: skip
    assert len(names(places, variant="all")) == 10
    test = ["japanesealley_Easy_P001_left", "japanesealley_Easy_P001_right"]
    assert names(places, split="test") == test
    for split in ("train", "test"):
        assert len(names(places, split=split, parity=True)) == 6
    assert len(tartanair.LEFT_OUT) == 6


def test_only_left_out_places_is_an_error_that_says_so(tmp_path, tiny):
    synthetic_folders.tartanair(tmp_path / "amusement/Easy/P001", tiny)
    with pytest.raises(UserError, match="'amusement': Align3R leaves this place out"):
        read(tmp_path)
    with pytest.raises(UserError, match="expected PLACE/Easy/P000/"):
        read(tmp_path / "amusement" / "Easy")


def test_processed(tmp_path, training_world):
    for name in ("seasonsforest_winter_Easy_P000_right", "ocean_Hard_P001_left",
                 "endofworld_Easy_P000_left", "ocean_Easy_P001_left"):  # fmt: skip
        folders.processed(
            tmp_path / "TartanAir_proc" / name, training_world, training_world.world_from_cam
        )
    for root in (tmp_path, tmp_path / "TartanAir_proc"):
        found, skipped = read(root)
        assert [scene.name for scene in found] == [
            "ocean_Easy_P001_left", "seasonsforest_winter_Easy_P000_right"
        ]  # fmt: skip
        assert [scene.name for scene in skipped] == ["endofworld"]
    checks.assert_scene(found[1], training_world, images=False)
    assert names(tmp_path, variant="hard_left") == ["ocean_Hard_P001_left"]


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        ("image_right/000002_right.png", r"\(number 3\) follows '000001_right.png'"),
        ("image_right/000003_right.png", "pose_right.txt' has 4 poses for 3 pictures"),
        (
            "depth_right/000001_right_depth.npy",
            "1 of 4 frames have no depth map; .*000001_right_de",
        ),
        ("pose_right.txt", "pose_right.txt' holds no table of numbers"),
    ],
)
def test_lost_files(places, lost, sentence):
    (places / "hospital/Easy/P000" / lost).unlink()
    found, skipped = read(places)
    assert len(found) == 3 and skipped[0].name == "hospital_Easy_P000_right"
    assert re.search(sentence, skipped[0].reason)


def test_damaged_files(places, sides):
    flight = places / "office/Easy/P000"
    synthetic_folders.tartanair(flight, sides)
    scene = next(scene for scene in read(places)[0] if scene.name == "office_Easy_P000_left")
    path = flight / "depth_left/000000_left_depth.npy"
    for content, sentence in (
        (path.read_bytes()[:500], f"'{path}' cannot be read"),
        (b"", f"'{path}' cannot be read"),
        (None, "does not hold a depth map"),
    ):
        if content is None:
            np.save(path, np.zeros((480, 640), np.uint8))
        else:
            path.write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            scene.load(0)
    text = flight / "pose_left.txt"
    text.write_text("0 0 0 0 0 0 1\n1 2 3 0 0 0 0\n")
    reasons = [item.reason for item in read(places)[1]]
    assert any("quaternion of zeros" in reason for reason in reasons)
