"""A flow network and its parameters from a configuration, whichever of the two it is."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from align3r_jax.networks import initial
from align3r_jax.networks.raft.config import AnyFlowConfig, RaftConfig
from align3r_jax.networks.raft.network import FlowNetwork
from align3r_jax.networks.raft.raft import Raft
from align3r_jax.networks.raft.sea_raft import SeaRaft

_STATISTICS = ("mean", "var")  # of batch norms: constants of a trained network
_INITIAL = (
    (r".*norm\d?/(scale|var)", "1"),
    (r".*norm\d?/(bias|mean)", "0"),
    (r".*/gamma", "1e-6"),
    (r".*", "fan_in"),
)


def make(config: AnyFlowConfig, **settings: Any) -> FlowNetwork:
    """Returns the network of a configuration; settings as in `network.FlowNetwork`."""
    if isinstance(config, RaftConfig):
        return Raft(config, **settings)
    return SeaRaft(config, **settings)


@functools.lru_cache(maxsize=16)
def _flat_shapes(config: AnyFlowConfig) -> dict[str, jax.ShapeDtypeStruct]:
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    init = functools.partial(make(config).init, iterations=1)
    params = jax.eval_shape(init, jax.random.key(0), image, image)["params"]
    return traverse_util.flatten_dict(params, sep="/")


def abstract_params(config: AnyFlowConfig) -> dict[str, Any]:
    """The parameter tree as shapes and types, without memory.

    The running statistics of batch norms are leaves `mean` and `var` of it.
    """
    return traverse_util.unflatten_dict(_flat_shapes(config), sep="/")


def parameter_count(config: AnyFlowConfig) -> int:
    """How many numbers a training would change: all but the statistics of batch norms."""
    return sum(
        leaf.size
        for path, leaf in _flat_shapes(config).items()
        if path.split("/")[-1] not in _STATISTICS
    )


def init_params(config: AnyFlowConfig, key: jax.Array) -> dict[str, Any]:
    """Parameters to train from scratch: PyTorch's defaults, refinement almost switched off."""
    return initial.draw(abstract_params(config), _INITIAL, key)
