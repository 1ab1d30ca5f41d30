"""The published layout: other readers understand it, and it becomes records with priors."""

import json

import cv2
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.io import pfm, prior_files
from data.prepare import run
from data.readers import processed_training, records, training_sets
from data.readers.training import TrainingOptions
from tests.data.prepare import fake_set
from tests.data.prepare.test_records import assert_same_frame, prepare
from tests.experiments.test_convert_weights import run_cases

PROCESSED = {"format": "processed", "image": "jpeg"}


def relative(scene):
    """Cameras seen from the first of the scene, depth, intrinsics; and pictures."""
    frames = [scene.load(k) for k in range(scene.num_frames)]
    first = np.linalg.inv(frames[0].world_from_cam)
    return [(first @ f.world_from_cam, f.depth, f.intrinsics) for f in frames]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("processed") / "out"
    scenes = fake_set.scenes((3, 4, 2), {1: {2}, 2: {1}}, pairs=True)
    return output, scenes, prepare(output, scenes, **PROCESSED)


def test_four_files_per_frame_and_what_they_hold(folder):
    output, scenes, report = folder
    assert (report.scenes, report.frames, len(report.dropped), len(report.skipped)) == (2, 6, 2, 1)
    place = output / "train" / "part" / "01"
    assert {path.name[5:] for path in place.iterdir()} == {
        "rgb.jpg", "depth.pfm", "mask.png", "metadata.npz",
    }  # fmt: skip
    assert not list((output / "train" / "part" / "02").iterdir())  # one frame is no scene
    assert report.bytes == sum(f.stat().st_size for f in (output / "train").rglob("*_*"))
    expected = scenes[1].load(3)
    np.testing.assert_array_equal(pfm.read_pfm(place / "f003_depth.pfm"), expected.depth)
    mask = cv2.imread(str(place / "f003_mask.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask, np.where(expected.depth > 0, 255, 0))
    with np.load(place / "f003_metadata.npz") as stored:
        np.testing.assert_array_equal(stored["camera_pose"], expected.world_from_cam)
        np.testing.assert_array_equal(stored["camera_intrinsics"], expected.intrinsics)
    again = processed_training.processed_scene(place, "x", "x", TrainingOptions())
    assert again.frames == ("f000", "f001", "f003")
    manifest = json.loads((output / "manifest.json").read_text())["splits"]["train"]
    assert manifest["frames_dropped"][0] == {
        "scene": "part/01", "frame": "f002",
        "reason": "'fake/1/2.png' cannot be read (made so).",
    }  # fmt: skip


def test_interrupted_and_resumed_equals_uninterrupted(folder, tmp_path):
    output, scenes, report = folder
    loads = []

    def stop(count):
        loads.append(count)
        if sum(loads) == 4:
            raise KeyboardInterrupt

    chosen = fake_set.settings(**PROCESSED)
    with pytest.raises(KeyboardInterrupt):
        run.prepare(chosen, "train", scenes, [], tmp_path / "out", source="here", progress=stop)
    (tmp_path / "out" / "train" / "part" / "01" / "f001_rgb.jpg").write_bytes(b"half a file")
    loads.clear()
    resumed = run.prepare(
        chosen, "train", scenes, [], tmp_path / "out", source="here", progress=loads.append
    )
    assert resumed == report and loads[0] == 4  # those done before are not read again
    for path in output.rglob("*"):
        other = tmp_path / "out" / path.relative_to(output)
        if path.suffix == ".npz":  # an archive has the time in it
            with np.load(path) as first, np.load(other) as second:
                assert all((first[name] == second[name]).all() for name in first)
        elif path.is_file():
            assert path.read_bytes() == other.read_bytes(), path


def test_pointodyssey_is_stored_as_its_loaders_expect(tmp_path):
    """Published: camera_pose = E diag(1, -1, -1, 1) with E = cam_from_world."""
    scenes = fake_set.scenes((3, 2), dataset="pointodyssey")
    prepare(tmp_path / "out", scenes, dataset="pointodyssey", **PROCESSED)
    pose = scenes[0].load(2).world_from_cam
    with np.load(tmp_path / "out" / "train" / "part" / "00" / "f002_metadata.npz") as stored:
        expected = np.linalg.inv(pose) @ np.diag([1.0, -1, -1, 1])
        np.testing.assert_allclose(stored["camera_pose"], expected, atol=1e-15)
    (found, _), _ = records.scenes(tmp_path / "out", TrainingOptions())
    for got, source in zip(relative(found), relative(scenes[0])):
        for one, other in zip(got, source):
            np.testing.assert_allclose(one, other, atol=1e-12)
    for root in (tmp_path / "out", tmp_path / "out" / "train"):
        with pytest.raises(UserError, match="read it as 'records'"):
            training_sets.scenes("pointodyssey", root)


def test_processed_then_priors_then_records(folder, tmp_path):
    """The way of a set whose pictures are not files that a prior can lie beside."""
    output, scenes, _ = folder
    for path in sorted((output / "train").rglob("*_rgb.jpg")):
        depth = pfm.read_pfm(path.with_name(path.name.replace("_rgb.jpg", "_depth.pfm")))
        focal = prior_files.focal_of_training_image(path)
        prior_files.write_prior(prior_files.prior_path(path, "depthpro"), depth + 1, focal)
    (folder_scene, *_), _ = records.scenes(output, TrainingOptions(prior="depthpro"))
    flags = ["--dataset=records", f"--root={output}", "--workers=0", "--size=0"]
    (tmp_path / "mine" / "walk" / "images").mkdir(parents=True)
    for name in ("a", "b"):
        picture = np.zeros((24, 32, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / "mine" / "walk" / "images" / f"{name}.png"), picture)
    results = run_cases("prepare_data", [
        [*flags, f"--output={tmp_path}/rec", "--prior=depthpro", "--image=png"],
        [*flags, f"--output={tmp_path}/rec", "--prior=depthpro", "--image=png"],
        [*flags, f"--output={tmp_path}/rec"],
        [*flags, f"--output={tmp_path}/other", "--prior=depthanything"],
        [*flags, f"--output={output}/inside"],
        [*flags, f"--output={tmp_path}/o", "--format=processed", "--shard_mb=3"],
        [*flags, f"--output={tmp_path}/o", "--split=val"],
        [*flags, "--check"],
        flags,
        ["--dataset=folder", f"--root={tmp_path}/mine", "--check"],
    ])  # fmt: skip
    codes = [code for code, _, _ in results]
    assert codes == [0, 0, 2, 2, 2, 2, 2, 0, 2, 1], results
    assert "train: 2 scenes, 6 frames" in results[0][1]
    for (_, _, said), words in zip(results[2:7], (
        "other settings", "no prior 'depthanything'", "lies within", "no effect", "--split=val",
    )):  # fmt: skip
        assert words in said, said
    assert "train  part/01  3 frames" in results[7][1] and "--output=FOLDER" in results[8][2]
    assert "walk" in results[9][1] and " errors, " in results[9][1]
    found, _ = records.scenes(tmp_path / "rec", TrainingOptions(prior="depthpro"))
    assert [scene.dataset for scene in found] == ["fake", "fake"]
    np.testing.assert_array_equal(found[1].pairs, [[0, 1]])  # (1, 2) and (2, 3) lost frame 2
    frame = found[0].load(2)
    assert_same_frame(frame, folder_scene.load(2))
    np.testing.assert_array_equal(frame.prior_depth, frame.depth + 1)
    assert frame.prior_focal == np.float32(frame.intrinsics[0, 0])
