"""The loop: resuming equals running through, logs say each step once, signals save, NaN stops."""

import csv
import json
import os
import signal

import jax
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.training import step as step_lib
from tests.training import tiny_run

# Of the clock and the machine, not of the run.
MEASURED = {
    "samples_per_second", "step_seconds", "data_wait", "memory_mb", "mfu", "prepare_seconds",
    "seconds",
}  # fmt: skip


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _unmeasured(folder):
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in _lines(folder)]


def _assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    """(folder, final state) of a run of 12 steps without interruption."""
    folder = tmp_path_factory.mktemp("through")
    return folder, tiny_run.train(folder, 12, tensorboard=True)


def test_resuming_equals_running_through(through, tmp_path):
    folder, final = through
    tiny_run.train(tmp_path, 7)
    # Lines behind the checkpoint, the last one unfinished: what a kill leaves.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 77.0}\n{"step": 10, "lo')
    resumed = tiny_run.train(tmp_path, 12)
    assert int(resumed.step) == 12
    _assert_equal(final, resumed)
    # The first run ended at 7 with a line, which is the only difference: its interval 7 to 9 was
    # cut in two.
    lines = {line["step"]: line for line in _unmeasured(tmp_path)}
    expected = {line["step"]: line for line in _unmeasured(folder)}
    assert list(lines) == [3, 4, 6, 7, 8, 9, 12] and list(expected) == [3, 4, 6, 8, 9, 12]
    assert all(lines[k] == expected[k] for k in (3, 4, 6, 8, 12))


def test_a_stopped_interval_is_averaged_as_if_it_had_not_been(through, tmp_path):
    folder, final = through

    def interrupted(number):
        if number == 6 and not (tmp_path / "sent").exists():
            (tmp_path / "sent").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return tiny_run.batch_of(number)

    stopped = tiny_run.train(tmp_path, 12, batch_of=interrupted)
    assert int(stopped.step) == 7, "the step under way ends, then the state is saved"
    resumed = tiny_run.train(tmp_path, 12, batch_of=interrupted)
    _assert_equal(final, resumed)
    assert _unmeasured(tmp_path) == _unmeasured(folder)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_ctrl_c_saves_and_the_time_limit_does(tmp_path):
    def interrupted(number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return tiny_run.batch_of(number)

    assert int(tiny_run.train(tmp_path / "a", 12, batch_of=interrupted).step) == 2
    assert (tmp_path / "a" / "checkpoints" / "2").is_dir()
    assert int(tiny_run.train(tmp_path / "b", 12, max_seconds=0.0).step) == 1
    assert (tmp_path / "b" / "checkpoints" / "1").is_dir()


def test_what_the_log_says(through):
    folder, final = through
    trained = [line for line in _lines(folder) if "loss" in line]
    assert [line["step"] for line in trained] == [3, 6, 9, 12]
    for line in trained:
        assert line["skipped"] == 0 and line["non_finite"] == 0
        assert 0 <= line["data_wait"] <= 1 and 0 < line["mfu"] < 1
        np.testing.assert_allclose(line["samples_per_second"] * line["step_seconds"], 8, rtol=1e-4)
    scores = [line for line in _lines(folder) if "eval/monitor" in line]
    assert [line["step"] for line in scores] == [4, 8, 12]
    for line in scores:
        middle = (line["eval/near/loss_med"] + line["eval/far/loss_med"]) / 2
        np.testing.assert_allclose(line["eval/monitor"], middle, rtol=1e-6)
    last = tiny_run.evaluate(final.average)
    np.testing.assert_allclose(scores[-1]["eval/near/loss"], last["near"]["loss"], rtol=1e-6)
    assert json.loads((folder / "config.json").read_text()) == {"lr": tiny_run.CONFIG.lr}
    assert "float32" in json.loads((folder / "run.json").read_text())["peak_source"]


def test_the_table_and_the_event_file_say_the_same(through):
    folder, _ = through
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = _lines(folder)
    assert [int(row["step"]) for row in rows] == [line["step"] for line in lines]
    for row, line in zip(rows, lines):
        assert {k: float(v) for k, v in row.items() if v} == line
    assert _events(folder, "train/loss") == [
        (line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in lines if "loss" in line
    ]


def _events(folder, tag):
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in (folder / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            found += [(event.step, v.simple_value) for v in event.summary.value if v.tag == tag]
            data = data[16 + size :]
    return found


def test_pictures_are_written_where_they_are_due(tmp_path):
    drawn = []

    def pictures(params):
        drawn.append(params)
        return {"room": np.full((4, 6, 3), len(drawn), np.uint8)}

    tiny_run.train(tmp_path, 4, pictures=pictures, images_every=2)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == ["room_00000002.png", "room_00000004.png"]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path):
    def late(number):
        batch = tiny_run.batch_of(number)
        return batch if number < 6 else batch | {"y": batch["y"] * np.nan}

    with pytest.raises(UserError, match="not finite in 1 of the steps up to 8; lower config.opt"):
        tiny_run.train(tmp_path, 12, batch_of=lambda n: late(n) if n == 6 else tiny_run.batch_of(n))
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert max(kept) == 5, "8 was best, but comes after the bad step"
    final = tiny_run.train(tmp_path, 12, batch_of=late, stop_on_non_finite=False)
    assert int(final.step) == 12 and np.isfinite(final.params["w"]).all()
    line = _lines(tmp_path)[-1]
    assert line["non_finite"] == 3 and line["skipped"] == 6
    assert "loss" not in line


def test_a_run_with_other_data_is_not_continued(tmp_path):
    tiny_run.train(tmp_path, 3, position={"resolutions": [[2, 2]]})
    for changes, words in (
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"batch_size": 4}, "batch_size was 8 and is now 4"),
    ):
        with pytest.raises(UserError, match=words):
            tiny_run.train(tmp_path, 6, position={"resolutions": [[2, 2]]}, **changes)
    with pytest.raises(UserError, match="resolutions was"):
        tiny_run.train(tmp_path, 6, position={"resolutions": [[4, 4]]})


def test_one_compilation_per_shape(tmp_path):
    traced = []

    def loss(params, batch, key):
        traced.append(batch["x"].shape)
        return tiny_run.loss(params, batch, key)

    def batch_of(number):
        batch = tiny_run.batch_of(number)
        return batch if number % 2 else jax.tree.map(lambda x: x[:4], batch)

    step = step_lib.make_step(loss, tiny_run.TX, 0.9)
    tiny_run.train(tmp_path, 6, batch_of=batch_of, step=step)
    assert sorted(traced) == [(4, 3), (8, 3)]
