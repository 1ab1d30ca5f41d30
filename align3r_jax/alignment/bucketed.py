"""An alignment in a shape that videos of similar length share, so that they share its programs.

Frames, pairs and flow fields are filled up (`padding`) to those of the graph of a bucket
(`batch.bucket`): at most a quarter more work, and no compilation for a video of 9 frames after one
of 10.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from align3r_jax import pairing
from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import padding
from align3r_jax.alignment.align import Solved, Task
from align3r_jax.alignment.solvers import adam
from align3r_jax.alignment.solvers import gauss_newton_slots as slots_lib
from align3r_jax.structs import AlignmentPriors, AlignmentVariables, PairGraph


def solve(task: Task, progress: adam.Progress | None = None, *, like: PairGraph) -> Solved:
    """`align.solve` of a task filled up to the frames, pairs and fields of the graph `like`.

    like: of at least as many frames, by the same rule as the task's own graph.
    """
    if task.config.iterations == 0:  # nothing to compile for
        return align_lib.solve(task, progress)
    filled, rows = fill(task, like)
    solved = align_lib.solve(filled, progress)
    variables = _own(solved.outcome.variables, task, rows)
    return Solved(
        dataclasses.replace(solved.outcome, variables=variables),
        np.asarray(solved.pair_losses)[rows],
    )


def fill(task: Task, like: PairGraph) -> tuple[Task, np.ndarray]:
    """Returns the task in the shape of a graph, and (P,) where its own pairs stand there."""
    # What is large stays where it is; the rest is filled up on the host, which compiles nothing.
    small = AlignmentPriors(
        known=task.known,
        dynamic_mask=task.mask,
        ignore=task.ignore,
        depth=task.depth_prior,
        start=task.start,
    )
    priors = dataclasses.replace(jax.device_get(small), flow=task.flow)
    clip = task.predictions, task.graph, priors
    shape = padding.common_shape([clip])
    fields = pairing.directed_pairs(like)
    shape = shape._replace(
        frames=max(shape.frames, like.num_frames),
        part=max(shape.part, like.num_pairs // shape.halves),
        fields=max(shape.fields, len(fields)) if shape.fields else 0,
    )
    predictions, graph, priors, rows = padding.pad(clip, shape)
    more = shape.frames - task.graph.num_frames
    assert priors.start is not None

    def scene_mask(variables: AlignmentVariables) -> np.ndarray:
        return np.asarray(padding.fill(task.scene_mask(_own(variables, task, rows)), more))

    filled = dataclasses.replace(
        task,
        predictions=predictions,
        graph=graph,
        flow=priors.flow,
        start=priors.start,
        mask=np.asarray(priors.dynamic_mask),
        known=priors.known,
        ignore=priors.ignore,
        depth_prior=priors.depth,
        frame_valid=priors.frame_valid,
        pair_valid=priors.pair_valid,
        scene_mask=scene_mask,
        # Of the graph, not of the data: they are part of a program's shape.
        degrees=_degrees(task, like, fields),
    )
    return filled, rows


def _own(variables: AlignmentVariables, task: Task, rows: np.ndarray) -> AlignmentVariables:
    """The variables of the task alone; on the host, where cutting compiles nothing."""
    return padding.without(jax.device_get(variables), task.graph.num_frames, rows)


def _degrees(task: Task, like: PairGraph, fields: np.ndarray) -> slots_lib.Degrees | None:
    if task.config.solver != "gauss_newton":
        return None
    given: list[tuple[Any, Any]] = [
        (task.graph.pairs, None if task.flow is None else task.flow.pairs),
        (like.pairs, None if task.flow is None else fields),
    ]
    frames = max(task.graph.num_frames, like.num_frames)
    bounds = [slots_lib.bound(frames, pairs, listed) for pairs, listed in given]
    return slots_lib.Degrees(*(max(sizes) for sizes in zip(*bounds)))
