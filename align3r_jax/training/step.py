"""One update: batch of a step number -> loss -> gradient -> new state, all in one jitted call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from align3r_jax.errors import UserError
from align3r_jax.structs import Array
from align3r_jax.training import optimizer as optimizer_lib
from align3r_jax.training import partitioning
from align3r_jax.training.optimizer import Optimizer
from align3r_jax.training.state import TrainState

LossFn = Callable[[Any, Any, Array], tuple[Array, dict[str, Array]]]


def make_step(
    loss_fn: LossFn,
    optimizer: Optimizer,
    average_decay: float = 0.999,
    state_sharding: Any = None,
    batch_sharding: NamedSharding | None = None,
    gather_dtype: Any = None,
) -> Callable[[TrainState, Any, Array], tuple[TrainState, dict[str, Array]]]:
    """Returns step(state, batch, key) -> (state, details); the old state is donated.

    loss_fn(params, batch, key) -> (loss, details) in float32; only the parameters that train are
    differentiated. Their moving average follows `average_decay` (0: no averaging), shorter at the
    start. state_sharding: a tree like the state (`partitioning.state_shardings`), or, without
    gather_dtype, one for all. gather_dtype: parameters that are split over devices are gathered
    once per loss, in this type (`partitioning.gathered`); None: by the compiler where they are
    used, in float32. What is kept and updated is float32 in any case. With `optimizer.accumulate`
    = n a batch is taken in n parts, rows k, k + n, ... in part k, each with its own key; gradients,
    loss and details are the means of the parts'.
    Details gain "loss" and "grad_norm" (of the parameters that train, before any clipping).
    """

    def step(state: TrainState, batch: Any, key: Array) -> tuple[TrainState, dict[str, Array]]:
        trained, frozen = optimizer_lib.split(state.params, optimizer.frozen)

        def loss_of(trained: Any, rows: Any, key: Array) -> tuple[Array, dict[str, Array]]:
            params = optimizer_lib.merge(trained, frozen)
            if gather_dtype is not None and state_sharding is not None:
                params = partitioning.gathered(params, state_sharding.params, gather_dtype)
            loss, details = loss_fn(params, rows, key)
            return loss, details | {"loss": loss}

        gradient = jax.grad(loss_of, has_aux=True)
        if optimizer.accumulate == 1:
            grads, details = gradient(trained, batch, key)
        else:
            grads, details = _accumulated(gradient, trained, batch, key, optimizer.accumulate)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        average, still = optimizer_lib.split(state.average, optimizer.frozen)
        decay = jnp.minimum(average_decay, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, trained)
        average = optimizer_lib.merge(average, still)
        params = optimizer_lib.merge(trained, frozen)
        details = details | {"grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, average, opt_state), details

    if state_sharding is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(state_sharding, batch_sharding, None),
        out_shardings=(state_sharding, None),
    )


def _accumulated(
    gradient: Callable[[Any, Any, Array], tuple[Any, Any]],
    trained: Any,
    batch: Any,
    key: Array,
    parts: int,
) -> tuple[Any, Any]:
    """Returns (mean gradient, mean details) over the parts of a batch, one part in memory."""

    def cut(rows: Array) -> Array:
        # Every `parts`-th row: what lies on one device stays there.
        if rows.shape[0] % parts:
            raise UserError(
                f"optimizer.accumulate={parts} does not cut a batch of {rows.shape[0]} into equal "
                "parts; choose a divisor of config.batch_size."
            )
        return jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        rows, number = part
        found = gradient(trained, rows, jax.random.fold_in(key, number))
        return jax.tree.map(lambda a, b: a + b / parts, total, found), None

    shapes = jax.eval_shape(gradient, trained, jax.tree.map(lambda x: x[::parts], batch), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, (jax.tree.map(cut, batch), jnp.arange(parts)))[0]
