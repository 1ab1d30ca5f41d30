"""Two processes of four devices each share a folder of clips, and one is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.test_reconstruct import _layers, _write_frames

ROOT = Path(__file__).parents[2]
NAMES = "abcdefghij"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Ten clips of one shape, so that every device compiles once."""
    folder = tmp_path_factory.mktemp("clips")
    for name in NAMES:
        _write_frames(folder / name, _layers(3, 48, 64))
    return folder


def _start(clips, output, log, *more):
    command = [
        sys.executable, "-m", "experiments.reconstruct", f"--videos={clips}/*",
        f"--output={output}", "--size=64", "--iterations=5", "--prior=plane",
        "--graph=swin-1-noncyclic", *more,
    ]  # fmt: skip
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }  # fmt: skip
    with log.open("a") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)


def _finished(output):
    """Clip -> time at which its summary was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in output.glob("?/summary.json")}


def _wait_for_a_clip(output, running):
    deadline = time.monotonic() + 1800
    while not _finished(output) and time.monotonic() < deadline:
        assert all(process.poll() is None for process in running)
        time.sleep(0.1)
    assert _finished(output)


def _check_all(output, logs):
    table = json.loads((output / "clips.json").read_text())
    assert table["counts"] == {"finished": len(NAMES)}
    told = "".join(log.read_text() for log in logs)
    assert all(told.count(f"] {name}: ") <= 1 for name in NAMES), "no clip is done twice"
    depths = [np.load(output / name / "depth/frame_0000.npy") for name in NAMES]
    for depth in depths[1:]:  # whichever process and device: the clips are equal
        np.testing.assert_array_equal(depth, depths[0])
    assert not list(output.glob("*.partial")) and not list(output.glob(".?.*"))


@pytest.mark.slow
def test_killed_processes_lose_no_finished_clip(clips, tmp_path):
    output, logs = tmp_path / "out", [tmp_path / "0.log", tmp_path / "1.log"]
    running = [_start(clips, output, log) for log in logs]
    try:
        _wait_for_a_clip(output, running)
        for process in running:
            process.send_signal(signal.SIGKILL)
            process.wait()
        before = _finished(output)
        running = [_start(clips, output, log) for log in logs]
        assert [process.wait(timeout=1800) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    after = _finished(output)
    assert {name: after[name] for name in before} == before
    _check_all(output, logs)


@pytest.mark.slow
def test_the_others_go_on_when_one_of_a_distributed_run_dies(clips, tmp_path):
    output, logs = tmp_path / "out", [tmp_path / "0.log", tmp_path / "1.log"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"--coordinator=127.0.0.1:{probe.getsockname()[1]}"
    running = [
        _start(clips, output, log, address, "--num_processes=2", f"--process_id={k}")
        for k, log in enumerate(logs)
    ]
    try:
        _wait_for_a_clip(output, running)
        running[1].send_signal(signal.SIGKILL)
        assert running[0].wait(timeout=1800) == 0, logs[0].read_text()
    finally:
        for process in running:
            process.kill()
    _check_all(output, logs)


@pytest.mark.slow
def test_two_devices_to_a_clip_give_what_one_gives(clips, tmp_path):
    some = clips.parent / "some"
    some.mkdir()
    for name in "abc":
        (some / name).symlink_to(clips / name)
    network = "--weights=align3r_small"
    divided = ("--devices_per_clip=2", "--fsdp=2", "--verbosity=0")
    for folder, how in (("one", ("--devices=1",)), ("two", divided)):
        log = tmp_path / f"{folder}.log"
        running = _start(some, tmp_path / folder, log, network, *how)
        assert running.wait(timeout=1800) == 0, log.read_text()
    assert "; 2 places" in (tmp_path / "two.log").read_text()
    for name in "abc":
        one, two = (
            np.load(tmp_path / folder / name / "depth/frame_0002.npy") for folder in ("one", "two")
        )
        np.testing.assert_allclose(two, one, rtol=1e-4)
