"""The optimiser's loop: against the recorded runs, in batches, in chunks, and when it fails."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.alignment import objective, schedule
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.solvers import adam
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from tests.alignment import recorded, tiny

STATIC = AlignmentConfig(
    shared_focal=False, smoothness_weight=0.0, flow_weight=0.0, lr_min=1e-6, schedule="linear"
)
SHORT = dataclasses.replace(tiny.CONFIG, iterations=7, flow_start=0.5)


def _tiny_problem(seed=0):
    predictions, variables, optical_flow, dynamic = tiny.problem(seed=seed)
    problem = objective.prepare(
        predictions, recorded.graph(tiny.PAIRS), optical_flow, variables, dynamic, SHORT
    )
    return variables, problem, variables_lib.trainable(variables, SHORT)


def _assert_same(got, expected, **tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def test_schedules():
    rate = functools.partial(schedule.learning_rate, iterations=8, start=1.0, end=0.2)
    np.testing.assert_allclose(rate(4, kind="linear"), 0.6)
    np.testing.assert_allclose(rate(4, kind="cosine"), 0.6)
    np.testing.assert_allclose(rate(0, kind="cosine"), 1.0)
    np.testing.assert_allclose([rate(n, kind="cycle4") for n in range(4)], [1, 0.6, 1, 0.6])
    assert rate(4, kind="cycle") == rate(4, kind="cycle2") == 1.0
    for unknown in ("step", "cycle0", "linear2", ""):
        with pytest.raises(UserError, match="cycleK"):
            rate(0, kind=unknown)
        with pytest.raises(UserError, match="cycleK"):
            AlignmentConfig(schedule=unknown)


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_recorded_schedules(golden_dir, kind):
    expected = np.load(golden_dir / "alignment_parts.npz")[f"lr_{kind}"]
    step = jnp.arange(len(expected))
    rate = schedule.learning_rate(step, len(expected), kind, expected[0], 1e-6)
    np.testing.assert_allclose(rate, expected, rtol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize(
    "name, kind", [("demo", "linear"), pytest.param("cosine", "cosine", marks=pytest.mark.slow)]
)
def test_recorded_run(golden_dir, name, kind):
    """300 iterations from the recorded start; tolerances: about 5x float32 against float64."""
    scene = np.load(golden_dir / "alignment_scene.npz")
    golden = np.load(golden_dir / "alignment_dust3r.npz")
    size = (int(scene["H"]), int(scene["W"]))
    start = recorded.variables(golden, "init_", size)
    curve = golden[f"{name}_loss_curve"]
    config = dataclasses.replace(STATIC, schedule=kind, iterations=len(curve))
    problem = objective.prepare(
        recorded.predictions(scene), recorded.graph(scene["edges"]), None, start, None, config
    )
    outcome = adam.optimise(start, problem, config, variables_lib.trainable(start, config))
    error = np.abs(outcome.trace["total"] / curve - 1)
    assert error[:30].max() < 1e-5 and error.max() < 6e-2 and error[-1] < 5e-4
    recorded.assert_final_state(outcome.variables, config, golden, name, size)


@pytest.mark.slow
def test_adam_is_the_textbook_formula():
    """Three steps by hand, the frozen groups left alone."""
    variables, problem, free = _tiny_problem()
    free = dataclasses.replace(free, log_focal=False, pair_quaternion=False)
    config = dataclasses.replace(SHORT, iterations=3)
    outcome = adam.optimise(variables, problem, config, free)
    gradient = jax.jit(jax.grad(objective.evaluate, has_aux=True), static_argnames="config")
    x = variables
    m = v = jax.tree.map(jnp.zeros_like, variables)
    for n in range(3):
        g, _ = gradient(x, problem, config=config, with_flow=n >= 1.5)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.9 * v + 0.1 * g * g, v, g)
        rate = config.lr + (config.lr_min - config.lr) * n / 3
        unbias = 1 - 0.9 ** (n + 1)
        x = jax.tree.map(
            lambda f, x, m, v, r=rate, u=unbias: x - f * r * (m / u) / (jnp.sqrt(v / u) + 1e-8),
            free, x, m, v,
        )  # fmt: skip
    _assert_same(outcome.variables, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(outcome.variables.log_focal, variables.log_focal)
    np.testing.assert_array_equal(outcome.variables.pair_quaternion, variables.pair_quaternion)


def test_chunks_progress_and_refresh(monkeypatch):
    variables, problem, free = _tiny_problem()
    whole = adam.optimise(variables, problem, SHORT, free)
    monkeypatch.setattr(adam, "CHUNK", 3)
    reports = []
    before = adam._compiled_scan._cache_size()
    pieces = adam.optimise(
        variables, problem, SHORT, free, progress=lambda *report: reports.append(report)
    )
    _assert_same(pieces.variables, whole.variables, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pieces.trace["total"], whole.trace["total"], rtol=1e-5)
    assert set(pieces.trace) == {"total", "lr", "rejected", *objective.TERMS}
    assert all(len(values) == 7 for values in pieces.trace.values())
    assert [(n, total) for n, total, _ in reports] == [(4, 7), (7, 7)]
    assert (pieces.trace["flow_12"][:4] == 0).all() and (pieces.trace["flow_12"][4:] > 0).all()

    # Another problem of the same shapes, and a mask that changes on the way: no new compilation.
    seen = []

    def hide_everything(current, old):
        seen.append(current.log_depth.copy())
        return objective.with_dynamic_mask(old, jnp.ones((tiny.T, tiny.H, tiny.W), bool))

    other, other_problem, _ = _tiny_problem(seed=1)
    masked = adam.optimise(
        other, other_problem, SHORT, free, refresh=hide_everything, refresh_count=1
    )
    assert adam._compiled_scan._cache_size() == before + 1
    assert len(seen) == 1 and np.abs(seen[0] - other.log_depth).max() > 0
    assert (masked.trace["flow_12"] == 0).all()


@pytest.mark.slow
def test_batch_of_problems():
    """The pure loop vmaps over clips of equal shape."""
    runs = [_tiny_problem(seed) for seed in (0, 1)]
    free = runs[0][2]
    states = [adam.initial_state(variables) for variables, _, _ in runs]
    loop = functools.partial(adam.scan, config=SHORT, trainable=free, num_steps=7)

    def stack(*trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    problems = stack(*(problem for _, problem, _ in runs))
    batched, trace = jax.jit(jax.vmap(loop, in_axes=(0, 0, None)))(
        stack(*states), problems, jnp.asarray(0)
    )
    for k, (variables, problem, _) in enumerate(runs):
        alone = adam.optimise(variables, problem, SHORT, free)
        np.testing.assert_allclose(trace["total"][k], alone.trace["total"], rtol=1e-5)
        one = jax.tree.map(lambda leaf, k=k: leaf[k], batched.variables)
        _assert_same(one, alone.variables, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_returns_the_last_good_state(monkeypatch):
    monkeypatch.setattr(adam, "CHUNK", 3)
    variables, problem, free = _tiny_problem()

    def poison(_, old):
        return old.replace(
            pointmaps=old.pointmaps.replace(weight=old.pointmaps.weight.at[0, 0, 0].set(jnp.nan))
        )

    good = adam.optimise(variables, problem, SHORT, free)
    run = functools.partial(adam.optimise, variables, config=SHORT, trainable=free)
    late = run(problem=problem, refresh=poison, refresh_count=1)
    assert late.failed
    # The problem turned bad after the first chunk, at iteration 4.
    assert {len(values) for values in late.trace.values()} == {4}
    np.testing.assert_allclose(late.trace["total"], good.trace["total"][:4], rtol=1e-6)
    # Its variables are those at which the last finite loss was taken, before that step.
    last, _ = objective.evaluate(late.variables, problem, SHORT, False)
    np.testing.assert_allclose(last, good.trace["total"][3], rtol=1e-5)

    at_once = run(problem=poison(None, problem))
    assert at_once.failed and len(at_once.trace["total"]) == 0
    _assert_same(at_once.variables, variables, rtol=0)


def test_no_iterations():
    variables, problem, free = _tiny_problem()
    outcome = adam.optimise(variables, problem, dataclasses.replace(SHORT, iterations=0), free)
    assert outcome.trace == {} and not outcome.failed
    _assert_same(outcome.variables, variables, rtol=0)
