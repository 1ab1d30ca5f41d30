"""Which observations and flow fields belong to which frame, as tables of fixed width.

Over several devices, the pairs come spread over them and are handed over so that every device
holds all that is said of some frames (`divide`).
"""

from __future__ import annotations

import dataclasses
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

    pair (T, S), target (T, R): the pair that observes, the frame that a field leads to. valid,
    field_valid: False in slots that only fill up. weight: (), the sum of all weights. complete: (),
    False if some frame has more than fit. Over several devices all but the rows is the same on
    every device, and rows are those of this device's frames.
    """

    observation: Array
    pair: Array
    valid: Array
    field: Array
    target: Array
    field_valid: Array
    weight: Array
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
    target = field if fields is None else fields.target.reshape(-1)[field]
    return Slots(
        observation=observation,
        pair=data.row.reshape(-1)[observation] % data.num_pairs,
        valid=valid,
        field=field,
        target=target,
        field_valid=field_valid,
        weight=jnp.sum(data.weight),
        complete=complete,
    )


def own_frames(problem: Problem) -> Array:
    """Returns the frames that this device of `problem.axis` treats; beyond the last, none.

    k, k + D, k + 2 D, ... on device k of D: what only fills up stands at the end.
    """
    frames = problem.dynamic.shape[0]
    if problem.axis is None:
        return jnp.arange(frames)
    devices = jax.lax.axis_size(problem.axis)
    return jax.lax.axis_index(problem.axis) + devices * jnp.arange(-(-frames // devices))


def divide(problem: Problem, size: Degrees) -> tuple[Problem, Slots]:
    """Returns the problem with its chunks by frames, those of this device, and their slots.

    Without an axis the problem as it is. The chunks of all devices are gathered once, so the way
    for a lattice, not for all pixels.
    """
    if problem.axis is None:
        return problem, arrange(problem, size)
    whole = _gather(problem)
    slots = arrange(whole, size)
    own = own_frames(problem)
    data, fields = whole.pointmaps, whole.flow

    def take(table, valid, values):
        """Entries of (1, K, ...) at the slots of the own frames, (J, width, ...), and rows."""
        rows, used = (jnp.take(part, own, axis=0, mode="fill", fill_value=0)
                      for part in (table, valid))  # fmt: skip
        order = jnp.arange(rows.size, dtype=jnp.int32).reshape(rows.shape)
        return [value[0][rows] for value in values], used, table.at[own].set(order, mode="drop")

    (points, weight, frame, row), used, observation = take(
        slots.observation, slots.valid, (data.points, data.weight, data.frame, data.row)
    )
    data = dataclasses.replace(
        data, points=points, weight=jnp.where(used[..., None], weight, 0), frame=frame, row=row
    )
    field = slots.field
    if fields is not None:
        count = jnp.moveaxis(fields.count, 0, -1)
        (values, trust, source, target, count), used, field = take(
            field, slots.field_valid,
            (fields.flow, fields.trust, fields.source, fields.target, count),
        )  # fmt: skip
        count = jnp.moveaxis(jnp.where(used[..., None], count, 0), -1, 0)
        fields = dataclasses.replace(
            fields, flow=values, trust=trust, source=source, target=target, count=count
        )
    divided = dataclasses.replace(problem, pointmaps=data, flow=fields)
    return divided, dataclasses.replace(slots, observation=observation, field=field)


def _gather(problem: Problem) -> Problem:
    """The problem with the chunks of all devices, as one chunk; one exchange for each type."""
    data, fields = problem.pointmaps, problem.flow
    chunks = [data.points, data.weight, data.frame, data.row]
    if fields is not None:
        count = jnp.moveaxis(fields.count, 0, -1)
        chunks += [fields.flow, fields.trust, fields.source, fields.target, count]
    rows = [chunk.reshape(-1, *chunk.shape[2:]) for chunk in chunks]
    found: list[Array] = list(rows)
    for dtype in dict.fromkeys(part.dtype for part in rows):  # in one order everywhere
        chosen = [k for k, part in enumerate(rows) if part.dtype == dtype]
        vector = jnp.concatenate([rows[k].reshape(-1) for k in chosen])
        gathered = jax.lax.all_gather(vector, problem.axis)
        ends = np.cumsum([rows[k].size for k in chosen])[:-1]
        for k, part in zip(chosen, jnp.split(gathered, ends, axis=1), strict=True):
            found[k] = part.reshape(1, -1, *rows[k].shape[1:])
    points, weight, frame, row, *rest = found
    data = dataclasses.replace(data, points=points, weight=weight, frame=frame, row=row)
    if fields is not None:
        values, trust, source, target, count = rest
        count = jnp.moveaxis(count, -1, 0)
        fields = dataclasses.replace(
            fields, flow=values, trust=trust, source=source, target=target, count=count
        )
    return dataclasses.replace(problem, pointmaps=data, flow=fields)


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
