"""The main flow on rendered scenes with known truth: frames and pair predictions in, scene out."""

import dataclasses

import jax
import numpy as np
import pytest

from align3r_jax import pipeline, stages
from align3r_jax.config import AlignmentConfig, PairConfig, ReconstructConfig
from align3r_jax.errors import UserError
from data.procedural import benchmark, clip, oracle, score

CONFIG = ReconstructConfig(
    prior="plane",
    pairs=PairConfig(graph="swinstride-2-noncyclic"),
    alignment=AlignmentConfig(iterations=100),
)


@pytest.fixture(scope="module")
def rendered():
    return benchmark.render("desk", frames=7, height=64, width=96, supersample=1)


@pytest.mark.parametrize(
    "mode, alignment",
    [
        pytest.param("flat", ReconstructConfig().alignment, marks=pytest.mark.slow),
        pytest.param("hierarchical", CONFIG.alignment, marks=pytest.mark.slow),
    ],
)
def test_noisy_truth_is_aligned_to_the_truth(rendered, mode, alignment):
    pairs = dataclasses.replace(CONFIG.pairs, mode=mode, clip_size=4)
    run = stages.Run()
    scene = pipeline.reconstruct(
        clip.frames_of(rendered),
        predictor=oracle.OraclePredictor(rendered),
        config=dataclasses.replace(CONFIG, pairs=pairs, alignment=alignment),
        run=run,
    )
    assert run.facts["solver"] == ("gauss_newton" if mode == "flat" else "adam")
    scores = score.score(scene, rendered)
    assert scores["ate"] < 0.1 * scores["standing_ate"]
    assert scores["rotation_error_deg"] < 0.2
    assert scores["abs_rel"] < 0.03
    assert abs(scores["focal_ratio"] - 1) < 0.03


def test_world_is_the_first_camera_and_shapes_hold(rendered):
    scene = pipeline.reconstruct(
        clip.frames_of(rendered),
        predictor=oracle.OraclePredictor(rendered),
        config=dataclasses.replace(CONFIG, alignment=AlignmentConfig(iterations=5)),
    )
    np.testing.assert_allclose(scene.world_from_cam[0], np.eye(4), atol=1e-5)
    assert scene.depth.shape == rendered.depth.shape
    assert scene.colours.dtype == np.uint8 and scene.dynamic_mask.dtype == bool
    assert len(scene.trace["total"]) == 5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(scene.trace))


def test_arrays_are_frames_and_bad_ones_get_a_sentence():
    images = np.zeros((3, 32, 48, 3), np.uint8)
    frames = pipeline.as_frames(images)
    assert frames.num_frames == 3 and frames.size.working == (32, 48)
    with pytest.raises(UserError, match="multiples of 16"):
        pipeline.as_frames(images[:, :30])
    with pytest.raises(UserError, match="uint8"):
        pipeline.as_frames(images.astype(np.float32))
    with pytest.raises(UserError, match="at least 2"):
        pipeline.as_frames(images[:1])
