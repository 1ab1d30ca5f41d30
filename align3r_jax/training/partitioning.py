"""Where the arrays of training live: one mesh over all devices of all processes.

Axes ("data", "fsdp"). A batch is split over both. Parameters, their average and the optimiser's
moments are split over "fsdp" alone, so `fsdp=1` is plain data parallelism; XLA gathers a layer's
parameters where they are used (ZeRO stage 3, Rajbhandari et al. 2020). The same code runs on one
device, on many, and in many processes.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from align3r_jax.errors import UserError

_MIN_SIZE = 2**14  # smaller arrays are on every device: gathering them costs more than their memory


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """Returns a mesh of `data` x `fsdp` devices with the axes ("data", "fsdp").

    data=-1: as many as there are. Fewer devices than there are is possible in one process only.
    Raises UserError if there are not enough, or they do not divide.
    """
    count = jax.device_count()
    if fsdp < 1 or (data < 1 and data != -1):
        raise UserError(
            f"A mesh of data={data}, fsdp={fsdp}: expected positive numbers, or data=-1 for all "
            "devices."
        )
    if data == -1 and count % fsdp:
        raise UserError(
            f"{count} devices do not divide by fsdp={fsdp}; choose one of "
            f"{[n for n in range(1, count + 1) if count % n == 0]}."
        )
    data = count // fsdp if data == -1 else data
    if data * fsdp > count or (data * fsdp < count and jax.process_count() > 1):
        raise UserError(
            f"A mesh of data={data} x fsdp={fsdp} needs {data * fsdp} devices; there are {count}. "
            "Set data=-1 to use all."
        )
    devices = jax.devices()[: data * fsdp]
    types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=types, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns where a batch lives: its first axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def check_batch_size(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises UserError unless each of `accumulate` parts of a batch divides over the mesh."""
    unit = mesh.size * accumulate
    if batch_size < 1 or batch_size % unit:
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise UserError(
            f"The batch of {batch_size} does not divide over {mesh.size} devices{parts}; "
            f"set config.batch_size to a multiple of {unit}."
        )


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """Returns a tree of shardings for a tree of arrays or shapes.

    An array of at least 2^14 numbers is split over "fsdp" along its longest axis that divides;
    all others are on every device. Parameters, averages and moments of one path have one shape,
    so they are split alike.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf, mesh)), abstract_state)


def global_batch(mesh: Mesh, local: dict[str, Any]) -> dict[str, jax.Array]:
    """Returns the batch of all processes, given the rows of this one (in process order).

    Arrays that are on devices already are only moved where they belong. Raises UserError if the
    rows do not divide over this process's devices.
    """
    sharding = batch_sharding(mesh)
    here = len(sharding.addressable_devices)
    for name, rows in local.items():
        if not isinstance(rows, jax.Array) and len(rows) % here:
            raise UserError(
                f"'{name}' has {len(rows)} rows in this process, which do not divide over its "
                f"{here} devices; set config.batch_size to a multiple of {mesh.size}."
            )
    return {
        name: jax.device_put(rows, sharding)
        if isinstance(rows, jax.Array)
        else jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for name, rows in local.items()
    }


def _spec(leaf: Any, mesh: Mesh) -> PartitionSpec:
    parts = mesh.shape["fsdp"]
    if parts == 1 or leaf.size < _MIN_SIZE:
        return PartitionSpec()
    for axis in sorted(range(leaf.ndim), key=lambda axis: -leaf.shape[axis]):
        if leaf.shape[axis] % parts == 0:
            return PartitionSpec(*("fsdp" if k == axis else None for k in range(leaf.ndim)))
    return PartitionSpec()
