"""Clips of different lengths in one call: filled up to a common shape, stacked, aligned, split.

Shapes are rounded up to buckets, so that videos of similar length share one compilation: counts
of frames, pairs and flow fields become the next of 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24,
28, 32, 40, ... (m 2^k with m = 4 ... 7), at most a quarter more. What fills up is marked invalid
and changes no result.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from align3r_jax.alignment import solve
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.config import AlignmentConfig
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


class Batch(NamedTuple):
    """K clips of one shape: every array has a leading axis K.

    num_frames, num_pairs: of every clip, before it was filled up. pair_rows: where the pairs of
    every clip stand, (P_k,) each.
    """

    predictions: PairPredictions
    graph: PairGraph
    priors: AlignmentPriors
    num_frames: tuple[int, ...]
    pair_rows: tuple[np.ndarray, ...]


def bucket(count: int) -> int:
    """Returns the smallest m 2^k >= count with m = 4 ... 7 (or count itself below 4)."""
    if count <= 4:
        return count
    unit = 2 ** ((count - 1).bit_length() - 3)
    return -(-count // unit) * unit


def pad_and_stack(clips: Sequence[Clip], *, buckets: bool = True, multiple: int = 1) -> Batch:
    """Returns the clips as one batch; arrays on the host (NumPy).

    Args:
        clips: (predictions, graph, priors) each, of one image size and with the same kinds of
            priors.
        buckets: round the common shape up to buckets; False: the longest clip's.
        multiple: of what the counts of pairs and fields shall be (devices that share them).

    Raises:
        UserError: clips that cannot share a shape.
    """
    if not clips:
        raise UserError("No clips to stack; give at least one.")
    _check_alike(clips)

    def size(counts, multiple=1):
        largest = bucket(max(counts)) if buckets else max(counts)
        return -(-largest // multiple) * multiple

    frames = size([graph.num_frames for _, graph, _ in clips])
    symmetric = all(graph.symmetric for _, graph, _ in clips)
    halves = 2 if symmetric else 1
    part = size([graph.num_pairs // halves for _, graph, _ in clips], multiple)
    flows = [priors.flow for _, _, priors in clips if priors.flow is not None]
    fields = 0
    own_fields = _have_own_fields(clips)
    if flows and not own_fields:
        fields = size([len(flow.pairs) for flow in flows], multiple)
    padded = [_pad(clip, frames, part, halves, fields, own_fields) for clip in clips]
    predictions, graph, priors = jax.tree.map(
        lambda *leaves: np.stack(leaves), *(clip[:3] for clip in padded)
    )
    return Batch(
        predictions,
        graph,
        priors,
        num_frames=tuple(graph.num_frames for _, graph, _ in clips),
        pair_rows=tuple(clip[3] for clip in padded),
    )


@functools.partial(jax.jit, static_argnames=("config", "degrees"))
def _align(predictions, graph, priors, config, degrees):
    run = functools.partial(solve.run, config=config, degrees=degrees)
    return jax.vmap(run)(predictions, graph, priors)


def align(
    batch: Batch, config: AlignmentConfig = AlignmentConfig()
) -> tuple[AlignmentVariables, dict[str, Array]]:
    """`solve.align` of all clips in one compiled call; every result has a leading axis K."""
    degrees = solve.degrees(batch.graph, batch.priors, config)
    return _align(batch.predictions, batch.graph, batch.priors, config, degrees)


def split(
    batch: Batch, variables: AlignmentVariables, trace: dict[str, Array]
) -> list[tuple[AlignmentVariables, dict[str, Array]]]:
    """Returns the results of every clip without what filled it up, on the host."""
    variables, trace = jax.device_get((variables, trace))
    results = []
    for k, (frames, rows) in enumerate(zip(batch.num_frames, batch.pair_rows, strict=True)):

        def cut(field, values, frames=frames, rows=rows):
            if field.startswith("pair"):
                return values[rows]
            return values[: min(frames, len(values))]  # a shared focal is one

        own = AlignmentVariables(
            **{
                field.name: cut(field.name, getattr(variables, field.name)[k])
                for field in dataclasses.fields(variables)
            }
        )
        own_trace = {name: values[k] for name, values in trace.items()}
        own_trace["dynamic_mask"] = own_trace["dynamic_mask"][:frames]
        own_trace["pair_losses"] = own_trace["pair_losses"][rows]
        results.append((own, own_trace))
    return results


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


def _fill(values: Array, count: int, value: object = 0) -> np.ndarray:
    """Returns the array with `count` more entries along its first axis."""
    values = np.asarray(values)
    extra = np.broadcast_to(np.asarray(value, values.dtype), (count, *values.shape[1:]))
    return np.concatenate([values, extra])


def _pad(clip: Clip, frames: int, part: int, halves: int, fields: int, own_fields: bool) -> tuple:
    """The clip with `frames` frames and `halves` times `part` pairs, and the rows of its own."""
    predictions, graph, priors = clip
    own = graph.num_pairs // halves
    more = frames - graph.num_frames
    rows = (np.arange(halves)[:, None] * part + np.arange(own)).reshape(-1)

    def pad_pairs(values, value=0):
        values = np.asarray(values)
        blocks = values.reshape(halves, own, *values.shape[1:])
        return np.concatenate([_fill(block, part - own, value) for block in blocks])

    pairs = pad_pairs(graph.pairs, NOWHERE).astype(np.int32)
    flow = priors.flow
    if flow is not None and own_fields:
        count = graph.num_pairs
        values, weight = (
            np.concatenate([pad_pairs(array[:count]), pad_pairs(array[count:])])
            for array in (np.asarray(flow.flow), np.asarray(flow.weight))
        )
        flow = OpticalFlow(np.concatenate([pairs, pairs[:, ::-1]]), values, weight, name="batch")
    elif flow is not None:
        missing = fields - len(flow.pairs)
        flow = OpticalFlow(
            _fill(flow.pairs, missing, NOWHERE).astype(np.int32),
            _fill(flow.flow, missing),
            _fill(flow.weight, missing),
            name="batch",
        )
    changes = {
        name: None if (value := getattr(priors, name)) is None else _fill(value, more)
        for name in _FRAME_PRIORS
    }
    frame_valid = np.ones(graph.num_frames, bool) if priors.frame_valid is None else (
        np.asarray(priors.frame_valid, bool))  # fmt: skip
    pair_valid = np.ones(graph.num_pairs, bool) if priors.pair_valid is None else (
        np.asarray(priors.pair_valid, bool))  # fmt: skip
    return (
        jax.tree.map(pad_pairs, predictions),
        PairGraph(pairs, frames, symmetric=halves == 2, name="batch"),
        AlignmentPriors(
            flow=flow,
            known=_pad_known(priors.known, more),
            start=_pad_start(priors.start, more, pad_pairs),
            frame_valid=_fill(frame_valid, more),
            pair_valid=pad_pairs(pair_valid),
            **changes,
        ),
        rows,
    )


def _pad_known(known: variables_lib.Known | None, more: int) -> variables_lib.Known | None:
    if known is None:
        return None
    changes: dict[str, Any] = {
        name: _fill(value, more, fill)
        for name, fill in _KNOWN_FILL.items()
        if (value := getattr(known, name)) is not None
    }
    return dataclasses.replace(known, **changes)


def _pad_start(start: AlignmentVariables | None, more: int, pad_pairs) -> AlignmentVariables | None:
    if start is None:
        return None
    identity = np.array([0, 0, 0, 1])
    changes = {}
    for field in dataclasses.fields(start):
        values, name = np.asarray(getattr(start, field.name)), field.name
        fill = identity if name.endswith("quaternion") else 0
        if name.startswith("pair"):
            changes[name] = pad_pairs(values, fill)
        elif name == "log_focal" and len(values) == 1:
            changes[name] = values
        else:
            changes[name] = _fill(values, more, fill)
    return AlignmentVariables(**changes)
