"""The pairwise network over several devices: the numbers of one."""

import numpy as np
import pytest
from jax import ShapeDtypeStruct

from align3r_jax.weights import placement
from tests import processes


@pytest.mark.slow
def test_eight_devices_give_the_predictions_of_one(tmp_path):
    processes.run("tests.predictors.mesh_run", tmp_path / "out.npz", devices=8)
    with np.load(tmp_path / "out.npz") as file:
        found = dict(file)
    alone = {key.split()[2]: v for key, v in found.items() if key.startswith("1 host")}
    assert set(alone) == {"pointmap1", "pointmap2", "confidence1", "confidence2"}
    for mesh in ("8x1", "2x4"):
        for kind in ("host", "device", "window"):
            for key, value in alone.items():
                np.testing.assert_allclose(
                    found[f"{mesh} {kind} {key}"], value, rtol=2e-5, atol=2e-5
                )
    assert found["8x1 held"] == 1 and found["2x4 held"] < 0.35


def test_parameters_are_split_over_no_more_devices_than_they_need():
    class Device:
        def __init__(self, memory):
            self.memory = memory

        def memory_stats(self):
            return {"bytes_limit": self.memory} if self.memory else None

    params = {"a": ShapeDtypeStruct((100, 10), np.float32)}  # 4000 bytes
    for memory, parts in ((None, 1), (8000, 1), (7999, 2), (2100, 4), (100, 8)):
        assert placement.parts_that_fit(params, [Device(memory)] * 8) == parts
    assert placement.parts_that_fit(params, [Device(3000)] * 6) == 3
    assert placement.mesh_of({"a": np.zeros(3)}) is None
