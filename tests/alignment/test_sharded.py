"""Alignment over several devices and processes equals that on one, and exchanges what it must."""

from collections import Counter

import numpy as np
import pytest

from align3r_jax.alignment import batch, sharded
from align3r_jax.errors import UserError
from tests import processes as launcher
from tests.alignment import recorded, tiny

BOTH = ("adam", "gauss_newton")


def _run(tmp_path, kind, clips, pairs, *, devices, processes=1, solvers=BOTH):
    """solver -> (collectives by name, [(leaf on the mesh, on one device)]) of `sharded_run`."""
    out = tmp_path / "result.npz"
    module = "tests.alignment.sharded_run"
    arguments = (kind, clips, pairs, ",".join(solvers), out)
    launcher.run(module, *arguments, devices=devices, processes=processes)
    result = np.load(out)
    found = {}
    for solver in solvers:
        count = sum(name.startswith(f"{solver}_mesh_") for name in result.files)
        leaves = [
            (result[f"{solver}_mesh_{k}"], result[f"{solver}_alone_{k}"]) for k in range(count)
        ]
        found[solver] = Counter(result[f"{solver}_collectives"].tolist()), leaves
    return found


def _assert_equal(found, tolerance):
    for _, leaves in found.values():
        assert leaves
        for got, expected in leaves:
            scale = max(1.0, np.abs(expected.astype(float)).max(initial=0.0))
            np.testing.assert_allclose(got, expected, atol=tolerance * scale)


@pytest.mark.slow
def test_one_step_over_the_pairs_exchanges_what_it_must(tmp_path):
    found = _run(tmp_path, "step", 1, 4, devices=4)
    _assert_equal(found, 1e-5)
    adam, gauss_newton = (found[solver][0] for solver in BOTH)
    # Adam: the flow term's sums, the gradient of the depth, all else. The gathers hand round the
    # list of pairs and fields, once, before the loop.
    # The compiler may join the two that follow each other.
    assert adam["all-reduce"] in (2, 3) and adam["all-gather"] <= 2
    # Gauss-Newton: the lattice once, in as many gathers as it has types; then equations and depths
    # by frames. The losses are summed once at the start and once in a step.
    assert gauss_newton["all-gather"] <= 2 + 3 + 2
    assert gauss_newton["all-reduce"] == 2
    assert set(adam) | set(gauss_newton) == {"all-reduce", "all-gather"}


@pytest.mark.slow
def test_clips_over_eight_devices_exchange_nothing(tmp_path):
    found = _run(tmp_path, "whole", 8, 1, devices=8)
    _assert_equal(found, 1e-5)
    assert not any(collectives for collectives, _ in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("clips, pairs, solvers", [(1, 8, BOTH), (2, 4, BOTH[:1])])
def test_pairs_over_eight_devices(tmp_path, clips, pairs, solvers):
    found = _run(tmp_path, "whole", clips, pairs, devices=8, solvers=solvers)
    _assert_equal(found, 1e-5)
    for solver, (collectives, _) in found.items():
        # Beside those of the steps: masks twice (two each), losses of the pairs; Gauss-Newton also
        # the depth's kept flow and sums (two kinds of rounds), and the loss of the end.
        assert collectives["all-reduce"] <= {"adam": 3 + 5, "gauss_newton": 2 + 5 + 4}[solver]


@pytest.mark.slow
def test_two_processes(tmp_path):
    _assert_equal(_run(tmp_path, "whole", 2, 2, devices=2, processes=2), 1e-5)


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
