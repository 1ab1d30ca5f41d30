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
    outer, rest = divmod(count, inner)
    # In a scan nothing can merge what is computed twice, so no barriers are needed.
    step = jax.checkpoint(body, prevent_cse=False)

    def block(carry, block_inputs):
        return jax.lax.scan(step, carry, block_inputs)

    block = jax.checkpoint(block, prevent_cse=False)
    whole = jax.tree.map(lambda x: x[: outer * inner].reshape(outer, inner, *x.shape[1:]), inputs)
    state, outputs = jax.lax.scan(block, state, whole)
    outputs = jax.tree.map(lambda y: y.reshape(outer * inner, *y.shape[2:]), outputs)
    if rest:
        state, last = block(state, jax.tree.map(lambda x: x[outer * inner :], inputs))
        outputs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outputs, last)
    return state, outputs
