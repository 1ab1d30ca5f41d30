"""AdamW, its schedule, what trains and what decays, and the skipping of bad updates."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.config import NETWORK_PRESETS
from align3r_jax.errors import UserError
from align3r_jax.networks import align3r
from align3r_jax.training import optimizer, state, step

HUGE = NETWORK_PRESETS["align3r_vitl_512_dpt"]


def _linear_loss(params, batch, key):
    """Its gradient is the batch's mean of the recorded gradients."""
    del key
    parts = [jnp.sum(jnp.mean(batch[name], 0) * params[name]) for name in params]
    return sum(parts), {}


@pytest.mark.golden
def test_adamw_with_accumulation(golden_dir):
    arrays = np.load(golden_dir / "training_adamw.npz")
    golden = json.loads((golden_dir / "training_schedule.json").read_text())["adamw"]
    parts, epoch = golden["accum_iter"], golden["iters_per_epoch"] // golden["accum_iter"]
    config = optimizer.OptimizerConfig(
        lr=golden["lr"], lr_min=golden["min_lr"], weight_decay=golden["weight_decay"],
        b1=golden["betas"][0], b2=golden["betas"][1], eps=golden["eps"],
        warmup=golden["warmup_epochs"] * epoch, total=golden["epochs"] * epoch, accumulate=parts,
    )  # fmt: skip
    for update, rate in enumerate(arrays["lr"]):
        np.testing.assert_allclose(optimizer.learning_rate(config, update), rate, rtol=1e-5)
    tx = optimizer.make_optimizer(config, batch_size=parts)
    start = {"w": jnp.asarray(arrays["w0"]), "b": jnp.asarray(arrays["b0"])}
    current = state.create(start, tx)
    advance = step.make_step(_linear_loss, tx, average_decay=0.0)
    for update in range(len(arrays["lr"])):
        rows = slice(update * parts, (update + 1) * parts)
        batch = {name: jnp.asarray(arrays[f"grad_{name}"][rows]) for name in ("w", "b")}
        current, _ = advance(current, batch, jax.random.key(0))
        np.testing.assert_allclose(current.params["w"], arrays["w"][update], atol=1e-6)
        np.testing.assert_allclose(current.params["b"], arrays["b"][update], atol=1e-6)
    np.testing.assert_array_equal(current.average["w"], current.params["w"])


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
        for epoch, number, _, rate in recipe["rows"]:
            ours = optimizer.learning_rate(config, epoch * steps + number)
            np.testing.assert_allclose(ours, rate, rtol=1e-5, atol=1e-12)


@pytest.mark.golden
def test_the_rate_from_a_base_rate(golden_dir):
    for case in json.loads((golden_dir / "training_schedule.json").read_text())[
        "absolute_lr_from_blr"
    ]:
        rows = case["batch"] * case["accum"] * case["world"]
        config = optimizer.OptimizerConfig(base_lr=case["blr"], weight_decay=0.0)
        tx = optimizer.make_optimizer(config, batch_size=rows)
        params = {"w": jnp.zeros((1, 1))}
        change, _ = tx.update({"w": jnp.ones((1, 1))}, tx.init(params), params)
        np.testing.assert_allclose(change["w"], -case["lr"], rtol=1e-5)


def _sizes(tree):
    return [leaf.size for leaf in jax.tree.leaves(tree)]


def test_what_trains_in_the_papers_networks():
    params = align3r.abstract_params(HUGE)
    trained, frozen = optimizer.split(params, optimizer.FREEZE["align3r"])
    assert sum(_sizes(trained)) == 299_179_400
    assert sum(_sizes(frozen)) == 303_886_848
    decays = jax.tree.leaves(optimizer.decay_mask(trained))
    sizes = _sizes(trained)
    assert len(sizes) == 766 and sum(decays) == 282
    assert round(sum(n for n, d in zip(sizes, decays) if d) / 1e6, 2) == 298.73
    moments = jax.eval_shape(
        optimizer.make_optimizer(optimizer.OptimizerConfig(frozen="align3r")).init, params
    )
    assert sum(_sizes(moments)) - 2 * sum(sizes) < 10, "two moments of what trains, counters"

    dust3r = align3r.abstract_params(NETWORK_PRESETS["monst3r_vitl_512_dpt"])
    trained, frozen = optimizer.split(dust3r, optimizer.FREEZE["encoder"])
    blocks = sum(_sizes(params["encoder"])) - 2 * HUGE.enc_embed_dim  # without the norm
    assert sum(_sizes(frozen)) == blocks + HUGE.dec_embed_dim
    assert sum(_sizes(trained)) + sum(_sizes(frozen)) == 571_171_208
    assert "norm" in trained["encoder"] and "decoder_embed" in trained

    trained, _ = optimizer.split(params, optimizer.FREEZE["decoder_only"])
    assert set(trained) == {
        "decoder_embed", "decoder1", "decoder2", "decoder_norm", "prior_branch"
    }  # fmt: skip
    trained, _ = optimizer.split(params, optimizer.FREEZE["head_only"])
    assert set(trained) == {"head1", "head2"}


def _toy():
    key = jax.random.key(0)
    return {"encoder": {"kernel": jax.random.normal(key, (3, 4))}, "head": {"bias": jnp.ones(4)}}


def test_settings_that_do_nothing_get_a_sentence():
    params = _toy()
    for frozen, words in ((("encoder.*", "decoder/.*"), "decoder/"), ((".*",), "nothing to train")):
        with pytest.raises(UserError, match=words):
            optimizer.split(params, frozen)
    with pytest.raises(UserError, match="head_only"):
        optimizer.make_optimizer(optimizer.OptimizerConfig(frozen="heads"))
    with pytest.raises(UserError, match="equal parts"):
        optimizer.make_optimizer(optimizer.OptimizerConfig(accumulate=3), batch_size=8)
    with pytest.raises(UserError, match="batch size"):
        optimizer.make_optimizer(optimizer.OptimizerConfig(base_lr=1e-4))


def test_merging_undoes_splitting():
    params = _toy()
    trained, frozen = optimizer.split(params, ("encoder/.*",))
    assert set(trained) == {"head"} and set(frozen) == {"encoder"}
    merged = optimizer.merge(trained, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert optimizer.merge({"a": 1}, {"a": 2, "b": 3}) == {"a": 1, "b": 3}


def test_one_dimensional_parameters_do_not_decay():
    params = _toy()
    tx = optimizer.make_optimizer(optimizer.OptimizerConfig(lr=0.1, weight_decay=0.5))
    change, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert np.all(change["head"]["bias"] == 0)
    np.testing.assert_allclose(change["encoder"]["kernel"], -0.05 * params["encoder"]["kernel"])


def test_the_norm_of_gradients_is_clipped():
    params = {"w": jnp.zeros((4, 4))}
    config = optimizer.OptimizerConfig(clip_norm=1.0)
    tx = optimizer.make_optimizer(config)
    _, big = tx.update({"w": jnp.full((4, 4), 100.0)}, tx.init(params), params)
    plain = optimizer.make_optimizer(dataclasses.replace(config, clip_norm=0.0))
    _, small = plain.update({"w": jnp.full((4, 4), 0.25)}, plain.init(params), params)
    for a, b in zip(jax.tree.leaves(big), jax.tree.leaves(small), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
