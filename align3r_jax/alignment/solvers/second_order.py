"""The second-order solver from full-size problem to full-size result.

Gauss-Newton on a lattice of pixels finds cameras and pair similarities, then the depth of every
pixel is solved with these fixed (`finish`, pure). `optimise` is the host's driver with the same
face as that of `solvers.adam`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.alignment import lattice, objective
from align3r_jax.alignment.solvers import adam, depth_solve, gauss_newton
from align3r_jax.alignment.solvers import gauss_newton_slots as slots_lib
from align3r_jax.config import AlignmentConfig
from align3r_jax.structs import AlignmentVariables

Array = jax.Array


def finish(
    start: AlignmentVariables,
    state: gauss_newton.State,
    problem: objective.Problem,
    config: AlignmentConfig,
    trainable: AlignmentVariables,
    stride: int,
) -> tuple[AlignmentVariables, dict[str, Array]]:
    """Returns the variables with every pixel's depth, and the trace's entry of the end.

    start: at full size, where the lattice began; a failed state, or a loss that is not finite,
    gives it back, and "accepted" is False.
    """
    moved = spread(start, state.variables, stride)
    steps = config.gauss_newton_steps
    counts = gauss_newton.flow_counts(state.terms, config, steps)
    free = trainable.log_depth
    if not (isinstance(free, bool) and not free):
        solved = depth_solve.solve(moved, problem, config, counts)
        free = jnp.reshape(jnp.asarray(free), (-1, 1, 1))
        log_depth = jnp.where(free, solved.log_depth, start.log_depth)
        moved = dataclasses.replace(moved, log_depth=log_depth)
    terms = gauss_newton.terms_at(moved, problem, config)
    total = gauss_newton.total_of(terms, config, gauss_newton.flow_counts(terms, config, steps))
    good = jnp.isfinite(total) & ~state.failed
    moved = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, start)
    last = {name: terms[name] for name in objective.term_names(problem)}
    return moved, last | {"total": total, "accepted": good, "damping": state.damping}


def spread(
    full: AlignmentVariables, reduced: AlignmentVariables, stride: int
) -> AlignmentVariables:
    """Returns full-size variables with cameras and pairs of the lattice's.

    The depth of every frame is multiplied by what the lattice's depth was on average.
    """
    change = reduced.log_depth - lattice.images(full.log_depth, stride)
    change = jnp.mean(change, axis=(1, 2), keepdims=True)
    return dataclasses.replace(reduced, log_depth=full.log_depth + change)


@functools.partial(jax.jit, static_argnames=("stride", "config"))
def _start(variables, problem, *, stride, config):
    reduced = lattice.reduce(problem, stride)
    return reduced, gauss_newton.initial_state(
        lattice.variables(variables, stride), reduced, config
    )


@functools.partial(jax.jit, static_argnames=("config", "num_steps", "degrees"))
def _steps(state, problem, first_step, trainable, *, config, num_steps, degrees):
    return gauss_newton.scan(
        state,
        problem,
        first_step,
        config=config,
        trainable=trainable,
        num_steps=num_steps,
        degrees=degrees,
    )


@functools.partial(jax.jit, static_argnames=("config", "stride"))
def _finish(start, state, problem, trainable, *, config, stride):
    return finish(start, state, problem, config, trainable, stride)


def optimise(
    variables: AlignmentVariables,
    problem: objective.Problem,
    config: AlignmentConfig,
    trainable: AlignmentVariables,
    *,
    refresh: Callable[[AlignmentVariables, objective.Problem], objective.Problem] | None = None,
    refresh_count: int = 0,
    progress: adam.Progress | None = None,
    degrees: slots_lib.Degrees | None = None,
) -> adam.Outcome:
    """Minimises `objective.evaluate` from `variables`.

    refresh(variables, problem) is called `refresh_count` times, evenly spread over the steps, with
    full-size variables, and gives the full-size problem to go on with (same shapes). progress(step,
    total, loss) is called after every part. A loss that is not finite gives back the start and sets
    `failed`. degrees: bounds of how many pairs and fields meet a frame, part of a program's shape;
    None: those of the data. The trace holds config.gauss_newton_steps entries on the lattice, as
    `gauss_newton.scan`, and one of the end at full size.
    """
    stride = lattice.stride_for(*problem.image_size, config.lattice_stride)
    total = config.gauss_newton_steps
    parts = refresh_count + 1 if refresh is not None else 1
    length = -(-total // parts)
    reduced, state = _start(variables, problem, stride=stride, config=config)
    degrees = degrees or slots_lib.degrees(reduced)
    trainable = jax.tree.map(jnp.asarray, trainable)
    traces = []
    for first in range(0, total, length):
        if first > 0 and refresh is not None:
            current, _ = _finish(variables, state, problem, trainable, config=config, stride=stride)
            problem = refresh(current, problem)
            reduced, restarted = _start(current, problem, stride=stride, config=config)
            state = restarted.replace(damping=state.damping, failed=state.failed)
        state, trace = _steps(
            state, reduced, first, trainable, config=config, num_steps=length, degrees=degrees
        )
        traces.append(jax.device_get(trace))
        done = min(first + length, total)
        if progress is not None:
            progress(done, total, float(traces[-1]["total"][done - first - 1]))
    result, last = _finish(variables, state, problem, trainable, config=config, stride=stride)
    last = {name: np.asarray(value)[None] for name, value in jax.device_get(last).items()}
    names = list(last)
    trace = {
        name: np.concatenate([*(t[name] for t in traces)])[:total] if traces else last[name][:0]
        for name in names
    }
    trace = {name: np.concatenate([trace[name], last[name]]) for name in names}
    return adam.Outcome(result, trace, failed=not bool(last["accepted"][0]))
