"""The aligner as one pure function: the recorded scene, bad inputs, steps that must be rejected."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.alignment import objective, solve
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.solvers import adam
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.geometry import registration
from align3r_jax.structs import AlignmentPriors, PairGraph, PairPredictions
from tests.alignment import recorded, tiny

STATIC = AlignmentConfig(shared_focal=False, smoothness_weight=0.0, flow_weight=0.0)


@pytest.fixture(scope="module")
def scene(golden_dir):
    return dict(np.load(golden_dir / "alignment_scene.npz"))


def _decoded(variables, config, scene):
    return variables_lib.decode(variables, config, (int(scene["H"]), int(scene["W"])))


@pytest.mark.golden
def test_recorded_scene_and_a_broken_edge(golden_dir, scene):
    """As low as the recorded run from the host's start; one edge of NaN costs next to nothing."""
    golden = np.load(golden_dir / "alignment_dust3r.npz")
    config = dataclasses.replace(STATIC, lr_min=1e-6)
    predictions, graph = recorded.predictions(scene), recorded.graph(scene["edges"])
    variables, trace = solve.align(predictions, graph, config=config)
    assert trace["total"].shape == (300,) and not trace["rejected"].any()
    np.testing.assert_allclose(trace["total"][-1], golden["demo_final_loss"][0], rtol=1e-2)
    # The start on the lattice is no worse than the one on all pixels.
    assert trace["total"][0] < 1.02 * golden["init_loss"]
    depth = np.asarray(_decoded(variables, config, scene).depth)
    ratio = depth / golden["demo_depth"]
    assert np.median(np.abs(ratio / np.median(ratio) - 1)) < 5e-3
    np.testing.assert_allclose(trace["pair_losses"].mean() * 2, trace["total"][-1], rtol=1e-2)

    best = int(np.argmax(np.prod([scene[f"conf_{s}"].mean((1, 2)) for s in "ij"], axis=0)))
    broken = predictions.replace(
        pointmap1=predictions.pointmap1.at[best].set(jnp.nan),
        confidence2=predictions.confidence2.at[best, ::2].set(jnp.inf),
    )
    # Same shapes: nothing is compiled again.
    count = solve.run._cache_size()
    other, trace = solve.align(broken, graph, config=config)
    assert solve.run._cache_size() == count
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((other, trace)))
    ratio = np.asarray(_decoded(other, config, scene).depth) / scene["depths"]
    assert np.mean(np.abs(ratio / np.median(ratio) - 1)) < 0.03

    # Two parts that no pair connects, and pairs without any confidence: finite all the same.
    half = graph.num_pairs // 2
    late = scene["edges"][:half] >= int(scene["N"]) // 2
    inside = np.flatnonzero(late[:, 0] == late[:, 1])
    rows = np.resize(inside, half)
    rows = np.concatenate([rows, rows + half])
    apart = jax.tree.map(lambda leaf: leaf[rows], predictions)
    apart = apart.replace(confidence1=apart.confidence1.at[3].set(1.0))
    parts = dataclasses.replace(graph, pairs=graph.pairs[rows])
    other, trace = solve.align(apart, parts, config=config)
    assert solve.run._cache_size() == count
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((other, trace)))
    assert trace["total"][-1] < trace["total"][0]


@pytest.mark.golden
@pytest.mark.slow
def test_recorded_scene_with_flow_and_masks(golden_dir, scene):
    golden = np.load(golden_dir / "alignment_flow.npz")
    graph = recorded.graph(scene["edges"])
    priors = AlignmentPriors(flow=recorded.flow(scene, graph.pairs))
    _, trace = solve.align(recorded.predictions(scene), graph, priors)
    np.testing.assert_allclose(trace["total"][-1], golden["demo_loss_curve"][-1], rtol=1e-2)
    found, truth = np.asarray(trace["dynamic_mask"]), np.asarray(scene["dyn"])
    assert (found & truth).sum() / (found | truth).sum() > 0.7


@pytest.mark.golden
@pytest.mark.slow
def test_a_frame_that_only_ever_comes_second(scene):
    """All pairs i < j: the last frame's camera and focal come from its points (resection)."""
    edges = np.asarray(scene["edges"])
    rows = np.flatnonzero(edges[:, 0] < edges[:, 1])
    graph = recorded.graph(edges[rows], int(scene["N"]))
    predictions = recorded.predictions(scene, rows)
    config = dataclasses.replace(STATIC, iterations=0)
    variables, _ = solve.align(predictions, graph, config=config)
    geometry = _decoded(variables, config, scene)
    np.testing.assert_allclose(geometry.focal, float(scene["focal"]), rtol=0.1)
    source, target = (np.asarray(p)[:, :3, 3] for p in (geometry.world_from_cam, scene["poses"]))
    scale, rotation, shift = registration.weighted_procrustes(
        jnp.asarray(source), jnp.asarray(target, jnp.float32)
    )
    error = np.linalg.norm(scale * source @ np.asarray(rotation).T + shift - target, axis=-1)
    # The last frame is no worse off than those with cameras from their own pairs.
    assert error[-1] < 1.5 * error[:-1].max()
    assert error.max() < 0.5 * np.linalg.norm(target - target.mean(0), axis=-1).max()


@pytest.mark.golden
@pytest.mark.slow
def test_known_cameras_fix_the_world(scene):
    frames = len(scene["poses"])
    known = variables_lib.Known(
        world_from_cam=scene["poses"].astype(np.float32),
        focal=np.full(frames, float(scene["focal"]), np.float32),
    )
    config = dataclasses.replace(STATIC, lr_min=1e-6, residual_over_scale=True)
    variables, _ = solve.align(
        recorded.predictions(scene), recorded.graph(scene["edges"]),
        AlignmentPriors(known=known), config,
    )  # fmt: skip
    geometry = _decoded(variables, variables_lib.settings_with_known(config, known), scene)
    np.testing.assert_allclose(geometry.world_from_cam, scene["poses"], atol=1e-5)
    np.testing.assert_allclose(geometry.focal, float(scene["focal"]), rtol=1e-5)
    ratio = np.asarray(geometry.depth) / scene["depths"]
    assert abs(np.median(ratio) - 1) < 0.06


@pytest.mark.golden
@pytest.mark.slow
def test_sixteen_bits(scene):
    """What keeping points and weights in 16 bits costs: the stated errors of the setting."""
    predictions, graph = recorded.predictions(scene), recorded.graph(scene["edges"])
    depth, loss = {}, {}
    for name in ("float32", "float16", "bfloat16"):
        config = dataclasses.replace(STATIC, storage_dtype=name)
        variables, trace = solve.align(predictions, graph, config=config)
        depth[name], loss[name] = np.exp(np.asarray(variables.log_depth)), float(trace["total"][-1])
    for name, of_loss, of_depth in (("float16", 1e-4, 1e-3), ("bfloat16", 1e-2, 5e-3)):
        assert abs(loss[name] / loss["float32"] - 1) < of_loss
        assert np.median(np.abs(depth[name] / depth["float32"] - 1)) < of_depth


def test_steps_that_are_not_finite_are_taken_back():
    """A cliff next to the start: the loss is infinite where a focal exceeds its first value."""
    predictions, variables, _, _ = tiny.problem()
    config = dataclasses.replace(tiny.CONFIG, iterations=30, flow_weight=0.0)
    graph = recorded.graph(tiny.PAIRS)
    problem = objective.prepare(predictions, graph, None, variables, None, config)
    bar = variables.log_depth.mean() - 0.02
    evaluate = objective.value_and_gradient

    def with_cliff(v, *arguments):
        (total, terms), gradient = evaluate(v, *arguments)
        return (jnp.where(v.log_depth.mean() < bar, jnp.nan, total), terms), gradient

    objective.value_and_gradient = with_cliff
    try:
        loop = functools.partial(
            adam.scan, config=config, trainable=variables_lib.trainable(variables, config),
            num_steps=30,
        )  # fmt: skip
        # Towards smaller depth: the gradient alone would run over the cliff.
        state, trace = jax.jit(loop)(adam.initial_state(variables), problem, jnp.asarray(0))
    finally:
        objective.value_and_gradient = evaluate
    rejected = np.asarray(trace["rejected"])
    assert 0 < rejected.sum() < 20 and not rejected[0]
    np.testing.assert_array_equal(np.isnan(trace["total"]), rejected)
    # After a rejected step the rate is halved and the loss goes on from where it was.
    first = int(np.argmax(rejected))
    np.testing.assert_allclose(trace["total"][first + 1], trace["total"][first - 1], rtol=1e-6)
    np.testing.assert_allclose(trace["lr"][first + 1] / trace["lr"][first], 0.5, rtol=0.05)
    assert state.last_good.log_depth.mean() >= bar
    filled = adam.without_rejected(trace)
    assert np.isfinite(filled["total"]).all() and (filled["rejected"] == rejected).all()


def test_shapes_that_do_not_fit_are_refused():
    maps = np.ones((2, 4, 6, 3), np.float32)
    predictions = PairPredictions(maps, maps, maps[..., 0], maps[..., 0])
    graph = PairGraph(np.array([[0, 1], [1, 0]]), 2, True, "two")
    with pytest.raises(UserError, match="one prediction for every pair"):
        solve.align(predictions, dataclasses.replace(graph, pairs=graph.pairs[:1]))
    with pytest.raises(UserError, match="'ignore' has shape"):
        solve.align(predictions, graph, AlignmentPriors(ignore=np.zeros((2, 6, 4), bool)))
