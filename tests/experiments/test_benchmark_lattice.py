"""The scene of the lattice benchmark is that of the recorded alignment."""

import dataclasses

import numpy as np
import pytest

from experiments import benchmark_lattice
from tests.alignment import recorded


@pytest.mark.golden
def test_the_scene_is_the_recorded_one(golden_dir):
    scene = np.load(golden_dir / "alignment_scene.npz")
    truth = benchmark_lattice.world(int(scene["N"]), int(scene["H"]), int(scene["W"]))
    np.testing.assert_allclose(truth.world_from_cam, scene["poses"], atol=1e-12)
    np.testing.assert_allclose(truth.depth, scene["depths"], rtol=1e-6)
    # Of the first pair alone: the recording goes on with the noise of its flow.
    graph = recorded.graph(scene["edges"][:1], int(scene["N"]))
    found = benchmark_lattice.predict(truth, graph, int(scene["seed"]))
    recorded_names = ("pred_i", "pred_j", "conf_i", "conf_j")
    for field, name in zip(dataclasses.fields(found), recorded_names, strict=True):
        expected = scene[name][:1].astype(np.float32)  # of 16 bits
        np.testing.assert_allclose(getattr(found, field.name), expected, rtol=1e-3, atol=2e-3)
