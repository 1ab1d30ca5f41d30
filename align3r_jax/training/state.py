"""What training carries from step to step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from align3r_jax.structs import Array


@struct.dataclass
class TrainState:
    """step: () int32 updates done. params; average: exponential moving average; opt_state."""

    step: Array
    params: Any
    average: Any
    opt_state: Any


def create(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first update."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        average=jax.tree.map(jnp.array, params),
        opt_state=optimizer.init(params),
    )
