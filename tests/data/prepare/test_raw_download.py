"""A raw download becomes records and the published layout, and both say what it said."""

import numpy as np
import pytest

from data.prepare import resize, run
from data.readers import training_sets
from data.readers.training import TrainingOptions
from tests.data.prepare import fake_set
from tests.data.readers import checks, folders


@pytest.mark.parametrize("kind", ["records", "processed"])
def test_pointodyssey(tmp_path, kind):
    world = folders.sample_world(3)
    folders.pointodyssey(tmp_path / "raw", "ani", world)
    chosen = fake_set.settings(
        dataset="pointodyssey", format=kind, image="png" if kind == "records" else "jpeg", size=24
    )
    raw, skipped = training_sets.scenes("pointodyssey", tmp_path / "raw", chosen.options("test"))
    report = run.prepare(chosen, "test", raw, skipped, tmp_path / "out", source="here", workers=0)
    assert (report.scenes, report.frames) == (1, 3)
    (scene,), _ = training_sets.scenes("records", tmp_path / "out", TrainingOptions("test"))
    assert (scene.dataset, scene.name, scene.frames) == ("pointodyssey", "ani", raw[0].frames)
    shown = [resize.prepare_frame(raw[0].load(k), 24) for k in range(3)]
    assert shown[0].image.shape[:2] == (18, 24)
    exact = folders.World(
        np.stack([f.image for f in shown]), np.stack([f.depth for f in shown]),
        world.world_from_cam, np.stack([f.intrinsics for f in shown]), world.dynamic_mask,
    )  # fmt: skip
    checks.assert_scene(scene, exact, depth=1e-12, images=kind == "records")
