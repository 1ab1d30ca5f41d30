"""Which observations and flow fields belong to which frame, as tables of fixed width."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.alignment.objective import Problem

Array = jax.Array


class Degrees(NamedTuple):
    """The most observations and the most flow fields that any frame has (shapes; static)."""

    observations: int
    fields: int


@struct.dataclass
class Slots:
    """What every frame has: observation (T, S) and field (T, R), rows of the flattened chunks.

    valid, field_valid: of the same shapes, False in slots that only fill up. complete: (), False if
    some frame has more than fit.
    """

    observation: Array
    valid: Array
    field: Array
    field_valid: Array
    complete: Array


def degrees(problem: Problem) -> Degrees:
    """Returns the degrees of a problem, or the largest of a stack of problems (host)."""
    frames = problem.dynamic.shape[-2]

    def largest(keys, usable):
        keys, usable = np.asarray(keys), np.asarray(usable)
        keys, usable = (a.reshape(-1, keys.shape[-2] * keys.shape[-1]) for a in (keys, usable))
        return max(
            np.bincount(k[u], minlength=frames).max() for k, u in zip(keys, usable, strict=True)
        )

    data, fields = problem.pointmaps, problem.flow
    observations = largest(data.frame, jnp.any(data.weight > 0, axis=-1))
    if fields is None:
        return Degrees(int(observations), 0)
    used = jnp.sum(fields.count, axis=-3) > 0
    return Degrees(int(observations), int(largest(fields.source, used)))


def bound(num_frames: int, pairs: Array, fields: Array | None) -> Degrees:
    """Returns degrees that suffice for a list of pairs and one of flow fields, (..., n, 2).

    Traced lists: as if no pair were listed twice; `arrange` reports it if one was.
    """

    def largest(keys, traced):
        if isinstance(keys, jax.core.Tracer):
            return min(traced, keys.shape[-1])
        keys = np.asarray(keys).reshape(-1, keys.shape[-1])
        return max(int(np.bincount(row, minlength=num_frames).max()) for row in keys)

    both = pairs.reshape(*pairs.shape[:-2], -1)
    observations = largest(both, 2 * (num_frames - 1))
    if fields is None:
        return Degrees(observations, 0)
    return Degrees(observations, largest(fields[..., 0], num_frames - 1))


def arrange(problem: Problem, size: Degrees) -> Slots:
    """Returns which observations and fields belong to which frame."""
    frames, data, fields = problem.dynamic.shape[0], problem.pointmaps, problem.flow
    usable = jnp.any(data.weight > 0, axis=-1).reshape(-1)
    observation, valid, complete = _by_key(
        data.frame.reshape(-1), usable, frames, max(size.observations, 1)
    )
    field, field_valid = jnp.zeros((frames, 0), jnp.int32), jnp.zeros((frames, 0), bool)
    if fields is not None:
        used = (jnp.sum(fields.count, axis=0) > 0).reshape(-1)
        field, field_valid, all_fields = _by_key(
            fields.source.reshape(-1), used, frames, size.fields
        )
        complete &= all_fields
    return Slots(observation, valid, field, field_valid, complete)


def _by_key(keys, usable, num_keys, width):
    """Returns (num_keys, width) positions of every key, which are filled, and whether all fit."""
    keys = jnp.where(usable, keys, num_keys)
    order = jnp.argsort(keys, stable=True)
    ordered = keys[order]
    rank = jnp.arange(len(keys)) - jnp.searchsorted(ordered, ordered)
    table = jnp.full((num_keys, width), -1, jnp.int32)
    table = table.at[ordered, rank].set(order.astype(jnp.int32), mode="drop")
    fits = jnp.all((rank < width) | (ordered == num_keys))
    return jnp.maximum(table, 0), table >= 0, fits
