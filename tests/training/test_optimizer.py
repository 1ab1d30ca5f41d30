"""AdamW, its schedule, freezing and the skipping of bad updates."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align3r_jax.training import optimizer


@pytest.mark.golden
def test_adamw_with_accumulation(golden_dir):
    arrays = np.load(golden_dir / "training_adamw.npz")
    updates = len(arrays["lr"])
    per_update = len(arrays["grad_w"]) // updates
    config = optimizer.OptimizerConfig(weight_decay=0.05, accumulate=per_update)
    rates = jnp.asarray(arrays["lr"], jnp.float32)
    inner = optax.adamw(
        lambda c: rates[c], b1=config.b1, b2=config.b2, eps=config.eps,
        weight_decay=config.weight_decay, mask=optimizer.decay_mask,
    )  # fmt: skip
    steps = optax.MultiSteps(inner, per_update).gradient_transformation()
    params = {"w": jnp.asarray(arrays["w0"]), "b": jnp.asarray(arrays["b0"])}
    state = steps.init(params)
    for k in range(len(arrays["grad_w"])):
        grads = {"w": jnp.asarray(arrays["grad_w"][k]), "b": jnp.asarray(arrays["grad_b"][k])}
        change, state = steps.update(grads, state, params)
        params = optax.apply_updates(params, change)
        if (k + 1) % per_update == 0:
            u = (k + 1) // per_update - 1
            np.testing.assert_allclose(params["w"], arrays["w"][u], atol=1e-6)
            np.testing.assert_allclose(params["b"], arrays["b"][u], atol=1e-6)


@pytest.mark.golden
def test_schedule(golden_dir):
    golden = json.loads((golden_dir / "training_schedule.json").read_text())
    recipes = [v for v in golden.values() if isinstance(v, dict) and "rows" in v]
    assert recipes
    for recipe in recipes:
        settings = recipe.get("settings", recipe)
        lr, lr_min = settings["lr"], settings["min_lr"]
        warmup, epochs = settings["warmup_epochs"], settings["epochs"]
        steps = settings["iters_per_epoch"]
        config = optimizer.OptimizerConfig(
            lr=lr, lr_min=lr_min, warmup=warmup * steps, total=epochs * steps
        )
        for epoch, step, _, rate in recipe["rows"]:
            ours = optimizer.learning_rate(config, epoch * steps + step)
            np.testing.assert_allclose(ours, rate, rtol=1e-5, atol=1e-12)


def _toy():
    key = jax.random.key(0)
    return {"encoder": {"kernel": jax.random.normal(key, (3, 4))}, "head": {"bias": jnp.ones(4)}}


def test_frozen_parameters_never_change_and_others_do():
    params = _toy()
    tx = optimizer.make_optimizer(optimizer.OptimizerConfig(lr=0.1, frozen=("encoder/.*",)))
    grads = jax.tree.map(jnp.ones_like, params)
    change, _ = tx.update(grads, tx.init(params), params)
    assert np.all(change["encoder"]["kernel"] == 0)
    assert np.all(change["head"]["bias"] != 0)


def test_one_dimensional_parameters_do_not_decay():
    params = _toy()
    tx = optimizer.make_optimizer(optimizer.OptimizerConfig(lr=0.1, weight_decay=0.5))
    change, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert np.all(change["head"]["bias"] == 0)
    np.testing.assert_allclose(change["encoder"]["kernel"], -0.05 * params["encoder"]["kernel"])


def test_non_finite_gradients_are_skipped_and_counted():
    params = _toy()
    tx = optimizer.make_optimizer(optimizer.OptimizerConfig(lr=0.1))
    grads = jax.tree.map(lambda p: p.at[0].set(jnp.nan), params)
    change, state = tx.update(grads, tx.init(params), params)
    assert all(np.all(np.asarray(c) == 0) for c in jax.tree.leaves(change))
    assert optimizer.skipped_updates(state) == 1
