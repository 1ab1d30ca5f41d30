"""Several devices in one process: each works, nothing depends on how many there are."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.evaluation import methods
from align3r_jax.weights.store import LoadedNetwork
from experiments import devices, evaluation_run
from experiments.evaluation_run import Job

ROOT = Path(__file__).parents[2]
NAMES = ["a", "b", "c", "d", "e"]


def _job(tmp_path):
    return Job("motion", "x", "ours", SimpleNamespace(), methods.Networks(), tmp_path)


def test_every_sequence_once_and_failures_come_through(tmp_path, monkeypatch):
    """Two places on the one device there is: who meets whom at the barrier runs side by side."""
    (device,) = jax.local_devices()[:1]
    together = threading.Barrier(2, timeout=60)

    def one(job, name, opener):
        if name in "ab":
            together.wait()
        if name == "e":
            raise KeyError(name)
        return {"name": name, "opened": opener()}

    def run(openers, count):
        job = _job(tmp_path)
        return evaluation_run.kept_or_evaluated_on([device] * count, job, openers)

    monkeypatch.setattr(evaluation_run, "kept_or_evaluated", one)
    openers = [(name, lambda name=name: name.upper()) for name in NAMES]
    found = dict(run(openers[:4], 2))
    assert found == {name: {"name": name, "opened": name.upper()} for name in NAMES[:4]}
    with pytest.raises(KeyError):
        dict(run(openers[4:], 2))
    assert [name for name, _ in run(openers[2:4], 1)] == ["c", "d"]


def test_a_failure_stops_the_others_and_devices_are_not_left_behind():
    (device,) = jax.local_devices()[:1]
    stop = threading.Event()
    seen = []

    def work(place):
        yield f"{place} starts"
        if place == "broken":
            raise OSError("gone")
        stop.wait(60)
        seen.append(jax.config.jax_default_device)
        yield f"{place} goes on"

    with pytest.raises(OSError, match="gone"):
        list(devices.run([(device, "broken"), (device, "well")], work, stop.set))
    assert seen == [device]
    alone = devices.run([(device, "well")], work)
    assert next(alone) == "well starts" and jax.config.jax_default_device is None
    alone.close()


def test_devices_are_counted():
    count = len(jax.local_devices())
    assert devices.chosen("1") == jax.local_devices()[:1]
    assert len(devices.chosen("all")) == count
    for wrong in ("0", str(count + 1), "two", "-1"):
        with pytest.raises(UserError, match=f"from 1 to {count}"):
            devices.chosen(wrong)


@pytest.mark.slow
def test_two_virtual_devices_give_the_numbers_of_one(tmp_path):
    """The default way of running, on three procedural clips."""
    flags = ["--task=video_depth", "--dataset=procedural", "--protocol=ours", "--noplots",
             "--sequences=desk,room,street", "--max_frames=4", "--size=64"]  # fmt: skip
    summaries, used = {}, {}
    for count in ("1", "2"):
        output = tmp_path / count
        process = subprocess.run(
            [sys.executable, "-m", "experiments.evaluate", *flags, f"--output={output}",
             f"--devices={count}"],
            capture_output=True, text=True, timeout=1800, cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu",
                 "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        summaries[count] = json.loads((output / "summary.json").read_text())
        records = [json.loads(path.read_text()) for path in (output / "sequences").iterdir()]
        used[count] = {record["device"] for record in records}
    assert used == {"1": {"cpu:0"}, "2": {"cpu:0", "cpu:1"}}
    assert summaries["1"]["sequences"] == summaries["2"]["sequences"]
    assert list(summaries["2"]["sequences"]) == ["desk", "room", "street"]


def test_devices_are_divided_among_clips():
    (device,) = jax.local_devices()[:1]
    params = {"a": np.ones((4, 3), np.float32)}

    def load(sharding):
        placed = jax.tree.map(jax.device_put, params, sharding(params))
        return LoadedNetwork(None, placed, "x", "c", {})

    found = devices.open_divided(load, [device] * 3, devices.Division())
    assert [place for place, _ in found] == [device] * 3
    assert all(network.params["a"].sharding.is_fully_replicated for _, network in found)
    assert len(devices.open_divided(load, [device] * 3, devices.Division(1, 1), groups=1)) == 1
    for wrong in ((2, 0), (3, 2), (0, 2), (0, 4)):
        with pytest.raises(UserError, match="--devices_per_clip must be a divisor"):
            devices.open_divided(load, [device] * 3, devices.Division(*wrong))
