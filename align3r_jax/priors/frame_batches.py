"""What monocular networks share: frames checked, parameters placed, batches computed one ahead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.structs import Array


def checked(images: Array) -> np.ndarray:
    """Returns images (T, H, W, 3) uint8 RGB on the host; UserError if they are anything else."""
    images = np.asarray(images)
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        raise UserError("The images hold NaN or infinite values; expected uint8 RGB.")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise UserError(
            f"Got images of shape {images.shape} and type {images.dtype}; expected (T, H, W, 3) "
            "uint8 RGB, at least one."
        )
    return images


def placed(params: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """Returns the parameters on the default device, or whole on every device of the sharding.

    sharding: of a batch (B, ...) over devices. Raises UserError if it is no NamedSharding.
    """
    if sharding is None:
        return jax.tree.map(jnp.asarray, params)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        raise UserError(f"sharding={sharding}: expected a NamedSharding of the batch axis.")
    everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return jax.device_put(params, everywhere)


def one_ahead(running: Iterator[Any]) -> Iterator[Any]:
    """Yields the same items, each when the next has been started: devices do not wait for us."""
    pending = next(running)
    for following in running:
        yield pending
        pending = following
    yield pending


def refuse_non_finite(maps: np.ndarray, name: str) -> None:
    """Raises UserError if depth (T, H, W) that the network `name` gave is not finite."""
    broken = ~np.isfinite(maps).all(axis=(1, 2))
    if broken.any():
        raise UserError(
            f"{name} gave depth that is not finite for {int(broken.sum())} of {len(maps)} frames, "
            f"the first of them number {int(np.argmax(broken))}: the weights are damaged, or "
            "their numbers too large for the compute type; try float32."
        )
