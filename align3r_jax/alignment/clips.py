"""Clips of a video solved in one shape: stacked in one compiled loop, or one after the other.

A clip with fewer frames, pairs or flow fields than the largest gets invalid ones, which have no
weight anywhere (`objective.Problem`), so its result is what it would be alone. Adam's hundreds of
steps are shared by all clips of a call; Gauss-Newton's few run clip by clip, in one program.
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
from align3r_jax.alignment import bucketed, objective, padding
from align3r_jax.alignment.align import Solved, Task
from align3r_jax.alignment.solvers import adam
from align3r_jax.structs import AlignmentPriors, AlignmentVariables, Array, PairGraph

# Whether the compiled loop treats the clips of a call side by side (vmap) or one after the other
# (map): side by side took 1.7 times as long on a CPU (three clips of nine frames, 128x96).
_SIDE_BY_SIDE = {"cpu": False}


def solve(
    tasks: Sequence[Task],
    progress: adam.Progress | None = None,
    *,
    like: PairGraph | None = None,
) -> list[Solved]:
    """Solves tasks together; one by one those with known cameras or settings of their own, and all
    if the solver is not Adam.

    progress: called as (iteration, total, loss), the loss that of the average task. like: graph of
    the longest clip there is; those that Gauss-Newton solves are filled up to it, so that all calls
    share its programs.
    """
    together = [k for k, task in enumerate(tasks) if _kind(task) == _kind(tasks[0])]
    if len(together) < 2 or tasks[0].known is not None or tasks[0].config.solver != "adam":
        together = []
    count = len(tasks)
    told = _part(progress, 0, len(together), count)
    solved = dict(zip(together, _solve_stacked([tasks[k] for k in together], told)))
    for k in range(count):
        if k in solved:
            continue
        told = _part(progress, len(solved), 1, count)
        if like is None or tasks[k].config.solver == "adam":
            solved[k] = align_lib.solve(tasks[k], told)
        else:
            solved[k] = bucketed.solve(tasks[k], told, like=like)
    return [solved[k] for k in range(len(tasks))]


def _part(
    progress: adam.Progress | None, before: int, share: int, count: int
) -> adam.Progress | None:
    """The progress of `share` of `count` tasks, after `before` others, as that of all."""
    if progress is None or share == count:
        return progress
    return lambda done, total, loss: progress(before * total + share * done, count * total, loss)


def _kind(task: Task) -> tuple:
    """What must be equal for one compiled loop."""
    given = (task.flow, task.known, task.ignore, task.depth_prior)
    return task.config, task.graph.symmetric, task.updates, *(part is None for part in given)


def _solve_stacked(tasks: list[Task], progress: adam.Progress | None) -> list[Solved]:
    if not tasks:
        return []
    config = tasks[0].config
    shape = padding.common_shape([_clip(task) for task in tasks])
    laid_out, rows = map(list, zip(*(_laid_out(task, shape) for task in tasks)))
    state, problem = _stack(laid_out)
    total, length = config.iterations, adam.chunk_length(config.iterations)
    due = adam.due_refreshes(total, tasks[0].updates)
    traces: list[dict[str, np.ndarray]] = []
    for first in range(0, total, length):
        while due and first >= due[0]:
            due.pop(0)
            problem = _with_masks(problem, _scene_masks(tasks, rows, state.variables))
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
            dataclasses.replace(
                found, variables=padding.without(found.variables, task.graph.num_frames, rows[k])
            ),
            losses[k][rows[k]],
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


def _clip(task: Task) -> padding.Clip:
    priors = AlignmentPriors(
        flow=task.flow,
        dynamic_mask=task.mask,
        ignore=task.ignore,
        depth=task.depth_prior,
        start=task.start,
    )
    return task.predictions, task.graph, priors


def _laid_out(
    task: Task, shape: padding.Shape
) -> tuple[tuple[adam.State, objective.Problem], np.ndarray]:
    """Returns the task's start and data in a shape, and where its pairs stand."""
    predictions, graph, priors, rows = padding.pad(_clip(task), shape)
    assert priors.start is not None
    problem = objective.prepare(
        predictions,
        graph,
        priors.flow,
        priors.start,
        priors.dynamic_mask,
        task.config,
        priors.frame_valid,
        priors.pair_valid,
        ignore=priors.ignore,
        depth_prior=priors.depth,
    )
    return (adam.initial_state(priors.start), problem), rows


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


def _scene_masks(tasks: list[Task], rows: list[np.ndarray], variables: AlignmentVariables) -> Array:
    frames, masks = variables.log_depth.shape[1], []
    for k, task in enumerate(tasks):
        count = task.graph.num_frames
        mask = task.scene_mask(padding.without(_entry(variables, k), count, rows[k]))
        masks.append(padding.fill(np.asarray(mask), frames - count))
    return jnp.stack(masks)


def _entry(tree: Any, k: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[k], tree)
