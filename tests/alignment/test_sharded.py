"""Alignment over several devices and processes equals that on one, and exchanges what it must."""

import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from align3r_jax.alignment import batch, sharded
from align3r_jax.errors import UserError
from tests.alignment import recorded, tiny

ROOT = Path(__file__).parents[2]


def _run(tmp_path, kind, clips, pairs, *, devices, processes=1):
    """(collectives by name, [(leaf on the mesh, leaf on one device)]) of `sharded_run`."""
    out = tmp_path / "result.npz"
    command = [sys.executable, "-m", "tests.alignment.sharded_run", kind, str(clips), str(pairs)]
    command.append(str(out))
    flag = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    running = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    for index in range(processes):
        more = [address, str(processes), str(index)] if processes > 1 else []
        running.append(
            subprocess.Popen(
                command + more, cwd=ROOT, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    outputs = [process.communicate(timeout=400)[0] for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(outputs)
    result = np.load(out)
    count = sum(name.startswith("mesh_") for name in result.files)
    leaves = [(result[f"mesh_{k}"], result[f"alone_{k}"]) for k in range(count)]
    return Counter(result["collectives"].tolist()), leaves


def _assert_equal(leaves, tolerance):
    for got, expected in leaves:
        scale = max(1.0, np.abs(expected.astype(float)).max(initial=0.0))
        np.testing.assert_allclose(got, expected, atol=tolerance * scale)


@pytest.mark.slow
def test_one_step_over_the_pairs_exchanges_three_sums(tmp_path):
    collectives, leaves = _run(tmp_path, "step", 1, 4, devices=4)
    _assert_equal(leaves, 1e-6)
    # The gathers hand round the list of pairs and fields, once, before the loop.
    # The compiler may join the two that follow each other.
    assert collectives["all-reduce"] in (2, 3)
    assert set(collectives) <= {"all-reduce", "all-gather"}


@pytest.mark.slow
def test_clips_over_eight_devices_exchange_nothing(tmp_path):
    collectives, leaves = _run(tmp_path, "whole", 8, 1, devices=8)
    _assert_equal(leaves, 1e-5)
    assert not collectives


@pytest.mark.slow
@pytest.mark.parametrize("clips, pairs", [(1, 8), (2, 4)])
def test_pairs_over_eight_devices(tmp_path, clips, pairs):
    _, leaves = _run(tmp_path, "whole", clips, pairs, devices=8)
    _assert_equal(leaves, 1e-5)


@pytest.mark.slow
def test_two_processes(tmp_path):
    _, leaves = _run(tmp_path, "whole", 2, 2, devices=2, processes=2)
    _assert_equal(leaves, 1e-5)


def test_what_does_not_divide_is_refused():
    predictions, _, _, _ = tiny.problem()
    clip = (predictions, recorded.graph(tiny.PAIRS), batch.AlignmentPriors())
    with pytest.raises(UserError, match="devices"):
        sharded.make_mesh(8, 100)
    mesh = type("Mesh", (), {"shape": {"clips": 1, "pairs": 3}})()
    stacked = batch.pad_and_stack([clip])
    with pytest.raises(UserError, match="multiple"):
        sharded.place(stacked, mesh)
    assert batch.pad_and_stack([clip], multiple=3).graph.pairs.shape == (1, 9, 2)
