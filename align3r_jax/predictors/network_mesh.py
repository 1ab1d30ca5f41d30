"""The programs of the pairwise network over a mesh: batches divided, parameters gathered in use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from align3r_jax.weights import placement


@functools.lru_cache(maxsize=16)  # one function for all videos, so that jax.jit knows it again
def over_mesh(program: Callable[..., Any], mesh: Mesh, whole: bool) -> Callable[..., Any]:
    """Returns f(params, *batches), `program` with its batches divided over all devices of a mesh.

    params lie as `placement.split_over` says; a batch is a multiple of the devices. whole: the
    result ends up on every device, else it stays divided.
    """
    divided = placement.batch_sharding(mesh)
    result = everywhere(mesh) if whole else divided

    def divided_program(params: Any, *batches: Any) -> Any:
        batches = jax.lax.with_sharding_constraint(batches, divided)
        return jax.lax.with_sharding_constraint(program(params, *batches), result)

    return divided_program


def everywhere(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device of a mesh holds."""
    return NamedSharding(mesh, PartitionSpec())
