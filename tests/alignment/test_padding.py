"""Frames and pairs that only fill up a shape change nothing, whatever they hold."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.alignment import objective
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.solvers import adam
from align3r_jax.structs import PairGraph
from tests.alignment import padded, recorded, tiny

CONFIG = dataclasses.replace(
    tiny.CONFIG, iterations=6, flow_start=0.5, depth_regulariser_weight=0.3, flow_gate=0.0
)
_evaluate = jax.jit(jax.value_and_grad(objective.evaluate, has_aux=True), static_argnames="config")


def _problems(shared_focal, traced):
    """(config, variables and problem as they are, the same with 2 more frames and 3 more pairs)."""
    config = dataclasses.replace(CONFIG, shared_focal=shared_focal)
    predictions, variables, flow, dynamic = tiny.problem()
    if shared_focal:
        variables = variables.replace(log_focal=variables.log_focal[:1])
    # The scene has moved since its start, so that the depth regulariser says something.
    start = variables.replace(log_depth=variables.log_depth + 0.1 * jnp.sin(jnp.arange(tiny.W)))
    graph = recorded.graph(tiny.PAIRS)
    plain = objective.prepare(predictions, graph, flow, start, dynamic, config)

    frames, pairs = 2, 3
    # The extra pairs point at valid frames and at extra ones.
    more = np.array([[0, 1], [tiny.T, 1], [tiny.T, tiny.T + 1]], np.int32)
    flow = padded.flow(flow, 2, tiny.T)
    bigger = PairGraph(np.concatenate([tiny.PAIRS, more]), tiny.T + frames, False, "padded")
    arguments = (
        padded.predictions(predictions, pairs),
        bigger,
        flow,
        padded.variables(start, frames, pairs),
        padded.fill(dynamic, frames, True),
        jnp.arange(tiny.T + frames) < tiny.T,
        jnp.arange(len(tiny.PAIRS) + pairs) < len(tiny.PAIRS),
    )

    def prepare(predictions, graph, flow, start, dynamic, frame_valid, pair_valid):
        return objective.prepare(
            predictions, graph, flow, start, dynamic, config, frame_valid, pair_valid
        )

    problem = jax.jit(prepare)(*arguments) if traced else prepare(*arguments)
    return config, (variables, plain), (padded.variables(variables, frames, pairs), problem)


@pytest.mark.parametrize(
    "shared_focal, traced", [pytest.param(False, False, marks=pytest.mark.slow), (True, True)]
)
def test_padding_changes_nothing(shared_focal, traced):
    config, (variables, plain), (bigger, problem) = _problems(shared_focal, traced)
    (total, terms), gradient = _evaluate(variables, plain, config=config)
    (same, same_terms), same_gradient = _evaluate(bigger, problem, config=config)
    np.testing.assert_allclose(same, total, rtol=1e-6)
    for name in objective.TERMS:
        assert terms[name] > 0
        np.testing.assert_allclose(same_terms[name], terms[name], rtol=2e-6, err_msg=name)
    kept = padded.without(same_gradient, tiny.T, len(tiny.PAIRS))
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max(), rtol=1e-5)
    extra = [leaf[-1] for leaf in jax.tree.leaves(same_gradient) if leaf.shape[0] > 1]
    assert all(not np.any(np.asarray(leaf)) for leaf in extra)


@pytest.mark.slow
def test_padded_steps_are_the_same():
    config, (variables, plain), (bigger, problem) = _problems(True, True)
    free = variables_lib.trainable(variables, config)
    short = adam.optimise(variables, plain, config, free)
    same = adam.optimise(bigger, problem, config, free)
    assert not same.failed
    np.testing.assert_allclose(same.trace["total"], short.trace["total"], rtol=1e-5)
    kept = padded.without(same.variables, tiny.T, len(tiny.PAIRS))
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(short.variables), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_points_that_are_not_finite_weigh_nothing():
    predictions, variables, flow, dynamic = tiny.problem()
    graph = recorded.graph(tiny.PAIRS)
    hole = (slice(1, 3), slice(0, 2), slice(1, 4))

    def loss(changed):
        problem = objective.prepare(changed, graph, flow, variables, dynamic, CONFIG)
        return _evaluate(variables, problem, config=CONFIG)

    expected, gradient = loss(
        predictions.replace(confidence1=predictions.confidence1.at[hole].set(1.0))
    )
    bad_points = predictions.pointmap1.at[hole].set(jnp.nan).at[1, 0, 1].set(jnp.inf)
    bad_confidence = predictions.confidence1.at[hole].set(jnp.nan).at[1, 0, 1].set(-jnp.inf)
    for changed in (
        predictions.replace(pointmap1=bad_points),
        predictions.replace(confidence1=bad_confidence),
    ):
        got, same = loss(changed)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
        for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max())
