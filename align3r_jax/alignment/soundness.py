"""Whether pair predictions can carry a scene at all, and in which unit they are."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax import pairing
from align3r_jax.errors import UserError
from align3r_jax.structs import Array, PairGraph, PairPredictions

# Losses, codings and rates are made for depths near 1; inside these bounds nothing is changed.
_USUAL_UNIT = (0.03, 30.0)
_SAMPLES = 1024  # pixels of a map, evenly spread, that the unit is found from
_LEAST_KNOWN = 0.01  # of the pixels of a side; below, the pair says nothing


def checked(predictions: PairPredictions, graph: PairGraph) -> PairPredictions:
    """Returns the predictions, in another unit if theirs is far from the usual.

    Raises UserError if the graph leaves frames unconnected, names frames that do not exist, or if
    no pair knows a single point.
    """
    pairs = np.asarray(graph.pairs)
    if pairs.size and (pairs.min() < 0 or pairs.max() >= graph.num_frames):
        raise UserError(
            f"The pair graph '{graph.name}' names frame {pairs.max()}, but there are "
            f"{graph.num_frames} frames, numbered from 0."
        )
    if not pairing.is_connected(pairs, graph.num_frames):
        raise UserError(
            f"The pair graph '{graph.name}' does not connect all {graph.num_frames} frames "
            f"({len(pairs)} pairs), so they cannot be put into one scene. Add pairs, or align the "
            "parts one by one."
        )
    if not _known_shares(predictions).any():
        raise UserError(
            f"None of the {graph.num_pairs} pair predictions holds a finite point with a "
            "confidence above 1; there is nothing to align."
        )
    unit = typical_distance(predictions)
    if _USUAL_UNIT[0] <= unit <= _USUAL_UNIT[1]:
        return predictions
    # The unit is a gauge: every pair has a scale of its own anyway.
    inverse = np.float32(1 / unit)
    return dataclasses.replace(
        predictions,
        pointmap1=predictions.pointmap1 * inverse,
        pointmap2=predictions.pointmap2 * inverse,
    )


def notes(predictions: PairPredictions, graph: PairGraph) -> tuple[str, ...]:
    """Returns sentences on pairs that say nothing and on frames that only such pairs tie in."""
    telling = (_known_shares(predictions) >= _LEAST_KNOWN).all(axis=0)
    if telling.all():
        return ()
    sentences = [
        f"{int((~telling).sum())} of {graph.num_pairs} pair predictions hold hardly a finite point "
        "with a confidence above 1 and say nothing."
    ]
    labels = pairing.components(np.asarray(graph.pairs)[telling], graph.num_frames)
    largest = np.bincount(labels).argmax()
    loose = np.flatnonzero(labels != largest)
    if len(loose):
        sentences.append(
            f"Frames {_listed(loose)} are tied to the others by no pair that says anything: their "
            "place in the scene is a guess."
        )
    return tuple(sentences)


def typical_distance(predictions: PairPredictions) -> float:
    """Returns the median over pairs of the median |z| of their first maps; 1 if none is known."""
    medians = np.asarray(_medians(predictions.pointmap1, predictions.confidence1))
    medians = medians[np.isfinite(medians) & (medians > 0)]
    return float(np.median(medians)) if len(medians) else 1.0


def _known_shares(predictions: PairPredictions) -> np.ndarray:
    """Returns (2, P): the share of pixels with a finite point and a finite confidence above 1."""
    return np.stack([
        np.asarray(_shares(predictions.pointmap1, predictions.confidence1)),
        np.asarray(_shares(predictions.pointmap2, predictions.confidence2)),
    ])  # fmt: skip


@jax.jit
def _shares(pointmap: Array, confidence: Array) -> Array:
    def one(inputs):
        return jnp.mean(_known(*inputs).astype(jnp.float32))

    return jax.lax.map(one, (pointmap, confidence))


@jax.jit
def _medians(pointmap: Array, confidence: Array) -> Array:
    height, width = confidence.shape[1:]
    step = max(1, round((height * width / _SAMPLES) ** 0.5))
    pointmap = pointmap[:, step // 2 :: step, step // 2 :: step]
    known = _known(pointmap, confidence[:, step // 2 :: step, step // 2 :: step])
    distance = jnp.abs(pointmap[..., 2].astype(jnp.float32))
    return jnp.nanmedian(jnp.where(known, distance, jnp.nan), axis=(1, 2))


def _known(pointmap: Array, confidence: Array) -> Array:
    finite = jnp.all(jnp.isfinite(pointmap), axis=-1) & jnp.isfinite(confidence)
    return finite & (confidence > 1)


def _listed(frames: np.ndarray) -> str:
    shown = ", ".join(str(frame) for frame in frames[:8])
    return shown + (", ..." if len(frames) > 8 else "")
