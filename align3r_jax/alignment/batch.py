"""Clips of different lengths in one call: filled up to a common shape, stacked, aligned, split.

Shapes are rounded up to buckets, so that videos of similar length share one compilation: counts
of frames, pairs and flow fields become the next of 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24,
28, 32, 40, ... (m 2^k with m = 4 ... 7), at most a quarter more. What fills up is marked invalid
and changes no result.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from align3r_jax.alignment import padding, solve
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.structs import (
    AlignmentPriors,
    AlignmentVariables,
    Array,
    PairGraph,
    PairPredictions,
)


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


def pad_and_stack(
    clips: Sequence[padding.Clip], *, buckets: bool = True, multiple: int = 1
) -> Batch:
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
    shape = padding.common_shape(clips, bucket if buckets else int, multiple)
    padded = [padding.pad(clip, shape) for clip in clips]
    predictions, graph, priors = jax.tree.map(
        lambda *leaves: np.stack(leaves), *(clip[:3] for clip in padded)
    )
    return Batch(
        predictions,
        graph,
        priors,
        num_frames=tuple(graph.num_frames for _, graph, _ in clips),
        pair_rows=tuple(clip.rows for clip in padded),
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
        own = padding.without(jax.tree.map(lambda leaf, k=k: leaf[k], variables), frames, rows)
        own_trace = {name: values[k] for name, values in trace.items()}
        own_trace["dynamic_mask"] = own_trace["dynamic_mask"][:frames]
        own_trace["pair_losses"] = own_trace["pair_losses"][rows]
        results.append((own, own_trace))
    return results
