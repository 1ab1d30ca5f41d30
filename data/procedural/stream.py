"""Endless batches of rendered pairs as training wants them; a batch is a function of its number."""

from __future__ import annotations

import functools
from collections.abc import Callable

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
    """Returns batch_of(step): the batch `training.pair_batch` documents, rendered on the fly.

    Half of the pairs are mirrored. Prior: the noise model on the true depth, missing for
    `prior_dropout` of the pairs; its focal is `camera.DEFAULT_FOCAL` or the true one within 10 %.
    """
    bank = textures.make_bank()
    render = _renderer(batch_size, height, width, options, sharding)
    root = jax.random.key(seed)
    return lambda step: render(jax.random.fold_in(root, step), bank, prior_dropout)


def validation_batches(
    height: int,
    width: int,
    count: int = 4,
    batch_size: int = 16,
    sharding: jax.sharding.Sharding | None = None,
) -> list[Batch]:
    """Returns fixed batches of unseen scenes with unseen textures, every pair with a prior."""
    bank = textures.make_bank(textures.EVALUATION_SEED)
    root = jax.random.key(_VALIDATION_SEED)
    render = _renderer(batch_size, height, width, pairs.PairOptions(), sharding)
    return [render(jax.random.fold_in(root, k), bank, 0.0) for k in range(count)]


@functools.lru_cache(maxsize=8)
def _renderer(
    size: int,
    height: int,
    width: int,
    options: pairs.PairOptions,
    sharding: jax.sharding.Sharding | None,
) -> Callable[[jax.Array, textures.TextureBank, float], Batch]:
    # Compiling takes 20 CPU seconds: training and validation of one size share it.
    def render(key: jax.Array, bank: textures.TextureBank, prior_dropout: float) -> Batch:
        return _batch(key, bank, size, height, width, prior_dropout, options)

    return jax.jit(render, out_shardings=sharding)


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
