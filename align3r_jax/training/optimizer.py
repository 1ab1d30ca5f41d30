"""AdamW with decay and freezing by parameter path; warm-up and cosine schedule (DUSt3R)."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from align3r_jax.structs import Array


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """lr(e) = lr e/W while e < W, then lr_min + (lr - lr_min) (1 + cos(pi (e - W)/(E - W)))/2."""

    lr: float = 5e-5
    lr_min: float = 1e-6
    warmup: int = 0  # updates W
    total: int = 1000  # updates E
    weight_decay: float = 0.05
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    frozen: tuple[str, ...] = ()  # regexes over parameter paths ("encoder/.*")
    accumulate: int = 1  # micro-steps per update
    clip_norm: float = 0.0  # gradients are scaled down to this global norm; 0: never (reference)


def learning_rate(config: OptimizerConfig, update: Array) -> Array:
    """Returns the learning rate of update number `update` (0, 1, ...)."""
    e = jnp.asarray(update, jnp.float32)
    progress = (e - config.warmup) / max(config.total - config.warmup, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, min=0.0, max=1.0)))
    decayed = config.lr_min + (config.lr - config.lr_min) * cosine
    return jnp.where(e < config.warmup, config.lr * e / max(config.warmup, 1), decayed)


def path_mask(params: Any, patterns: tuple[str, ...]) -> Any:
    """Returns a tree of bools: True where any regex matches the whole parameter path."""
    flat = traverse_util.flatten_dict(params, sep="/")
    mask = {path: any(re.fullmatch(p, path) for p in patterns) for path in flat}
    return traverse_util.unflatten_dict(mask, sep="/")


def decay_mask(params: Any) -> Any:
    """Returns True for parameters that decay: those with two or more dimensions.

    The reference decays by PyTorch's dimensions; ours have the same number of them except
    zero convolutions (3-D there, 2-D here), which decay in both.
    """
    return jax.tree.map(lambda p: p.ndim > 1, params)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns AdamW of the config; updates with any non-finite gradient are skipped and counted.

    Frozen parameters keep no optimiser moments and never change.
    """
    adamw = optax.adamw(
        lambda count: learning_rate(config, count),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    if config.clip_norm > 0:
        adamw = optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
    if config.frozen:

        def label(params: Any) -> Any:
            frozen = path_mask(params, config.frozen)
            return jax.tree.map(lambda f: "frozen" if f else "trained", frozen)

        adamw = optax.multi_transform({"trained": adamw, "frozen": optax.set_to_zero()}, label)
    # The count of skipped updates lives in the state (`total_notfinite`).
    guarded = optax.apply_if_finite(adamw, max_consecutive_errors=1_000_000)
    if config.accumulate > 1:
        guarded = optax.MultiSteps(guarded, config.accumulate).gradient_transformation()
    return guarded


def skipped_updates(opt_state: Any) -> int:
    """Returns how many updates were skipped for non-finite gradients."""
    found = [
        leaf.total_notfinite
        for leaf in jax.tree.leaves(
            opt_state, is_leaf=lambda x: isinstance(x, optax.ApplyIfFiniteState)
        )
        if isinstance(leaf, optax.ApplyIfFiniteState)
    ]
    return int(sum(int(x) for x in found))
