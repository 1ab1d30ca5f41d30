"""Reads parameters straight into their type and their place on the devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from align3r_jax.errors import UserError
from align3r_jax.weights import folder as folder_lib

Params = Mapping[str, Any]
# One sharding for all parameters, or a function from the abstract tree to a tree of shardings.
Shardings = jax.sharding.Sharding | Callable[[Params], Any]
CHECKPOINTABLE = "params"  # the entry of the Orbax checkpoint
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
    return ocp.load_checkpointables(
        (path / folder_lib.CHECKPOINT).absolute(), {CHECKPOINTABLE: abstract}
    )[CHECKPOINTABLE]


def place(params: Params, sharding: Shardings | None, dtype: str | None) -> dict[str, Any]:
    """Returns NumPy parameters as JAX arrays of the wanted type and place (as `restore`)."""
    return jax.tree.map(
        lambda leaf, target: jax.device_put(cast(leaf, _target_dtype(leaf.dtype, dtype)), target),
        dict(params),
        _sharding_tree(params, sharding),
    )


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
