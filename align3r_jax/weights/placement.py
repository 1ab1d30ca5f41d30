"""Reads parameters straight into their type and their place on the devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from align3r_jax.errors import UserError
from align3r_jax.weights import folder as folder_lib

Params = Mapping[str, Any]
# One sharding for all parameters, or a function from the abstract tree to a tree of shardings.
Shardings = jax.sharding.Sharding | Callable[[Params], Any]
CHECKPOINTABLE = "params"  # the entry of the Orbax checkpoint
_MIN_SIZE = 2**14  # smaller arrays are on every device: gathering them costs more than their memory
_DTYPES = ("float32", "bfloat16", "float16")


def restore(
    path: Path, manifest: Mapping[str, Any], sharding: Shardings | None, dtype: str | None
) -> dict[str, Any]:
    """Returns the parameter tree of a folder whose `manifest` was checked.

    Orbax reads for each device only its part, and casts on the way. dtype: as `known_dtype` gives,
    None keeps the stored type (float16 becomes float32).
    """
    if (path / folder_lib.PACKED_FILE).is_file():
        with safetensors.safe_open(path / folder_lib.PACKED_FILE, framework="numpy") as file:
            flat = {name: file.get_tensor(name) for name in manifest["parameters"]}
        return place(traverse_util.unflatten_dict(flat, sep="/"), sharding, dtype)
    flat_abstract = {
        name: jax.ShapeDtypeStruct(shape, _target_dtype(stored, dtype))
        for name, (stored, shape, _) in manifest["parameters"].items()
    }
    abstract = traverse_util.unflatten_dict(flat_abstract, sep="/")
    # Orbax loads onto other devices than those of the writer only if every leaf names its own.
    abstract = jax.tree.map(
        lambda leaf, target: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=target),
        abstract,
        _sharding_tree(abstract, sharding),
    )
    with _each_process_alone():
        return ocp.load_checkpointables(
            (path / folder_lib.CHECKPOINT).absolute(), {CHECKPOINTABLE: abstract}
        )[CHECKPOINTABLE]


def _each_process_alone() -> contextlib.AbstractContextManager[Any]:
    """Orbax does not wait for other processes: they read when they need it, or never."""
    if jax.process_count() == 1:
        return contextlib.nullcontext()
    context = ocp.Context()
    options, mine = context.multiprocessing, jax.process_index()
    options.primary_host, options.active_processes = mine, {mine}
    options.barrier_sync_key_prefix = f"process_{mine}"
    return context


def place(params: Params, sharding: Shardings | None, dtype: str | None) -> dict[str, Any]:
    """Returns NumPy parameters as JAX arrays of the wanted type and place (as `restore`)."""
    return jax.tree.map(
        lambda leaf, target: jax.device_put(cast(leaf, _target_dtype(leaf.dtype, dtype)), target),
        dict(params),
        _sharding_tree(params, sharding),
    )


def make_mesh(devices: Sequence[jax.Device], fsdp: int = 1) -> Mesh:
    """Returns a mesh of these devices with the axes ("data", "fsdp"), `fsdp` of them in a row."""
    shape, types = (len(devices) // fsdp, fsdp), (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=types, devices=list(devices))


def split_over(mesh: Mesh, abstract: Any) -> Any:
    """Returns a tree of shardings for a tree of arrays or shapes.

    An array of at least 2^14 numbers is split over "fsdp" along its longest axis that divides; all
    others are on every device. XLA gathers a layer's parameters where they are used.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf, mesh)), abstract)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns where a batch lives: its first axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def mesh_of(params: Params) -> Mesh | None:
    """Returns the mesh that parameters lie on; None if they are on one device, or on the host."""
    for leaf in jax.tree.leaves(params):
        sharding = getattr(leaf, "sharding", None)
        mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
        if isinstance(mesh, Mesh) and mesh.size > 1:
            return mesh
    return None


def parts_that_fit(params: Params, devices: Sequence[jax.Device], share: float = 0.5) -> int:
    """Returns over how many devices parameters must be split to take a share of their memory.

    params: arrays or shapes. A divisor of the number of devices; all of them if nothing fits; 1
    where devices do not tell their memory (CPU).
    """
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    counts = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
    return next((n for n in counts if not memory or size / n <= share * memory), counts[-1])


def _spec(leaf: Any, mesh: Mesh) -> PartitionSpec:
    parts = mesh.shape["fsdp"]
    if parts == 1 or leaf.size < _MIN_SIZE:
        return PartitionSpec()
    for axis in sorted(range(leaf.ndim), key=lambda axis: -leaf.shape[axis]):
        if leaf.shape[axis] % parts == 0:
            return PartitionSpec(*("fsdp" if k == axis else None for k in range(leaf.ndim)))
    return PartitionSpec()


def _sharding_tree(abstract: Params, sharding: Shardings | None) -> Any:
    if sharding is None:
        sharding = jnp.zeros(()).sharding  # wherever new arrays go
    if isinstance(sharding, jax.sharding.Sharding):
        return jax.tree.map(lambda _: sharding, dict(abstract))
    return sharding(abstract)


def known_dtype(dtype: Any) -> str:
    """Returns the name of a floating type that parameters may have; UserError for others."""
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in _DTYPES:
        raise UserError(f"dtype={name!r} is not supported; expected one of {', '.join(_DTYPES)}.")
    return name


def _target_dtype(stored: Any, wanted: str | None) -> jnp.dtype:
    stored = jnp.dtype(stored)
    if not jnp.issubdtype(stored, jnp.floating):
        return stored
    if wanted is None:
        return jnp.dtype("float32") if stored == jnp.float16 else stored
    return jnp.dtype(wanted)


def cast(array: np.ndarray, dtype: Any) -> np.ndarray:
    """Returns `array` in `dtype`, itself if it has it."""
    dtype = jnp.dtype(dtype)
    return np.asarray(array) if array.dtype == dtype else np.asarray(array).astype(dtype)
