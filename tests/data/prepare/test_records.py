"""Records: what is read back equals what was prepared, however the work was cut up."""

import io
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from align3r_jax.errors import UserError
from data.builders import prepared
from data.prepare import frame_record, index, resize, run, shards
from data.readers import records, training_sets
from data.readers.training import TrainingOptions
from tests.data.prepare import fake_set

ROOT = Path(__file__).parents[3]


def prepare(output, scenes=None, workers=0, split="train", on_error="drop", **settings):
    chosen = fake_set.settings(**settings).check()
    scenes = fake_set.scenes() if scenes is None else scenes
    return run.prepare(chosen, split, scenes, [], output, source="here", workers=workers,
                       on_error=on_error)  # fmt: skip


def content(folder):
    """Bytes of the files that carry data: shards, progress, index, metadata, manifest."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def assert_same_frame(got, expected, exact=True):
    np.testing.assert_array_equal(got.image, expected.image)
    compare = np.testing.assert_array_equal
    if not exact:
        compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-5)  # noqa: E731
    compare(got.depth, expected.depth)
    np.testing.assert_array_equal(got.intrinsics, expected.intrinsics)
    np.testing.assert_array_equal(got.world_from_cam, expected.world_from_cam)
    assert (got.prior_depth is None) == (expected.prior_depth is None)
    if expected.prior_depth is not None:
        compare(got.prior_depth, expected.prior_depth)
        assert got.prior_focal == expected.prior_focal


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The four fake scenes without interruption."""
    output = tmp_path_factory.mktemp("whole") / "out"
    return output, prepare(output)


@pytest.mark.parametrize("depth", ["float32", "log16"])
def test_round_trip_with_priors_and_prescribed_pairs(tmp_path, depth):
    scenes = fake_set.scenes((3, 4), {1: {1}}, prior=True, pairs=True)
    report = prepare(tmp_path / "out", scenes, depth=depth, prior="depthpro")
    assert (report.scenes, report.frames) == (2, 6)
    assert [item[:2] for item in report.dropped] == [("part/01", "f001")]
    found, skipped = training_sets.scenes(
        "records", tmp_path / "out", TrainingOptions(prior="depthpro")
    )
    assert skipped == [] and [scene.name for scene in found] == ["part/00", "part/01"]
    assert found[0].dataset == "fake" and found[1].frames == ("f000", "f002", "f003")
    np.testing.assert_array_equal(found[0].pairs, [[0, 1], [1, 2]])
    np.testing.assert_array_equal(found[1].pairs, [[1, 2]])  # those with frame 1 are gone
    for scene, source in zip(found, scenes):
        for number, name in enumerate(scene.frames):
            expected = source.load(source.frames.index(name))
            assert_same_frame(scene.load(number), expected, exact=depth == "float32")
    without = records.scenes(tmp_path / "out", TrainingOptions())[0][1].load(0)
    assert without.prior_depth is None and without.prior_focal is None
    with pytest.raises(UserError, match="hold the prior 'depthpro', asked for is 'depthanything'"):
        records.scenes(tmp_path / "out", TrainingOptions(prior="depthanything"))
    with pytest.raises(UserError, match="parity=False"):
        records.scenes(tmp_path / "out", TrainingOptions(parity=True))


def test_resized_jpeg_equals_the_preprocessing(tmp_path):
    prepare(tmp_path / "out", size=32, image="jpeg", quality=90)
    source = fake_set.scenes()[2]
    frame = records.scenes(tmp_path / "out", TrainingOptions())[0][2].load(4)
    expected = resize.prepare_frame(source.load(4), 32)
    assert frame.image.shape == (24, 42, 3) == expected.image.shape
    np.testing.assert_array_equal(frame.depth, expected.depth)
    np.testing.assert_array_equal(frame.intrinsics, expected.intrinsics)
    with Image.open(io.BytesIO(frame_record.picture_bytes(expected.image, "jpeg", 90))) as jpeg:
        np.testing.assert_array_equal(frame.image, np.asarray(jpeg))


def test_shards_hold_whole_scenes_in_order(whole):
    output, report = whole
    entries = shards.read_entries(output, "train")
    assert report.shards == len(entries) > 3
    order = [(scene, frame) for entry in entries for scene, frames in entry.pieces
             for frame in frames]  # fmt: skip
    assert order == [(s, f) for s, count in enumerate((5, 3, 9, 4)) for f in range(count)]
    most = 1 + int(0.03 * 2**20 / 6000)  # no record is smaller
    for before, after in zip(entries, entries[1:]):
        split_scene = before.pieces[-1][0] == after.pieces[0][0]
        alone = len(before.pieces) == 1
        assert not split_scene or alone  # only a scene larger than a shard spans shards
        assert 2 <= before.records <= most
    listed = index.read(output, "train")
    assert [scene.first for scene in listed.scenes] == [0, 5, 8, 17]
    assert sum(count for _, count in listed.shards) == report.frames == 21


def test_scenes_travel_to_processes_and_threads(whole):
    output, _ = whole
    found, _ = records.scenes(output, TrainingOptions())
    again = pickle.loads(pickle.dumps(found))
    todo = [(scene, k) for scene in again for k in range(scene.num_frames)] * 3
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda item: item[0].load(item[1]).world_from_cam[:2, 3], todo))
    expected = [(int(scene.name[-2:]), k) for scene, k in todo]
    np.testing.assert_array_equal(loaded, expected)
    assert len(pickle.dumps(found[0])) < 2000  # no records, no open files


def test_tfds_reads_what_was_written_without_tensorflow(whole):
    output, report = whole
    opened = prepared.builder(output)
    source = opened.as_data_source(split="train")
    assert len(source) == report.frames and "tensorflow" not in sys.modules
    scenes = fake_set.scenes()
    for number in (0, 6, 20):
        row = source[number]
        scene = next(s for s in scenes if s.name == row["scene"].decode())
        expected = scene.load(int(row["frame_index"]))
        assert scene.frames[row["frame_index"]] == row["frame"].decode()
        np.testing.assert_array_equal(row["image"], expected.image)
        np.testing.assert_array_equal(row["depth"], expected.depth)
        np.testing.assert_array_equal(row["mask"][..., 0] == 255, expected.depth > 0)
        np.testing.assert_array_equal(row["intrinsics"], expected.intrinsics)
        np.testing.assert_array_equal(row["world_from_cam"], expected.world_from_cam)
    assert len(opened.as_data_source(split="train[10:]")) == report.frames - 10


@pytest.mark.parametrize("after", [1, 6, 13, 20])
def test_interrupted_and_resumed_equals_uninterrupted(whole, tmp_path, after):
    """Ctrl-C after some frames, whatever lies open then; twice, and with a file left behind."""
    seen = []

    def stop(count):
        seen.append(count)
        if sum(seen) >= after + 1:
            raise KeyboardInterrupt

    output = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run.prepare(fake_set.settings(), "train", fake_set.scenes(), [], output, source="here",
                        progress=stop)  # fmt: skip
    (output / ".prepared-train.array_record-00000.abcd.partial").write_bytes(b"half")
    report = prepare(output)
    assert report == whole[1] and content(output) == content(whole[0])
    assert prepare(output) == report and content(output) == content(whole[0])


def test_killed_run_with_worker_processes_is_resumed(whole, tmp_path):
    """SIGKILL in the middle; two processes before and after write what one writes."""
    output = tmp_path / "out"
    code = (
        "from pathlib import Path; from data.prepare import run;"
        "from tests.data.prepare import fake_set;"
        "run.prepare(fake_set.settings(), 'train', fake_set.scenes(), [], "
        f"Path({str(output)!r}), source='here', workers=2)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "FAKE_SECONDS": "0.3"},
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not shards.read_entries(output, "train") and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = shards.read_entries(output, "train")
    assert 0 < len(done) < whole[1].shards and not (output / run.MANIFEST).exists()
    with pytest.raises(UserError, match="is not finished"):
        records.scenes(output, TrainingOptions())
    report = prepare(output)
    assert report == whole[1] and content(output) == content(whole[0])


def test_a_lost_shard_is_written_again(whole, tmp_path):
    output = tmp_path / "out"
    report = prepare(output)
    (output / shards.shard_name("train", 2)).unlink()
    found, _ = records.scenes(output, TrainingOptions())
    with pytest.raises(UserError, match="00002.* cannot be read .it is missing.. Delete it"):
        for scene in found:
            for k in range(scene.num_frames):
                scene.load(k)
    assert prepare(output) == report and content(output) == content(whole[0])


def test_bad_frames_and_scenes_are_named_in_the_manifest(tmp_path):
    scenes = fake_set.scenes((2, 4, 3), {0: {1}, 1: {0, 2}})
    report = prepare(tmp_path / "out", scenes)
    assert report.scenes == 2 and report.frames == 5
    (skipped,) = report.skipped
    assert skipped.name == "part/00" and skipped.reason.startswith(
        "1 of 2 frames can be used, 2 are needed. The first that failed: 'fake/0/1.png'"
    )
    assert [item[:2] for item in report.dropped] == [
        ("part/00", "f001"), ("part/01", "f000"), ("part/01", "f002"),
    ]  # fmt: skip
    with pytest.raises(UserError, match="'part/00', frame 'f001': 'fake/0/1.png' cannot be read"):
        prepare(tmp_path / "strict", scenes, on_error="stop")
    with pytest.raises(UserError, match="Nothing of the train split of fake could be prepared"):
        prepare(tmp_path / "none", fake_set.scenes((2,), {0: {0}}))


def test_two_splits_share_a_folder_and_nothing_else_may(tmp_path):
    output = tmp_path / "out"
    prepare(output, fake_set.scenes((3, 2)))
    prepare(output, fake_set.scenes((2,)), split="test")
    opened = prepared.builder(output)
    assert {name: info.num_examples for name, info in opened.info.splits.items()} == {
        "train": 5, "test": 2,
    }  # fmt: skip
    assert len(records.scenes(output, TrainingOptions("test"))[0]) == 1
    with pytest.raises(UserError, match=r"other settings: quality=75 \(now 80\)"):
        prepare(output, fake_set.scenes((3, 2)), quality=80)
    with pytest.raises(UserError, match="no longer those"):
        prepare(output, fake_set.scenes((3, 3)))
    with pytest.raises(UserError, match="read it as 'records', not as 'waymo'"):
        training_sets.scenes("waymo", output)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="not empty and was not begun"):
        prepare(tmp_path / "photos")
    with pytest.raises(UserError, match="preparation.json is missing"):
        records.scenes(tmp_path / "photos", TrainingOptions())


def test_a_second_run_at_once_is_refused(tmp_path):
    def again(count):
        with pytest.raises(UserError, match="Another run is writing"):
            prepare(tmp_path / "out", fake_set.scenes((2,)))

    run.prepare(fake_set.settings(), "train", fake_set.scenes((2,)), [], tmp_path / "out",
                source="here", progress=again)  # fmt: skip


def test_full_disk_is_a_sentence_and_the_run_goes_on_later(tmp_path):
    output = tmp_path / "out"
    code = (
        "import resource, signal; from pathlib import Path; from data.prepare import run;"
        "from tests.data.prepare import fake_set;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY));"
        "run.prepare(fake_set.settings(), 'train', fake_set.scenes((4, 2)), [], "
        f"Path({str(output)!r}), source='here')"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "UserError" in process.stderr and "the disk is full" in process.stderr, process.stderr
    assert not list(output.glob("*array_record*")) and not list(output.glob(".*partial"))
    assert prepare(output, fake_set.scenes((4, 2))).frames == 6


def test_generator_builder_writes_the_same_features(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(training_sets, "scenes", lambda *_: (fake_set.scenes((2, 2)), []))
    built = prepared.generator_class()(
        root=tmp_path, settings=fake_set.settings(), data_dir=str(tmp_path / "tfds")
    )
    built.download_and_prepare()
    rows = {(r["scene"], int(r["frame_index"])): r for r in built.as_data_source(split="train")}
    assert len(rows) == 4 and "tensorflow" not in sys.modules
    expected = fake_set.scenes((2, 2))[1].load(1)
    np.testing.assert_array_equal(rows[b"part/01", 1]["depth"], expected.depth)
    encoding = frame_record.Encoding.of(fake_set.settings())
    assert set(rows[b"part/00", 0]) == set(frame_record.features(encoding))


def test_packages_that_are_missing_are_a_sentence(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_record.importlib.util, "find_spec", lambda name: None)
    for work in (
        lambda: prepare(tmp_path / "out"),
        lambda: records.scenes(whole[0], TrainingOptions()),
    ):
        with pytest.raises(UserError, match="need the package tensorflow_datasets: pip install"):
            work()
    assert not (tmp_path / "out").exists()
