"""The loop: resuming equals running through, logs are written, bad losses stop with a sentence."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.training import loop, optimizer, partitioning, state, step

CONFIG = optimizer.OptimizerConfig(lr=0.05, warmup=2, total=12)


def _loss(params, batch, key):
    noise = 0.01 * jax.random.normal(key, batch["x"].shape)
    error = batch["x"] @ params["w"] - batch["y"] + noise[:, 0]
    return jnp.mean(error**2), {"error": jnp.mean(jnp.abs(error))}


def _batch(number):
    rng = np.random.default_rng(number)
    x = rng.normal(size=(8, 3)).astype(np.float32)
    return {"x": x, "y": x @ np.array([1.0, -2.0, 0.5], np.float32)}


def _train(folder, total, loss=_loss, **settings):
    tx = optimizer.make_optimizer(CONFIG)
    replicated, split = partitioning.shardings(partitioning.data_mesh(1), 8)
    return loop.run(
        init_state=lambda: state.create({"w": jnp.zeros(3)}, tx),
        step=step.make_step(loss, tx, 0.9, replicated, split),
        batch_of=_batch,
        total_steps=total,
        folder=folder,
        config={"lr": CONFIG.lr},
        sharding=replicated,
        log_every=3,
        save_every=5,
        **settings,
    )


def test_resuming_equals_running_through(tmp_path):
    through = _train(tmp_path / "a", 12)
    _train(tmp_path / "b", 7)
    resumed = _train(tmp_path / "b", 12)
    assert int(resumed.step) == 12
    for a, b in zip(jax.tree.leaves(through), jax.tree.leaves(resumed)):
        np.testing.assert_array_equal(a, b)


def test_one_log_line_per_interval_and_evaluation(tmp_path):
    seen = []

    def evaluate(params):
        seen.append(params)
        return {"w0": float(params["w"][0])}

    final = _train(tmp_path, 6, evaluate=evaluate, evaluate_every=6)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert all(line["loss"] > 0 and line["skipped"] == 0 for line in lines)
    target = np.array([1.0, -2.0, 0.5])
    assert np.linalg.norm(final.params["w"] - target) < 0.95 * np.linalg.norm(target)
    np.testing.assert_allclose(lines[1]["eval_w0"], final.average["w"][0], atol=1e-5)
    assert json.loads((tmp_path / "config.json").read_text()) == {"lr": CONFIG.lr}


def test_a_loss_that_is_not_finite_stops_with_a_sentence(tmp_path):
    def broken(params, batch, key):
        loss, details = _loss(params, batch, key)
        return loss * jnp.nan, details

    with pytest.raises(UserError, match="lower config.lr"):
        _train(tmp_path, 6, broken)


def test_a_batch_that_does_not_divide_gets_a_sentence():
    mesh = partitioning.data_mesh(1)
    partitioning.shardings(mesh, 3)

    class Two:
        shape = {"data": 2}

    with pytest.raises(UserError, match="multiple of 2"):
        partitioning.shardings(Two(), 3)
