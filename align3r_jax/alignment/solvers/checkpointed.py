"""A loop whose gradient needs the memory of 2 sqrt(n) states instead of n.

Two nested loops of about sqrt(n) iterations each. What the gradient keeps is the state at the start
of every outer iteration; it computes one outer iteration again to get the states in it, and one
iteration again to get what is inside it. So it costs two more passes (Chen et al. 2016, "Training
deep nets with sublinear memory cost").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def scan(body: Callable[[Any, Any], tuple[Any, Any]], state: Any, inputs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan(body, state, inputs)`, the same result, for long loops that are differentiated.

    inputs: a pytree of arrays (n, ...), n > 0.
    """
    count = jax.tree.leaves(inputs)[0].shape[0]
    inner = max(1, math.isqrt(count))
    outer = -(-count // inner)
    shapes = jax.eval_shape(body, state, jax.tree.map(lambda x: x[0], inputs))[1] if count else None

    def skip(carry, _):
        return carry, jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype), shapes)

    def step(carry, numbered):
        number, values = numbered
        if outer * inner == count:
            return body(carry, values)
        return jax.lax.cond(number < count, body, skip, carry, values)

    # In a scan nothing can merge what is computed twice, so no barriers are needed.
    step = jax.checkpoint(step, prevent_cse=False)

    def block(carry, block_inputs):
        return jax.lax.scan(step, carry, block_inputs)

    def filled(x):  # to whole blocks; what is repeated is skipped
        index = jnp.minimum(jnp.arange(outer * inner), count - 1)
        return x[index].reshape(outer, inner, *x.shape[1:])

    block = jax.checkpoint(block, prevent_cse=False)
    numbers = jnp.arange(outer * inner).reshape(outer, inner)
    state, outputs = jax.lax.scan(block, state, (numbers, jax.tree.map(filled, inputs)))
    return state, jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[:count], outputs)
