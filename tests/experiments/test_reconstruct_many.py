"""Many clips: who gets which, what is skipped, what a failure or a killed process leaves behind."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from align3r_jax.config import ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.io import video as video_lib
from experiments import clip_sources, reconstruct_many, reconstruct_video
from experiments.reconstruct_video import Models, Settings
from tests.experiments.test_reconstruct import _layers, _write_frames

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Folders of 3, 5 and 4 frames of 64 x 48 pixels."""
    folder = tmp_path_factory.mktemp("clips")
    for name, count in (("a", 3), ("b", 5), ("c", 4)):
        _write_frames(folder / name, _layers(count, 48, 64))
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Reconstructions that only write a summary; name of a clip -> error to raise instead."""
    errors, done = {}, []

    def fake(source, output, settings, models, *, facts, stop, **ignored):
        name = Path(source).name
        done.append((name, settings))
        if name in errors:
            raise errors[name]
        output.mkdir(exist_ok=True)
        summary = {"frames": 3, "stages": [{"seconds": 1.5}], **facts}
        text = json.dumps({"format": "align3r_jax scene, version 1", **summary})
        (output / "summary.json").write_text(text)
        return summary

    monkeypatch.setattr(reconstruct_video, "reconstruct_video", fake)
    monkeypatch.setattr(
        reconstruct_video, "open_places", lambda _, devices, *more: [(d, Models()) for d in devices]
    )
    return errors, done


def _many(clips, output, **settings):
    found = Settings(ReconstructConfig(prior="plane"), **settings)
    return reconstruct_many.reconstruct_many([str(clips / "*")], output, found)


def test_longest_first_failures_told_and_only_what_is_missing_done_again(clips, tmp_path, quick):
    errors, done = quick
    errors |= {"c": UserError("c is no good."), "a": ValueError("a defect")}
    output = tmp_path / "out"
    outcomes = _many(clips, output)
    assert [name for name, _ in done] == ["b", "c", "a"]
    assert list(outcomes) == ["a", "b", "c"]
    assert outcomes["b"]["status"] == "finished" and outcomes["b"]["frames"] == 3
    assert outcomes["c"]["error"] == "c is no good." and "traceback" not in outcomes["c"]
    assert outcomes["a"]["error"] == "ValueError: a defect" and "fake" in outcomes["a"]["traceback"]
    told = json.loads((output / "clips.json").read_text())
    assert told["counts"] == {"finished": 1, "failed": 2}
    assert told["clips"]["c"]["error"] == "c is no good."
    page = (output / "index.html").read_text()
    assert 'href="b/report.html"' in page and "c is no good." in page and 'href="c' not in page

    errors.clear()
    del done[:]
    again = _many(clips, output)
    assert [name for name, _ in done] == ["c", "a"], "b is finished"
    assert all(settings.resume for _, settings in done)
    assert {found["status"] for found in again.values()} == {"finished"}
    # Without the outcomes the results speak for themselves.
    for path in (output / ".queue").glob("*.json"):
        path.unlink()
    (output / "b.partial").mkdir()
    (output / "b.partial" / "alignment.npz").touch()
    del done[:]
    assert _many(clips, output)["b"]["seconds"] == 1.5 and not done
    assert not (output / "b.partial").exists()


def test_a_result_of_other_settings_is_not_passed_off_as_this_one(clips, tmp_path, quick):
    _, done = quick
    _many(clips, tmp_path / "out")
    del done[:]
    outcomes = _many(clips, tmp_path / "out", masks=str(tmp_path / "{clip}"))
    assert not done and all("--overwrite" in found["error"] for found in outcomes.values())
    outcomes = _many(clips, tmp_path / "out", masks=str(tmp_path / "{clip}"), overwrite=True)
    assert len(done) == 3 and outcomes["a"]["status"] == "finished"
    assert done[0][1].masks == str(tmp_path / "b")


def test_clips_of_dead_processes_are_taken_over_but_not_for_ever(clips, tmp_path, quick):
    _, done = quick
    output = tmp_path / "out"
    script = (
        "import os, sys; from align3r_jax.io.work_queue import WorkQueue\n"
        f"queue = WorkQueue({str(output / '.queue')!r})\n"
        "assert queue.claim('a') and (len(sys.argv) < 2 or queue.claim('b')); os._exit(9)"
    )
    for more in (["b"], [], [], [], []):
        subprocess.run([sys.executable, "-c", script, *more])
    (output / ".b.0123abcd.partial").mkdir()
    outcomes = _many(clips, output)
    assert [name for name, _ in done] == ["b", "c"]
    assert "5 processes died" in outcomes["a"]["error"]
    assert not (output / ".b.0123abcd.partial").exists()


def test_devices_share_the_clips(clips, tmp_path, quick, monkeypatch):
    """Two places on the one device there is: who meets whom at the barrier runs side by side."""
    together = threading.Barrier(2, timeout=60)
    fake = reconstruct_video.reconstruct_video

    def meet(source, *arguments, allowance, **named):
        assert allowance > 0
        if Path(source).name in "bc":
            together.wait()
        return fake(source, *arguments, **named)

    monkeypatch.setattr(reconstruct_video, "reconstruct_video", meet)
    two = jax.local_devices()[:1] * 2
    monkeypatch.setattr(reconstruct_many.devices, "chosen", lambda text: two)
    outcomes = _many(clips, tmp_path / "out")
    assert sorted(name for name, _ in quick[1]) == ["a", "b", "c"]
    assert {found["status"] for found in outcomes.values()} == {"finished"}


def test_files_of_one_clip_are_not_used_for_all(clips, tmp_path):
    with pytest.raises(UserError, match=r"--masks=m would be used .* m/\{clip\}"):
        _many(clips, tmp_path / "out", masks="m")
    with pytest.raises(UserError, match="--videos=.* matches no video"):
        _many(tmp_path / "nowhere", tmp_path / "out")


def test_names_are_unique_and_mean_nothing_else(tmp_path):
    for path in ("x/a.mp4", "y/a.mp4", "y/A.mov", "b.partial.mp4", "b.mp4", "clips.json.mp4"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "x/a.truth.npz").touch()
    found = clip_sources.find([str(tmp_path / "*.mp4"), str(tmp_path / "?/*")], "videos")
    names = {str(clip.path.relative_to(tmp_path)): clip.name for clip in found}
    assert names["x/a.mp4"] == "x_a.mp4" and names["y/A.mov"] == "y_A.mov"
    assert len({name.casefold() for name in names.values()}) == len(names) == 6
    alone = {path: clip_sources.names([tmp_path / path]) for path in names}
    assert alone["b.partial.mp4"] == ["b.partial_"] and alone["clips.json.mp4"] == ["clips.json_"]
    assert clip_sources.names([Path("a/b_c"), Path("a_b/c"), Path("b_c")])[0].startswith("a_b_c")


def test_cost_grows_with_the_frames_that_are_taken(clips, tmp_path):
    sources = {clip.name: clip for clip in clip_sources.find([str(clips / "*")], "videos")}
    every = reconstruct_video.reading(Settings(ReconstructConfig()), Models())
    config = ReconstructConfig()
    costs = {name: clip_sources.cost(clip, every, config) for name, clip in sources.items()}
    assert costs["b"] > costs["c"] > costs["a"]
    fewer = every | {"max_frames": 3}
    assert clip_sources.cost(sources["b"], fewer, config) == costs["a"]
    assert clip_sources.cost(sources["b"], every | {"stride": 2}, config) == costs["a"]
    (tmp_path / "x.mp4").write_bytes(b"no video")
    assert clip_sources.cost(clip_sources.Source(tmp_path / "x.mp4", "x"), every, config) == np.inf


def test_the_head_of_a_video_tells_its_length():
    path = ROOT / "data/samples/room_walk.mp4"
    frames, _ = video_lib.read_frames(path, size=64, keep_originals=False)
    found = video_lib.measure(path)
    assert (found.frames, found.size) == (frames.num_frames, frames.size.original)
