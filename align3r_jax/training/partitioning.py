"""Where arrays of training live: a data-parallel mesh over all devices of all processes."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from align3r_jax.errors import UserError


def data_mesh(num_devices: int | None = None) -> jax.sharding.Mesh:
    """Returns a mesh with the one axis "data" over `num_devices` (all by default)."""
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def shardings(mesh: jax.sharding.Mesh, batch_size: int) -> tuple[NamedSharding, NamedSharding]:
    """Returns (replicated, split over "data"). UserError if the batch does not divide evenly."""
    count = mesh.shape["data"]
    if batch_size % count:
        raise UserError(
            f"The batch of {batch_size} does not divide over {count} devices; "
            f"set config.batch_size to a multiple of {count}."
        )
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
