"""Clips of a video solved in one call: filled up to one shape, stacked, one compiled loop.

A clip with fewer frames, pairs or flow fields than the largest gets invalid ones, which have no
weight anywhere (`objective.Problem`), so its result is what it would be alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import objective
from align3r_jax.alignment.align import Solved, Task
from align3r_jax.alignment.solvers import adam
from align3r_jax.structs import AlignmentVariables, Array, OpticalFlow, PairGraph, PairPredictions

# Whether the compiled loop treats the clips of a call side by side (vmap) or one after the other
# (map): side by side took 1.7 times as long on a CPU (three clips of nine frames, 128x96).
_SIDE_BY_SIDE = {"cpu": False}


def solve(tasks: Sequence[Task], progress: adam.Progress | None = None) -> list[Solved]:
    """Solves tasks together; one by one those with known cameras or settings of their own, and all
    if the solver is not Adam.

    progress: called as (iteration, total, loss), the loss that of the average task.
    """
    together = [k for k, task in enumerate(tasks) if _kind(task) == _kind(tasks[0])]
    if len(together) < 2 or tasks[0].known is not None or tasks[0].config.solver != "adam":
        together = []
    solved = dict(zip(together, _solve_stacked([tasks[k] for k in together], progress)))
    for k, task in enumerate(tasks):
        if k not in solved:
            solved[k] = align_lib.solve(task, progress)
    return [solved[k] for k in range(len(tasks))]


def _kind(task: Task) -> tuple:
    """What must be equal for one compiled loop."""
    given = (task.flow, task.known, task.ignore, task.depth_prior)
    return task.config, task.graph.symmetric, task.updates, *(part is None for part in given)


def _solve_stacked(tasks: list[Task], progress: adam.Progress | None) -> list[Solved]:
    if not tasks:
        return []
    config = tasks[0].config
    state, problem = _stack([_padded(task, _shape(tasks)) for task in tasks])
    total, length = config.iterations, adam.chunk_length(config.iterations)
    due = adam.due_refreshes(total, tasks[0].updates)
    traces: list[dict[str, np.ndarray]] = []
    for first in range(0, total, length):
        while due and first >= due[0]:
            due.pop(0)
            problem = _with_masks(problem, _scene_masks(tasks, state.variables))
        state, trace = _scan_stacked(
            state,
            problem,
            jnp.asarray(first),
            config=config,
            trainable=adam.Static(tasks[0].trainable()),
            num_steps=length,
        )
        traces.append(jax.device_get(trace))
        done = min(first + length, total)
        if progress is not None:
            progress(done, total, float(traces[-1]["total"][:, done - first - 1].mean()))
        if traces[-1]["rejected"][:, : done - first].all():
            break
    names = list(traces[0]) if traces else []
    whole = {name: np.concatenate([t[name] for t in traces], 1)[:, :total] for name in names}
    outcomes = [
        adam.outcome_of(_entry(state, k), {name: values[k] for name, values in whole.items()})
        for k in range(len(tasks))
    ]
    final = jax.tree.map(lambda *rows: jnp.stack(rows), *(found.variables for found in outcomes))
    losses = np.asarray(_losses_stacked(final, problem, config))
    return [
        Solved(
            dataclasses.replace(found, variables=_cut(found.variables, task)),
            losses[k, : task.graph.num_pairs],
        )
        for k, (task, found) in enumerate(zip(tasks, outcomes))
    ]


@functools.partial(jax.jit, static_argnames=("config", "trainable", "num_steps"), donate_argnums=0)
def _scan_stacked(state, problem, first_step, *, config, trainable, num_steps):
    def one(state, problem):
        return adam.scan(
            state, problem, first_step, config=config, trainable=trainable.tree, num_steps=num_steps
        )

    if _SIDE_BY_SIDE.get(jax.default_backend(), True):
        return jax.vmap(one)(state, problem)
    return jax.lax.map(lambda clip: one(*clip), (state, problem))


_with_masks = jax.jit(jax.vmap(objective.with_dynamic_mask), donate_argnums=0)


@functools.partial(jax.jit, static_argnames="config")
def _losses_stacked(variables, problem, config):
    return jax.vmap(lambda v, p: align_lib.pair_losses(v, p, config))(variables, problem)


def _shape(tasks: list[Task]) -> tuple[int, int, int]:
    """Frames, pairs and flow fields of the largest task."""
    return (
        max(task.graph.num_frames for task in tasks),
        max(task.graph.num_pairs for task in tasks),
        max(0 if task.flow is None else len(task.flow.pairs) for task in tasks),
    )


def _padded(task: Task, shape: tuple[int, int, int]) -> tuple[adam.State, objective.Problem]:
    """The task's start and data, filled up to a number of frames, pairs and fields."""
    frames, pairs, fields = shape
    predictions = PairPredictions(
        **{
            name: _fill(getattr(task.predictions, name), pairs)
            for name in ("pointmap1", "pointmap2", "confidence1", "confidence2")
        }
    )
    graph = PairGraph(
        _fill(task.graph.pairs, pairs), frames, symmetric=task.graph.symmetric, name="padded"
    )
    flow = task.flow
    if flow is not None:
        # Fields that fill up go from a frame to itself: no pair asks for them.
        flow = OpticalFlow(
            pairs=_fill(flow.pairs, fields),
            flow=_fill(flow.flow, fields),
            weight=_fill(flow.weight, fields),
            name=flow.name,
        )
    start = _map_groups(
        task.start, lambda values, is_pair: _fill(values, pairs if is_pair else frames)
    )
    problem = objective.prepare(
        predictions,
        graph,
        flow,
        start,
        _fill(task.mask, frames),
        task.config,
        np.arange(frames) < task.graph.num_frames,
        np.arange(pairs) < task.graph.num_pairs,
        ignore=None if task.ignore is None else _fill(task.ignore, frames),
        depth_prior=None if task.depth_prior is None else _fill(task.depth_prior, frames, np.nan),
    )
    return adam.initial_state(start), problem


def _stack(trees: list[Any]) -> Any:
    """Trees of one structure as one with a leading axis; frees each leaf once it is stacked."""
    structure = jax.tree.structure(trees[0])
    leaves: list[list[Any]] = [jax.tree.leaves(tree) for tree in trees]
    trees.clear()
    stacked = []
    for k in range(len(leaves[0])):
        stacked.append(jnp.stack([row[k] for row in leaves]))
        for row in leaves:
            row[k] = None
    return jax.tree.unflatten(structure, stacked)


def _scene_masks(tasks: list[Task], variables: AlignmentVariables) -> Array:
    masks = [task.scene_mask(_cut(_entry(variables, k), task)) for k, task in enumerate(tasks)]
    frames = _shape(tasks)[0]
    return jnp.stack([_fill(np.asarray(mask), frames) for mask in masks])


def _entry(tree: Any, k: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[k], tree)


def _cut(variables: AlignmentVariables, task: Task) -> AlignmentVariables:
    """The variables without what fills up."""
    graph = task.graph
    return _map_groups(
        variables,
        lambda values, is_pair: values[: graph.num_pairs if is_pair else graph.num_frames],
    )


def _map_groups(variables: AlignmentVariables, change: Any) -> AlignmentVariables:
    """change(values, is_pair) on every group; a shared focal stays as it is."""
    shared = variables.log_focal.shape[0] == 1
    changed = {
        name: change(getattr(variables, name), name.startswith("pair_"))
        for name in variables.__dataclass_fields__
        if not (shared and name == "log_focal")
    }
    return dataclasses.replace(variables, **changed)


def _fill(values: Array, count: int, value: float = 0) -> Array:
    """The array with entries of `value` at its end, `count` in all."""
    missing = count - values.shape[0]
    if missing == 0:
        return values
    widths = [(0, missing)] + [(0, 0)] * (values.ndim - 1)
    pad = np.pad if isinstance(values, np.ndarray) else jnp.pad
    return pad(values, widths, constant_values=value)
