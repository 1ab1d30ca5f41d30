"""Endless batches of rendered pairs as training wants them; a batch is a function of its number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from align3r_jax.geometry import camera
from data.procedural import noise, pairs, textures

Batch = dict[str, jax.Array]
_VALIDATION_SEED = 10_000_019  # keys of validation scenes never meet those of training


def batches(
    *,
    batch_size: int,
    height: int,
    width: int,
    seed: int,
    prior_dropout: float = 0.35,
    options: pairs.PairOptions = pairs.PairOptions(),
    sharding: jax.sharding.Sharding | None = None,
) -> Callable[[int], Batch]:
    """Returns batch_of(step): the batch `training.tasks` documents, rendered on the fly.

    Half of the pairs are mirrored. Prior: the noise model on the true depth, missing for
    `prior_dropout` of the pairs; its focal is `camera.DEFAULT_FOCAL` or the true one within 10 %.
    """
    bank = textures.make_bank()
    render = jax.jit(
        lambda key: _batch(key, bank, batch_size, height, width, prior_dropout, options),
        out_shardings=sharding,
    )
    root = jax.random.key(seed)
    return lambda step: render(jax.random.fold_in(root, step))


def validation_batches(
    height: int, width: int, count: int = 4, batch_size: int = 16
) -> list[Batch]:
    """Returns fixed batches of unseen scenes with unseen textures, every pair with a prior."""
    bank = textures.make_bank(textures.EVALUATION_SEED)
    root = jax.random.key(_VALIDATION_SEED)
    render = jax.jit(
        lambda key: _batch(key, bank, batch_size, height, width, 0.0, pairs.PairOptions())
    )
    return [render(jax.random.fold_in(root, k)) for k in range(count)]


def evaluator(loss_fn: Callable[..., Any], validation: list[Batch]) -> Callable[[Any], dict]:
    """Returns evaluate(params) -> mean details over the validation batches."""
    compute = jax.jit(lambda params, batch: loss_fn(params, batch, jax.random.key(0))[1])

    def evaluate(params: Any) -> dict[str, float]:
        details = [jax.device_get(compute(params, batch)) for batch in validation]
        return {k: float(sum(d[k] for d in details) / len(details)) for k in details[0]}

    return evaluate


def _batch(
    key: jax.Array,
    bank: textures.TextureBank,
    size: int,
    height: int,
    width: int,
    prior_dropout: float,
    options: pairs.PairOptions,
) -> Batch:
    key_render, key_noise, key_drop, key_focal, key_mirror = jax.random.split(key, 5)
    drawn = pairs.render_pairs(key_render, bank, size, height, width, options)
    noisy = noise.noisy_prior(key_noise, drawn.depth, drawn.instance)
    guess, spread = jax.random.uniform(key_focal, (2, size))
    near_truth = drawn.focal * jnp.exp(0.1 * (2 * spread - 1))
    batch = {
        "images": 2 * drawn.rgb - 1,
        "depth": jnp.where(drawn.valid[:, None, None, None], drawn.depth, 0.0),
        "focal": drawn.focal,
        "cam1_from_cam2": drawn.cam1_from_cam2,
        "prior_depth": noisy,
        "prior_focal": jnp.where(
            guess < 0.5, camera.DEFAULT_FOCAL * max(height, width), near_truth
        ),
        "has_prior": jax.random.uniform(key_drop, (size,)) >= prior_dropout,
    }
    return _mirror(batch, jax.random.bernoulli(key_mirror, 0.5, (size,)))


def _mirror(batch: Batch, chosen: jax.Array) -> Batch:
    """Flips the chosen pairs left to right; half a pixel of principal point is neglected."""
    flip = jnp.diag(jnp.array([-1.0, 1.0, 1.0, 1.0]))
    pose = batch["cam1_from_cam2"]
    mirrored = dict(batch, cam1_from_cam2=flip @ pose @ flip)
    for name in ("images", "depth", "prior_depth"):
        mirrored[name] = batch[name][:, :, :, ::-1]
    pick = lambda a, b: jnp.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
    return jax.tree.map(pick, mirrored, batch)
