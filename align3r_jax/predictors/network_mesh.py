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
    result ends up on every device, else it stays divided. Every device runs the program on its part
    of the batch, so that split parameters, each gathered once, and a whole result are all that is
    exchanged: left to itself the compiler also exchanges activations of the dense heads.
    """
    divided = placement.batch_sharding(mesh).spec

    def divided_program(params: Any, *batches: Any) -> Any:
        specs = jax.tree.map(lambda place: place.spec, placement.split_over(mesh, params))

        def local(params: Any, *batches: Any) -> Any:
            return program(jax.tree.map(_gathered, params, specs), *batches)

        found = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(specs, *[divided] * len(batches)),
            out_specs=divided,
            check_vma=False,
        )(params, *batches)
        return jax.lax.with_sharding_constraint(found, everywhere(mesh)) if whole else found

    return divided_program


def everywhere(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device of a mesh holds."""
    return NamedSharding(mesh, PartitionSpec())


def _gathered(part: jax.Array, spec: PartitionSpec) -> jax.Array:
    for axis, name in enumerate(spec):
        if name is not None:
            return jax.lax.all_gather(part, name, axis=axis, tiled=True)
    return part
