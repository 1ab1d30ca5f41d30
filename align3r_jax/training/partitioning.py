"""Where the arrays of training live: one mesh over all devices of all processes.

Axes ("data", "fsdp"). A batch is split over both. Parameters, their average and the optimiser's
moments are split over "fsdp" alone, so `fsdp=1` is plain data parallelism; XLA gathers a layer's
parameters where they are used (ZeRO stage 3, Rajbhandari et al. 2020). The same code runs on one
device, on many, and in many processes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from align3r_jax.errors import UserError
from align3r_jax.weights import placement


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
    return placement.make_mesh(jax.devices()[: data * fsdp], fsdp)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns where a batch lives: its first axis split over all devices."""
    return placement.batch_sharding(mesh)


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

    As `placement.split_over`: parameters, averages and moments of one path have one shape, so they
    are split alike.
    """
    return placement.split_over(mesh, abstract_state)


def gathered(params: Any, shardings: Any, dtype: Any) -> Any:
    """Returns the parameters whole on every device, having crossed the wires in `dtype`.

    What is split (`shardings`: a tree like `params`) is rounded to `dtype`, gathered once, and
    float32 again; what is on every device stays as it is. Gradients are not rounded: that of a
    split array is summed in float32 and split as the array is. dtype: of 16 bits.
    """
    return jax.tree.map(lambda x, sharding: _gathered(x, sharding, dtype), params, shardings)


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


def _gathered(array: Any, sharding: NamedSharding, dtype: Any) -> Any:
    if sharding.is_fully_replicated or array.dtype != jnp.float32:
        return array
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    place = jax.lax.with_sharding_constraint

    @jax.custom_vjp
    def gather(x: Any) -> Any:
        # As bits, because compilers may widen numbers before they send them.
        bits = jax.lax.bitcast_convert_type(x.astype(dtype), jnp.uint16)
        bits = place(place(bits, sharding), everywhere)
        return jax.lax.bitcast_convert_type(bits, dtype).astype(x.dtype)

    gather.defvjp(lambda x: (gather(x), None), lambda _, grad: (place(grad, sharding),))
    return gather(array)
