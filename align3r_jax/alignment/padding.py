"""Clips filled up to a common shape: what is added is marked invalid and changes no result.

The only place that knows what fills up: `batch` stacks whole inputs with it, `clips` the tasks of
the host's driver. NumPy arrays stay NumPy, arrays on a device stay there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.alignment import variables as variables_lib
from align3r_jax.errors import UserError
from align3r_jax.structs import (
    AlignmentPriors,
    AlignmentVariables,
    Array,
    OpticalFlow,
    PairGraph,
    PairPredictions,
)

Clip = tuple[PairPredictions, PairGraph, AlignmentPriors]
NOWHERE = -1  # the frame of pairs and fields that only fill up

_FRAME_PRIORS = ("dynamic_mask", "ignore", "depth")
# What known quantities of frames that only fill up are.
_KNOWN_FILL = {
    "world_from_cam": np.eye(4), "focal": 1, "principal_point": 0, "depth": 1,
    "pose_mask": False, "intrinsics_mask": False,
    "rotation_deviation": 1, "translation_deviation": 1, "focal_deviation": 1,
}  # fmt: skip
_IDENTITY = np.array([0, 0, 0, 1])


class Shape(NamedTuple):
    """What clips are filled up to.

    part: pairs in each of the `halves` (2: every pair, then every pair reversed) of a graph.
    fields: of the flow, unless every pair has two of its own, in the graph's order (own_fields).
    """

    frames: int
    part: int
    halves: int
    fields: int
    own_fields: bool


class Padded(NamedTuple):
    """A clip in its new shape. rows: (P,), where its own pairs stand."""

    predictions: PairPredictions
    graph: PairGraph
    priors: AlignmentPriors
    rows: np.ndarray


def common_shape(
    clips: Sequence[Clip], round_up: Callable[[int], int] = int, multiple: int = 1
) -> Shape:
    """Returns the `Shape` that holds all clips.

    round_up: of the counts of frames, pairs of a half and fields. multiple: of what the counts of
    pairs and fields shall be. Raises UserError for clips that cannot share a shape.
    """
    _check_alike(clips)

    def size(counts, multiple=1):
        return -(-round_up(max(counts)) // multiple) * multiple

    halves = 2 if all(graph.symmetric for _, graph, _ in clips) else 1
    flows = [priors.flow for _, _, priors in clips if priors.flow is not None]
    own_fields = _have_own_fields(clips)
    return Shape(
        frames=size([graph.num_frames for _, graph, _ in clips]),
        part=size([graph.num_pairs // halves for _, graph, _ in clips], multiple),
        halves=halves,
        fields=size([len(f.pairs) for f in flows], multiple) if flows and not own_fields else 0,
        own_fields=own_fields,
    )


def _check_alike(clips: Sequence[Clip]) -> None:
    sizes = {tuple(predictions.confidence1.shape[1:]) for predictions, _, _ in clips}
    if len(sizes) > 1:
        raise UserError(
            f"Clips of one batch must have one image size, got (height, width) {sorted(sizes)}; "
            "stack each size for itself."
        )
    kinds = {jax.tree.structure(dataclasses.replace(p, frame_valid=None, pair_valid=None))
             for _, _, p in clips}  # fmt: skip
    if len(kinds) > 1:
        raise UserError(
            "Clips of one batch must have the same kinds of priors (flow, known cameras, masks, "
            "start): give each to all clips or to none."
        )


def _have_own_fields(clips: Sequence[Clip]) -> bool:
    """Whether every pair of every clip has two fields of its own, in the order of the graph."""

    def own(graph: PairGraph, flow: OpticalFlow | None) -> bool:
        directed = np.concatenate([graph.pairs, np.asarray(graph.pairs)[:, ::-1]])
        return flow is not None and np.array_equal(flow.pairs, directed)

    kept = [own(graph, priors.flow) for _, graph, priors in clips]
    for is_own, (_, _, priors) in zip(kept, clips, strict=True):
        repeated = priors.flow is not None and len(np.unique(priors.flow.pairs, axis=0)) < len(
            priors.flow.pairs
        )
        if repeated and is_own and not all(kept):
            raise UserError(
                "Some clips have two flow fields for every pair, others one per direction; give "
                "all clips the same."
            )
    return all(kept)


def fill(values: Array, count: int, value: Any = 0) -> Array:
    """Returns the array with `count` more entries of `value` along its first axis."""
    if count == 0:
        return values
    library: Any = jnp if isinstance(values, jax.Array) else np
    values = library.asarray(values)
    entry = np.asarray(value, values.dtype)
    return library.concatenate([values, np.broadcast_to(entry, (count, *values.shape[1:]))])


def pad(clip: Clip, shape: Shape) -> Padded:
    """Returns the clip in a shape of `common_shape`."""
    predictions, graph, priors = clip
    own = graph.num_pairs // shape.halves
    more_frames, more_pairs = shape.frames - graph.num_frames, shape.part - own
    rows = (np.arange(shape.halves)[:, None] * shape.part + np.arange(own)).reshape(-1)

    def pad_pairs(values, value=0):
        if more_pairs == 0:
            return values
        library: Any = jnp if isinstance(values, jax.Array) else np
        halves = [values[k * own : (k + 1) * own] for k in range(shape.halves)]
        return library.concatenate([fill(half, more_pairs, value) for half in halves])

    pairs = pad_pairs(np.asarray(graph.pairs), NOWHERE).astype(np.int32)

    def valid(given, count):
        return np.ones(count, bool) if given is None else np.asarray(given, bool)

    return Padded(
        jax.tree.map(pad_pairs, predictions),
        PairGraph(pairs, shape.frames, symmetric=shape.halves == 2, name="batch"),
        AlignmentPriors(
            flow=_pad_flow(priors.flow, pairs, graph.num_pairs, shape, pad_pairs),
            known=_pad_known(priors.known, more_frames),
            start=_pad_start(priors.start, more_frames, pad_pairs),
            frame_valid=fill(valid(priors.frame_valid, graph.num_frames), more_frames, False),
            pair_valid=pad_pairs(valid(priors.pair_valid, graph.num_pairs), False),
            **{
                name: None if (value := getattr(priors, name)) is None else fill(value, more_frames)
                for name in _FRAME_PRIORS
            },
        ),
        rows,
    )


def _pad_flow(flow, pairs, own_pairs, shape, pad_pairs) -> OpticalFlow | None:
    if flow is None:
        return None
    if not shape.own_fields:
        more = shape.fields - len(flow.pairs)
        listed = fill(np.asarray(flow.pairs), more, NOWHERE).astype(np.int32)
        return OpticalFlow(listed, fill(flow.flow, more), fill(flow.weight, more), name="batch")

    def both(values):
        library: Any = jnp if isinstance(values, jax.Array) else np
        return library.concatenate([pad_pairs(values[:own_pairs]), pad_pairs(values[own_pairs:])])

    listed = np.concatenate([pairs, pairs[:, ::-1]])
    return OpticalFlow(listed, both(flow.flow), both(flow.weight), name="batch")


def _pad_known(known: variables_lib.Known | None, more: int) -> variables_lib.Known | None:
    if known is None:
        return None
    changes: dict[str, Any] = {
        name: fill(value, more, entry)
        for name, entry in _KNOWN_FILL.items()
        if (value := getattr(known, name)) is not None
    }
    return dataclasses.replace(known, **changes)


def _pad_start(start: AlignmentVariables | None, more: int, pad_pairs) -> AlignmentVariables | None:
    if start is None:
        return None
    changes = {}
    for field in dataclasses.fields(start):
        values, name = getattr(start, field.name), field.name
        entry = _IDENTITY if name.endswith("quaternion") else 0
        if name.startswith("pair"):
            changes[name] = pad_pairs(values, entry)
        elif name == "log_focal" and len(values) == 1:  # shared
            changes[name] = values
        else:
            changes[name] = fill(values, more, entry)
    return AlignmentVariables(**changes)


def without(variables: AlignmentVariables, num_frames: int, rows: np.ndarray) -> AlignmentVariables:
    """Returns the variables of a clip without what fills it up. rows: of `Padded`."""
    changes = {}
    for field in dataclasses.fields(variables):
        values = getattr(variables, field.name)
        is_pair = field.name.startswith("pair")
        changes[field.name] = values[rows] if is_pair else values[: min(num_frames, len(values))]
    return AlignmentVariables(**changes)
