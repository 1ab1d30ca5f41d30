"""What training carries from step to step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.structs import Array
from align3r_jax.training.optimizer import Optimizer


@struct.dataclass
class TrainState:
    """step: () int32 updates done. params: all parameters. opt_state: of those that train.

    average: exponential moving average of the parameters, all of them: what to evaluate and to
    export.
    """

    step: Array
    params: Any
    average: Any
    opt_state: Any


def create(params: Any, optimizer: Optimizer) -> TrainState:
    """Returns the state before the first update."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        average=jax.tree.map(jnp.array, params),
        opt_state=optimizer.init(params),
    )
