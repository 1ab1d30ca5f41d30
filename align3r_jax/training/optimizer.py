"""AdamW with decay and freezing by parameter path; warm-up and cosine schedule (DUSt3R).

Only what trains has gradients, moments and averages: `split` takes the frozen parameters out
before anything else happens.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from align3r_jax.errors import UserError
from align3r_jax.structs import Array

# What stays as it is, patterns of whole parameter paths.
FREEZE: dict[str, tuple[str, ...]] = {
    "none": (),  # DUSt3R
    # Align3R. parity: the norm behind the encoder and the projection to the decoder are frozen too
    "align3r": ("encoder/.*", "decoder_embed/.*", "mask_token"),
    # MonST3R ("decoder and heads" in the papers' tables)
    "encoder": ("encoder/patch_embed/.*", r"encoder/block_\d+/.*", "mask_token"),
    # Decoders with what feeds them, the prior branch included; encoder and heads as they are.
    "decoder_only": (r"(?!decoder|prior_branch/).*",),
    "head_only": (r"(?!head\d/).*",),
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """lr(e) = lr e/W while e < W, then lr_min + (lr - lr_min) (1 + cos(pi (e - W)/(E - W)))/2.

    All numbers count updates, not micro-steps.
    """

    lr: float = 5e-5
    lr_min: float = 1e-6
    base_lr: float = 0.0  # if set, lr = base_lr * (rows of an update) / 256
    warmup: int = 0  # updates W
    total: int = 1000  # updates E
    weight_decay: float = 0.05
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    frozen: str | tuple[str, ...] = "none"  # a name in FREEZE, or patterns of parameter paths
    accumulate: int = 1  # equal parts of a batch, one after the other; their gradients' mean counts
    clip_norm: float = 0.0  # gradients are scaled down to this global norm; 0: never (reference)


class Optimizer(NamedTuple):
    """What `training.step` needs. init(params) -> opt_state takes all parameters; update(grads,
    opt_state, trained) -> (updates, opt_state) those of `split(params, frozen)` that train."""

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], tuple[Any, Any]]
    frozen: tuple[str, ...]
    accumulate: int


def learning_rate(config: OptimizerConfig, update: Array) -> Array:
    """Returns the learning rate of update number `update` (0, 1, ...)."""
    e = jnp.asarray(update, jnp.float32)
    progress = (e - config.warmup) / max(config.total - config.warmup, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, min=0.0, max=1.0)))
    decayed = config.lr_min + (config.lr - config.lr_min) * cosine
    return jnp.where(e < config.warmup, config.lr * e / max(config.warmup, 1), decayed)


def frozen_patterns(frozen: str | tuple[str, ...]) -> tuple[str, ...]:
    """Returns the patterns of a preset's name, or patterns as they are. UserError if unknown."""
    if not isinstance(frozen, str):
        return tuple(frozen)
    if frozen not in FREEZE:
        raise UserError(
            f"optimizer.frozen='{frozen}' is unknown; use one of {', '.join(FREEZE)}, or a tuple "
            "of patterns of parameter paths."
        )
    return FREEZE[frozen]


def split(params: Any, frozen: tuple[str, ...]) -> tuple[Any, Any]:
    """Returns (trees of what trains, of what is frozen): paths wholly matched by any pattern.

    Raises UserError if a pattern matches nothing, or nothing is left to train.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    held = {path for path in flat if any(re.fullmatch(pattern, path) for pattern in frozen)}
    idle = [p for p in frozen if not any(re.fullmatch(p, path) for path in flat)]
    if idle or len(held) == len(flat):
        wrong = f"matches nothing: {', '.join(idle)}" if idle else "leaves nothing to train"
        raise UserError(
            f"optimizer.frozen {wrong}. The parameters are {', '.join(sorted(params))}; see "
            "FREEZE in align3r_jax/training/optimizer.py for examples."
        )
    parts = ({p: v for p, v in flat.items() if (p in held) == held_part} for held_part in (0, 1))
    trained, rest = (traverse_util.unflatten_dict(part, sep="/") for part in parts)
    return trained, rest


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the union of two trees of parameters; `first` wins where both have a path."""
    flat = [traverse_util.flatten_dict(dict(tree), sep="/") for tree in (second, first)]
    return traverse_util.unflatten_dict(flat[0] | flat[1], sep="/")


def decay_mask(params: Any) -> Any:
    """Returns True for parameters that decay: those with two or more dimensions.

    The reference decays by PyTorch's dimensions; ours have the same number of them except
    zero convolutions (3-D there, 2-D here), which decay in both.
    """
    return jax.tree.map(lambda p: p.ndim > 1, params)


def make_optimizer(config: OptimizerConfig, batch_size: int | None = None) -> Optimizer:
    """Returns AdamW of the config; updates with any non-finite gradient are skipped and counted.

    batch_size: rows of an update over all devices, before a batch is symmetrised; needed for
    `base_lr` only. Raises UserError for settings that contradict each other.
    """
    if config.base_lr > 0:
        if batch_size is None:
            raise UserError("optimizer.base_lr needs the batch size; set optimizer.lr instead.")
        config = dataclasses.replace(config, lr=config.base_lr * batch_size / 256)
    if config.accumulate < 1 or (batch_size is not None and batch_size % config.accumulate):
        raise UserError(
            f"optimizer.accumulate={config.accumulate} does not cut a batch of {batch_size} into "
            "equal parts; choose a divisor of config.batch_size."
        )
    frozen = frozen_patterns(config.frozen)
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
    # The count of skipped updates lives in the state (`total_notfinite`).
    guarded = optax.apply_if_finite(adamw, max_consecutive_errors=2**31 - 1)

    def init(params: Any) -> Any:
        return guarded.init(split(params, frozen)[0])

    return Optimizer(init, guarded.update, frozen, config.accumulate)


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
