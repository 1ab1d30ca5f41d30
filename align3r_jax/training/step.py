"""One update: batch of a step number -> loss -> gradient -> new state, all in one jitted call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from align3r_jax.structs import Array
from align3r_jax.training.state import TrainState

LossFn = Callable[[Any, Any, Array], tuple[Array, dict[str, Array]]]


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    average_decay: float = 0.999,
    state_sharding: NamedSharding | None = None,
    batch_sharding: NamedSharding | None = None,
) -> Callable[[TrainState, Any, Array], tuple[TrainState, dict[str, Array]]]:
    """Returns step(state, batch, key) -> (state, details); the old state is donated.

    loss_fn(params, batch, key) -> (loss, details) in float32. The moving average of the
    parameters follows `average_decay`, shorter at the start. Details gain "loss", "grad_norm".
    """

    def step(state: TrainState, batch: Any, key: Array) -> tuple[TrainState, dict[str, Array]]:
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, details), grads = gradient(state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(average_decay, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.average, params)
        details = details | {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, average, opt_state), details

    if state_sharding is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(state_sharding, batch_sharding, None),
        out_shardings=(state_sharding, None),
    )
