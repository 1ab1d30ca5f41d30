"""One update: what is frozen, accumulated, skipped, averaged and counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.training import flops, optimizer, state, step

CONFIG = optimizer.OptimizerConfig(lr=0.1, total=100)


def _params():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "encoder": {"kernel": jax.random.normal(keys[0], (3, 4))},
        "head": {"kernel": jax.random.normal(keys[1], (4, 1)), "bias": jnp.zeros(1)},
    }


def _loss(params, batch, key):
    noise = 1e-3 * jax.random.normal(key, batch["x"].shape)
    hidden = (batch["x"] + noise) @ params["encoder"]["kernel"]
    error = jnp.tanh(hidden) @ params["head"]["kernel"] + params["head"]["bias"] - 1.0
    return jnp.mean(error**2), {"error": jnp.mean(jnp.abs(error))}


def _batch(rows=6, scale=1.0):
    return {"x": scale * np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)}


def test_frozen_parameters_stay_and_cost_nothing():
    config = dataclasses.replace(CONFIG, frozen=("encoder/.*",))
    tx = optimizer.make_optimizer(config)
    first = state.create(_params(), tx)
    moved, details = step.make_step(_loss, tx)(first, _batch(), jax.random.key(0))
    np.testing.assert_array_equal(moved.params["encoder"]["kernel"], _params()["encoder"]["kernel"])
    np.testing.assert_array_equal(
        moved.average["encoder"]["kernel"], _params()["encoder"]["kernel"]
    )
    assert np.all(np.asarray(moved.params["head"]["kernel"]) != _params()["head"]["kernel"])
    assert jax.tree.structure(moved) == jax.tree.structure(state.create(_params(), tx))
    only_head = jax.grad(
        lambda head: _loss(_params() | {"head": head}, _batch(), jax.random.key(0))[0]
    )(_params()["head"])
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(only_head)))
    np.testing.assert_allclose(details["grad_norm"], norm, rtol=1e-5)

    def operations(config):
        tx = optimizer.make_optimizer(config)
        first = jax.eval_shape(lambda: state.create(_params(), tx))
        return flops.step_flops(step.make_step(_loss, tx), first, _batch())

    hidden, out = 2 * 6 * 3 * 4, 2 * 6 * 4
    assert operations(config) == hidden + 2 * out
    assert operations(CONFIG) == 2 * hidden + 3 * out
    halves = dataclasses.replace(CONFIG, accumulate=2)
    assert operations(halves) == 2 * hidden + 3 * out, "the loop over parts is counted in full"


def test_accumulation_takes_the_mean_of_the_parts():
    config = dataclasses.replace(CONFIG, accumulate=3)
    tx, batch, key = optimizer.make_optimizer(config), _batch(), jax.random.key(1)
    moved, details = step.make_step(_loss, tx)(state.create(_params(), tx), batch, key)
    found = [
        jax.value_and_grad(_loss, has_aux=True)(
            _params(), {"x": batch["x"][k::3]}, jax.random.fold_in(key, k)
        )
        for k in range(3)
    ]
    np.testing.assert_allclose(
        details["loss"], np.mean([loss for (loss, _), _ in found]), rtol=1e-6
    )
    np.testing.assert_allclose(
        details["error"], np.mean([aux["error"] for (_, aux), _ in found]), rtol=1e-6
    )
    mean = jax.tree.map(lambda *g: sum(g) / 3, *[grads for _, grads in found])
    updates, _ = tx.update(mean, tx.init(_params()), _params())
    for new, old, change in zip(*map(jax.tree.leaves, (moved.params, _params(), updates))):
        np.testing.assert_allclose(new, old + change, rtol=1e-5)
    with pytest.raises(UserError, match="equal parts"):
        step.make_step(_loss, tx)(state.create(_params(), tx), _batch(rows=4), key)


def test_updates_that_are_not_finite_are_skipped_and_counted():
    tx = optimizer.make_optimizer(CONFIG)
    advance = step.make_step(_loss, tx)
    broken = {"x": np.full((6, 3), np.nan, np.float32)}
    moved, details = advance(state.create(_params(), tx), broken, jax.random.key(0))
    assert np.isnan(details["loss"]) and int(moved.step) == 1
    for a, b in zip(jax.tree.leaves(moved.params), jax.tree.leaves(_params())):
        np.testing.assert_array_equal(a, b)
    assert optimizer.skipped_updates(moved.opt_state) == 1
    moved, _ = advance(moved, _batch(), jax.random.key(0))
    assert optimizer.skipped_updates(moved.opt_state) == 1, "counted once"
    fresh, _ = advance(state.create(_params(), tx), _batch(), jax.random.key(0))
    for a, b in zip(jax.tree.leaves(moved.params), jax.tree.leaves(fresh.params)):
        np.testing.assert_array_equal(a, b)


def test_the_average_follows_the_parameters():
    tx = optimizer.make_optimizer(CONFIG)
    advance = step.make_step(_loss, tx, average_decay=0.5)
    current, expected = state.create(_params(), tx), _params()["head"]["bias"]
    for number in range(8):
        current, _ = advance(current, _batch(), jax.random.key(number))
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * current.params["head"]["bias"]
    np.testing.assert_allclose(current.average["head"]["bias"], expected, rtol=1e-5)
