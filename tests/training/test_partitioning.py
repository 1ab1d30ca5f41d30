"""Steps on many devices and in several processes equal those on one, and states are split."""

import jax
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.training import partitioning
from align3r_jax.weights import placement
from tests import processes as launcher


@pytest.mark.parametrize(
    "kind, processes",
    [
        pytest.param("toy", 2, marks=pytest.mark.slow),
        pytest.param("network", 1, marks=pytest.mark.slow),
        pytest.param("network", 2, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_equal_one(tmp_path, kind, processes):
    out = tmp_path / "result.npz"
    module = "tests.training.sharded_run"
    launcher.run(module, kind, out, devices=8 // processes, processes=processes)
    result = np.load(out)
    alone = {name: result[name] for name in result.files if name.startswith("alone/")}
    for mesh in ("8x1", "2x4"):
        for name, expected in alone.items():
            # Keys' biases have no gradient but rounding, which Adam makes large.
            if name.endswith("/steps") or (kind == "toy" and not name.endswith("/bytes")):
                got = result[name.replace("alone", mesh)]
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5, err_msg=mesh)
    assert result["8x1/bytes"] == result["alone/bytes"]
    assert result["2x4/bytes"] < 0.6 * result["alone/bytes"], "parameters and moments are split"
    assert np.ptp(alone["alone/steps"][:, 0]) > 0

    # Gathered in bfloat16: half the bytes, float32 kept, losses within its rounding (8 bits).
    assert result["8x1/gathered"] == 0 < result["2x4 half/gathered"]
    assert result["2x4 half/gathered"] <= 0.5 * result["2x4/gathered"]
    assert result["2x4 half/bytes"] == result["2x4/bytes"]
    losses, exact = result["2x4 half/steps"][:, 0], alone["alone/steps"][:, 0]
    np.testing.assert_allclose(losses, exact, rtol=2**-7)
    assert np.abs(losses - exact).max() > 1e-6 * np.abs(exact).max(), "something is rounded"


def test_large_arrays_are_split_along_their_longest_axis_that_divides():
    class Mesh:
        shape = {"data": 2, "fsdp": 4}

    shapes = {
        (128, 256): (None, "fsdp"), (3, 3, 64, 66): (None, None, "fsdp", None), (130, 130): (),
        (136, 127): ("fsdp", None), (8, 8): (), (): (),
    }  # fmt: skip
    for shape, expected in shapes.items():
        leaf = jax.ShapeDtypeStruct(shape, np.float32)
        assert tuple(placement._spec(leaf, Mesh())) == expected, shape
    mesh = partitioning.make_mesh(1, 1)
    tree = {"a": jax.ShapeDtypeStruct((128, 256), np.float32)}
    assert partitioning.state_shardings(mesh, tree)["a"].is_fully_replicated


def test_what_does_not_divide_gets_a_sentence():
    count = jax.device_count()
    with pytest.raises(UserError, match=f"there are {count}"):
        partitioning.make_mesh(count + 1, 1)
    with pytest.raises(UserError, match="do not divide by fsdp"):
        partitioning.make_mesh(-1, count + 1)
    with pytest.raises(UserError, match="positive"):
        partitioning.make_mesh(0, 1)
    mesh = partitioning.make_mesh(1, 1)
    partitioning.check_batch_size(mesh, 6, accumulate=3)
    with pytest.raises(UserError, match="multiple of 4"):
        partitioning.check_batch_size(mesh, 6, accumulate=4)
    batch = partitioning.global_batch(mesh, {"x": np.ones((3, 2), np.uint8)})
    assert batch["x"].shape == (3, 2) and batch["x"].dtype == np.uint8
    assert partitioning.global_batch(mesh, batch)["x"].sharding == batch["x"].sharding
