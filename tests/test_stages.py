"""Stages are measured, kept whole, taken again only for the same settings."""

import ctypes
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from align3r_jax import plan, stages
from align3r_jax.structs import DepthPrior, OpticalFlow


def _prior():
    depth = np.linspace(1, 2, 24, dtype=np.float32).reshape(2, 3, 4)
    return DepthPrior(depth, depth, None, "plane")


def test_a_tree_survives_the_disk(tmp_path):
    flow = OpticalFlow(
        np.array([[0, 1]], np.int32), np.ones((1, 3, 4, 2)), np.ones((1, 3, 4)), name="dis"
    )
    tree = {"prior": _prior(), "flow": flow, "loss": 0.5, "names": ("a", "b"), "none": None}
    stages.save_tree(tmp_path / "x.npz", tree, "f")
    (back,) = stages.load_tree(tmp_path / "x.npz", "f")
    assert back["prior"].name == "plane" and back["prior"].focal is None
    np.testing.assert_array_equal(back["prior"].depth, tree["prior"].depth)
    np.testing.assert_array_equal(back["flow"].pairs, flow.pairs)
    assert back["loss"] == 0.5 and back["names"] == ("a", "b") and back["none"] is None


def test_another_fingerprint_or_a_damaged_file_is_not_used(tmp_path):
    path = tmp_path / "x.npz"
    stages.save_tree(path, _prior(), "f")
    assert stages.load_tree(path, "g") is None
    path.write_bytes(path.read_bytes()[:-50])
    assert stages.load_tree(path, "f") is None
    assert stages.load_tree(tmp_path / "missing.npz", "f") is None


def test_a_foreign_type_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    stages.save_tree(path, _prior(), "f")
    with np.load(path) as file:
        content = dict(file)
    text = str(content["description"]).replace("align3r_jax.structs", "subprocess")
    content["description"] = np.array(text)
    np.savez(path, **content)
    assert stages.load_tree(path, "f") is None


def test_a_resumed_run_takes_finished_stages_and_computes_the_rest(tmp_path):
    first = stages.Run(tmp_path, "f")
    first.stage("depth prior", _prior)
    with pytest.raises(KeyboardInterrupt):
        first.stage("alignment", _interrupt)
    calls = []
    second = stages.Run(tmp_path, "f", resume=True)
    prior = second.stage("depth prior", lambda: calls.append("prior"))
    assert prior.name == "plane" and not calls
    assert second.stage("alignment", lambda: 7) == 7
    assert [r.get("resumed", False) for r in second.records] == [True, False]
    assert second.records[1]["peak_memory_mb"] > 0


def test_a_record_says_how_long_after_the_start_of_the_process_a_stage_ended():
    script = (
        "import time; time.sleep(0.3); from align3r_jax import stages; run = stages.Run();"
        "run.stage('one', lambda: time.sleep(0.1)); run.stage('two', lambda: 1);"
        "print([record['since_start'] for record in run.records], stages.seconds_since_start())"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    one, two, now = map(float, re.findall(r"[\d.]+", done.stdout))
    assert 0.1 <= one <= two <= now + 1e-3 <= time.perf_counter() - began + 0.02
    if Path("/proc/self/stat").exists():  # elsewhere it is counted from the import
        assert one >= 0.4 - 0.02  # the kernel counts hundredths


def test_a_new_run_computes_everything(tmp_path):
    stages.Run(tmp_path, "f").stage("depth prior", _prior)
    assert stages.Run(tmp_path, "f").stage("depth prior", lambda: 3) == 3


def test_freed_memory_goes_back_to_the_system():
    """Arrays of 64 KB under one that stays: without help the process keeps their place."""
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("another C library than glibc")
    held = [np.ones(2**16, np.uint8) for _ in range(2000)]
    last = held[-1]
    full = plan.resident_memory()
    del held
    stages.Run().stage("nothing", lambda: None)
    assert plan.resident_memory() < full - 100e6 and last.all()


def _interrupt():
    raise KeyboardInterrupt


def test_limits_are_noted_once():
    run = stages.Run()
    run.limit("a")
    run.limit("a")
    assert run.limits == ["a"]
