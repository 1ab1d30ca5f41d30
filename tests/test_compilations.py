"""How often XLA compiles for a whole video: once per stage and bucket, not per frame or length."""

import collections
import dataclasses

import jax
import numpy as np
import pytest

from align3r_jax import pipeline
from align3r_jax.config import AlignmentConfig, FlowConfig, PairConfig, ReconstructConfig
from align3r_jax.weights.store import LoadedNetwork
from tests.networks import micro

HEIGHT = 32  # with widths of no other test: what they compiled would not count here
NETWORK = dataclasses.replace(micro.ALIGN3R, prior_branch=False, dec_depth=4)
CONFIG = ReconstructConfig(
    prior="none",
    flow=FlowConfig(source="none"),
    pairs=PairConfig(graph="swinstride-3-noncyclic"),
)
ADAM = AlignmentConfig(solver="adam", iterations=2, clean=False)
GAUSS_NEWTON = AlignmentConfig(solver="gauss_newton", gauss_newton_steps=2)


@pytest.fixture
def compilations():
    """A counter, name of the function -> how often it was compiled."""
    counts = collections.Counter()

    def count(event, seconds, **facts):
        if event == "/jax/core/compile/backend_compile_duration":
            counts[facts["fun_name"].removeprefix("jit(").removesuffix(")")] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    yield counts
    jax.monitoring.unregister_event_duration_listener(count)


def check(compilations, stages, alignment, flow, width):
    """A video of 9 frames compiles every stage once; one of 10, of the same bucket, none."""
    network = LoadedNetwork(NETWORK, micro.parameters(NETWORK), "micro", "0", {})
    images = np.random.default_rng(0).integers(0, 256, (10, HEIGHT, width, 3), np.uint8)
    config = dataclasses.replace(CONFIG, alignment=alignment, flow=FlowConfig(source=flow))
    compilations.clear()
    scene = pipeline.reconstruct(images[:9], model=network, config=config)
    assert len(scene.depth) == 9
    assert {name: compilations[name] for name in stages} == dict.fromkeys(stages, 1)
    # The rest is small: a few dozen programs on the way, not one per operation and frame.
    assert sum(compilations.values()) < 100, compilations

    compilations.clear()
    scene = pipeline.reconstruct(images, model=network, config=config)
    assert len(scene.depth) == 10 and np.isfinite(scene.depth).all()
    assert not set(stages) & set(compilations), compilations
    assert sum(compilations.values()) < 60, compilations


def test_one_compilation_per_stage_and_bucket(compilations):
    check(compilations, ("encode", "decode", "_compiled_scan", "pair_losses"), ADAM, "none", 80)


@pytest.mark.slow
def test_one_compilation_per_stage_and_bucket_of_the_second_order_solver(compilations):
    stages = ("encode", "decode", "_start", "_steps", "_finish", "pair_losses")
    # The two views before the alignment are of the exact length.
    check(compilations, stages, GAUSS_NEWTON, "dis", 112)


@pytest.mark.slow
@pytest.mark.parametrize("alignment", [ADAM, GAUSS_NEWTON], ids=["adam", "gauss_newton"])
def test_buckets_change_no_result(alignment):
    from data.procedural import benchmark, clip, oracle

    rendered = benchmark.render("desk", frames=9, height=32, width=48, supersample=1)
    scenes = []
    for buckets in (False, True):
        scenes.append(
            pipeline.reconstruct(
                clip.frames_of(rendered),
                predictor=oracle.OraclePredictor(rendered),
                config=dataclasses.replace(
                    CONFIG, alignment=alignment, flow=FlowConfig(), buckets=buckets
                ),
            )
        )
    exact, filled = scenes
    np.testing.assert_allclose(filled.depth, exact.depth, rtol=1e-3)
    np.testing.assert_allclose(filled.world_from_cam, exact.world_from_cam, atol=1e-4)
    # Sums of another length round otherwise, which two steps far from the minimum spread.
    np.testing.assert_allclose(filled.pair_losses, exact.pair_losses, rtol=5e-3)
    assert np.mean(filled.dynamic_mask != exact.dynamic_mask) < 1e-3
    assert np.mean(np.abs(filled.depth / exact.depth - 1)) < 1e-4
