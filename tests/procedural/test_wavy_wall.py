"""The wavy wall is the world of the recorded alignment."""

import dataclasses
from pathlib import Path

import numpy as np

from data.procedural import wavy_wall
from tests.alignment import recorded

_RECORDED = Path(__file__).parents[1] / "golden" / "alignment_scene.npz"


def test_the_scene_is_the_recorded_one():
    scene = np.load(_RECORDED)
    truth = wavy_wall.world(int(scene["N"]), int(scene["H"]), int(scene["W"]))
    np.testing.assert_allclose(truth.world_from_cam, scene["poses"], atol=1e-12)
    np.testing.assert_allclose(truth.depth, scene["depths"], rtol=1e-6)
    # Of the first pair alone: the recording goes on with the noise of its flow.
    graph = recorded.graph(scene["edges"][:1], int(scene["N"]))
    found = wavy_wall.predict(truth, graph, int(scene["seed"]))
    recorded_names = ("pred_i", "pred_j", "conf_i", "conf_j")
    for field, name in zip(dataclasses.fields(found), recorded_names, strict=True):
        expected = scene[name][:1].astype(np.float32)  # of 16 bits
        np.testing.assert_allclose(getattr(found, field.name), expected, rtol=1e-3, atol=2e-3)
