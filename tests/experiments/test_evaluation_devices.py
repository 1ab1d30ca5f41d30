"""Several devices in one process: each works, nothing depends on how many there are."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from align3r_jax.errors import UserError
from align3r_jax.evaluation import methods
from experiments import evaluation_devices
from experiments.evaluation_run import Job

ROOT = Path(__file__).parents[2]
NAMES = ["a", "b", "c", "d", "e"]


def _job(tmp_path):
    return Job("motion", "x", "ours", SimpleNamespace(), methods.Networks(), tmp_path)


def test_every_sequence_once_and_failures_come_through(tmp_path):
    """Two places on the one device there is: who meets whom at the barrier runs side by side."""
    (device,) = jax.local_devices()[:1]
    together = threading.Barrier(2, timeout=60)

    def one(job, name, opener):
        if name in "ab":
            together.wait()
        if name == "e":
            raise KeyError(name)
        return {"name": name, "opened": opener()}

    openers = [(name, lambda name=name: name.upper()) for name in NAMES]
    found = dict(evaluation_devices.run(_job(tmp_path), openers[:4], [device] * 2, one))
    assert found == {name: {"name": name, "opened": name.upper()} for name in NAMES[:4]}
    with pytest.raises(KeyError):
        dict(evaluation_devices.run(_job(tmp_path), openers[4:], [device] * 2, one))
    alone = evaluation_devices.run(_job(tmp_path), openers[2:4], [device], one)
    assert [name for name, _ in alone] == ["c", "d"]


def test_devices_are_counted():
    count = len(jax.local_devices())
    assert evaluation_devices.chosen("1") == jax.local_devices()[:1]
    assert len(evaluation_devices.chosen("all")) == count
    for wrong in ("0", str(count + 1), "two", "-1"):
        with pytest.raises(UserError, match=f"from 1 to {count}"):
            evaluation_devices.chosen(wrong)


@pytest.mark.slow
def test_two_virtual_devices_give_the_numbers_of_one(tmp_path):
    """The default way of running, on three procedural clips."""
    flags = ["--task=video_depth", "--dataset=procedural", "--protocol=ours", "--noplots",
             "--sequences=desk,room,street", "--max_frames=4", "--size=64"]  # fmt: skip
    summaries, devices = {}, {}
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
        devices[count] = {record["device"] for record in records}
    assert devices == {"1": {"cpu:0"}, "2": {"cpu:0", "cpu:1"}}
    assert summaries["1"]["sequences"] == summaries["2"]["sequences"]
    assert list(summaries["2"]["sequences"]) == ["desk", "room", "street"]
