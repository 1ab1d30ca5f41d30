"""Gradients through the alignment, against differences, in float64; memory; spoiled input."""

import dataclasses
import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.alignment import differentiable, solve
from align3r_jax.alignment.solvers import checkpointed, implicit
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.structs import AlignmentPriors, OpticalFlow, PairPredictions, TermWeights
from tests.alignment import consistent
from tests.alignment.consistent import CONFIG, GRAPH

GROUPS = ("points", "confidence", "flow", "start", "weights")
# Of differences: small where Adam's sign-like steps bend, larger where a minimum is found anew.
STEP = {("unrolled", group): 1e-7 for group in GROUPS} | {
    ("implicit", group): 1e-3 if group == "weights" else 1e-5 for group in GROUPS
}
SETTINGS = implicit.ImplicitConfig(newton_steps=8, conjugate_gradients=600, tolerance=1e-10)
# The implicit derivative is that of a minimum, so it takes more steps to come near one.
CONFIGS = {
    "unrolled": CONFIG,
    "implicit": dataclasses.replace(CONFIG, iterations=300, schedule="cosine", lr_min=1e-5),
}


@pytest.fixture(scope="module", autouse=True)
def double():
    """Everything here is in float64."""
    with jax.enable_x64(True):
        yield


def inputs_of(predictions, priors):
    return {
        "points": (predictions.pointmap1, predictions.pointmap2),
        "confidence": (predictions.confidence1, predictions.confidence2),
        "flow": (priors.flow.flow, priors.flow.weight),
        "start": priors.start,
        "weights": TermWeights(
            flow=jnp.asarray(np.array(0.02)),
            smoothness=jnp.asarray(np.array(0.01)),
            depth_regulariser=jnp.asarray(np.array(0.05)),
        ),
    }


def arguments(inputs, config):
    predictions = PairPredictions(*inputs["points"], *inputs["confidence"])
    static = np.zeros((consistent.T, consistent.H, consistent.W), bool)
    flow = OpticalFlow(consistent.PAIRS, *inputs["flow"])
    priors = AlignmentPriors(flow=flow, dynamic_mask=static, start=inputs["start"])
    return predictions, GRAPH, priors, config, inputs["weights"]


def function_of(method, config=None):
    """inputs -> ((a smooth function of the aligned scene, trace), its gradient)."""
    config = CONFIGS[method] if config is None else config
    align = {
        "unrolled": differentiable.align_unrolled,
        "implicit": functools.partial(differentiable.align_implicit, settings=SETTINGS),
    }[method]

    def function(inputs):
        variables, trace = align(*arguments(inputs, config))
        return consistent.summary(variables, config), trace

    return jax.value_and_grad(function, has_aux=True)


# Not worth optimising for a few runs on 144 pixels.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
compiled = functools.lru_cache(lambda method: jax.jit(function_of(method), compiler_options=QUICK))


def directional(method, inputs, group, step):
    """(derivative by differences, by the gradient) along a random direction of one group."""
    rng = np.random.default_rng(GROUPS.index(group))
    scale = 0.01 if group == "weights" else 1.0
    direction = jax.tree.map(lambda x: scale * rng.normal(size=x.shape), inputs[group])

    def moved(sign):
        new = jax.tree.map(lambda a, b: a + sign * step * b, inputs[group], direction)
        return dict(inputs, **{group: new})

    ahead, behind = (compiled(method)(moved(sign))[0][0] for sign in (1, -1))
    gradient = compiled(method)(inputs)[1][group]
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction))
    return float(ahead - behind) / (2 * step), float(sum(jnp.vdot(a, b) for a, b in pairs))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("method", ["unrolled", pytest.param("implicit", marks=pytest.mark.slow)])
def test_gradients_are_those_of_differences(method, group):
    inputs = inputs_of(*consistent.scene())
    expected, found = directional(method, inputs, group, STEP[method, group])
    assert abs(expected) > 1e-5
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_implicit_reaches_a_minimum_and_says_so():
    _, trace = compiled("implicit")(inputs_of(*consistent.scene()))[0]
    assert trace["stationarity"].shape == (SETTINGS.newton_steps + 1,)
    assert trace["stationarity"][-1] < 1e-6 * trace["stationarity"][0]


@pytest.mark.parametrize("method", ["unrolled", pytest.param("implicit", marks=pytest.mark.slow)])
def test_spoiled_and_perfect_input_has_finite_gradients(method):
    predictions, priors = consistent.scene(noise=0.0)
    spoiled = inputs_of(predictions, priors)
    first, second = spoiled["points"]
    spoiled["points"] = first.at[1, 2, 3].set(jnp.nan), second.at[0, 0].set(jnp.inf)
    confidence, other = spoiled["confidence"]
    spoiled["confidence"] = confidence.at[0].set(0.0), other.at[2, 1].set(jnp.nan)
    spoiled["flow"] = spoiled["flow"][0].at[0, 1].set(jnp.nan), spoiled["flow"][1]
    # What frame 0 says of itself lies exactly where it starts.
    for inputs in (spoiled, inputs_of(predictions, priors)):
        (value, _), gradient = compiled(method)(inputs)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_long_loop_keeps_the_square_root_of_its_states():
    def temporary(loop, count):
        def function(x):
            body = lambda carry, k: (jnp.sin(carry) * (1 + k), jnp.sum(carry))  # noqa: E731
            carry, sums = loop(body, x, jnp.linspace(0, 1, count))
            return jnp.sum(carry) + jnp.sum(sums)

        compiled = jax.jit(jax.grad(function)).lower(jnp.zeros(10_000)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    plain = temporary(jax.lax.scan, 400) / temporary(jax.lax.scan, 100)
    kept = temporary(checkpointed.scan, 400) / temporary(checkpointed.scan, 100)
    assert plain > 3.8
    assert kept < 2.2


@pytest.mark.parametrize("count", [1, 7, 16])
def test_a_checkpointed_loop_is_the_loop(count):
    def function(loop, inputs):
        carry, outputs = loop(lambda c, k: (jnp.sin(c) * k + c, c * k), jnp.ones(3), inputs)
        return jnp.sum(carry**2) + jnp.sum(outputs * jnp.arange(count)[:, None])

    inputs = jnp.linspace(0.1, 1, count)
    for expected, found in zip(
        jax.value_and_grad(lambda x: function(jax.lax.scan, x))(inputs),
        jax.value_and_grad(lambda x: function(checkpointed.scan, x))(inputs),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_other_solvers_are_refused_in_a_sentence():
    config = AlignmentConfig(solver="gauss_newton")
    predictions, priors = consistent.scene()
    with pytest.raises(UserError, match="align_implicit"):
        differentiable.align_unrolled(predictions, GRAPH, priors, config)
    with pytest.raises(UserError, match="term_weights"):
        differentiable.align_implicit(predictions, GRAPH, priors, config, TermWeights())
    with pytest.raises(UserError, match="distance_floor"):
        AlignmentConfig(solver="gauss_newton", distance_floor=0.1)


@pytest.mark.slow
def test_the_implicit_gradient_is_that_of_a_long_run_of_the_solver():
    config = dataclasses.replace(
        CONFIG, iterations=1200, schedule="cosine", lr_min=1e-7, flow_start=0.0, distance="l2"
    )
    inputs = inputs_of(*consistent.scene())
    gradient = jax.jit(function_of("implicit", config), compiler_options=QUICK)(inputs)[1]

    def value(inputs):
        variables, _ = solve.optimise(solve.set_up(*arguments(inputs, config)[:4]))
        return consistent.summary(variables, config)

    value = jax.jit(value, compiler_options=QUICK)
    for group, step in (("points", 0.01), ("confidence", 0.5)):
        direction = jax.tree.map(lambda x: x / jnp.sqrt(jnp.sum(x * x)), gradient[group])
        ahead, behind = (
            value(dict(inputs, **{group: jax.tree.map(
                lambda a, b, move=sign * step: a + move * b, inputs[group], direction
            )}))
            for sign in (1, -1)
        )  # fmt: skip
        expected = sum(jnp.sqrt(jnp.sum(a * a)) for a in jax.tree.leaves(gradient[group]))
        np.testing.assert_allclose((ahead - behind) / (2 * step), expected, rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["unrolled", "implicit"])
def test_gradients_of_a_batch_are_those_of_its_clips(method):
    clips = [inputs_of(*consistent.scene(seed)) for seed in (0, 1)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clips)
    (values, _), gradients = jax.jit(jax.vmap(function_of(method)), compiler_options=QUICK)(batch)
    for k, clip in enumerate(clips):
        (value, _), gradient = compiled(method)(clip)
        np.testing.assert_allclose(values[k], value, rtol=1e-8)
        for one, two in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradient)):
            np.testing.assert_allclose(one[k], two, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_memory_of_the_unrolled_alignment_grows_with_the_square_root():
    def temporary(iterations):
        config = dataclasses.replace(CONFIG, iterations=iterations)
        function = jax.jit(function_of("unrolled", config), compiler_options=QUICK)
        inputs = inputs_of(*consistent.scene())
        return function.lower(inputs).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(100), temporary(1600)
    assert many < 6 * few
