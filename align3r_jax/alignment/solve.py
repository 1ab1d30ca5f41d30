"""Global alignment as one pure function of arrays: jit it, vmap it over clips, spread it.

    variables, trace = align(predictions, graph, priors, config)

Everything happens inside one compiled call: the start, the motion masks, the optimisation. The
host's driver, with progress and the recorded start, is `align.align_graph`; both share every piece.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.alignment import lattice, motion_mask, objective
from align3r_jax.alignment import start as start_lib
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.solvers import adam, gauss_newton, second_order
from align3r_jax.alignment.solvers import gauss_newton_slots as slots_lib
from align3r_jax.alignment.terms import pointmap
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.structs import (
    AlignmentPriors,
    AlignmentVariables,
    Array,
    PairGraph,
    PairPredictions,
    TermWeights,
)

NO_PRIORS = AlignmentPriors()


def align(
    predictions: PairPredictions,
    graph: PairGraph,
    priors: AlignmentPriors = NO_PRIORS,
    config: AlignmentConfig = AlignmentConfig(),
) -> tuple[AlignmentVariables, dict[str, Array]]:
    """Aligns the point maps of all pairs into one scene.

    A pure function: traceable in all arrays, `graph.pairs` included; compiled once per shapes,
    `graph` settings and config. `jax.vmap` over leading axes of predictions, graph and priors
    aligns several clips (`alignment.batch` makes clips of different lengths fit).

    Args:
        predictions: T frames of H x W, P pairs, in the order of `graph.pairs`. Pixels that are not
            finite weigh nothing.
        graph: which pairs; parts that are not connected stand in one world as they are.
        priors: flow, known cameras, masks, a start, and what is valid; all optional.
        config: static.

    Returns:
        variables: `alignment.variables.decode(variables, config, (H, W))` says what they mean,
            config being `variables.settings_with_known(config, priors.known)`.
        trace: name -> (iterations,), the terms of the loss before each step, "total", "lr" and
            "rejected", True where the step before led to something not finite and was taken back
            (the losses are then those before it). With `config.solver` "gauss_newton" that of
            `solvers.gauss_newton.scan`, "rejected" being steps that did not lower the loss. And
            of the final scene "dynamic_mask" (T, H, W) bool and "pair_losses" (P,), the mean
            weighted residual of every pair.

    Raises:
        UserError: shapes do not fit together.
    """
    check(predictions, graph, priors)
    return run(predictions, graph, priors, config, degrees=degrees(graph, priors, config))


def degrees(
    graph: PairGraph, priors: AlignmentPriors, config: AlignmentConfig
) -> slots_lib.Degrees | None:
    """Returns the static bounds that the second-order solver needs, for one clip or a batch.

    The most observations and fields of any frame, rounded up to multiples of 4 so that similar
    graphs share a compilation; for traced lists as if no pair were listed twice. None: Adam.
    """
    if config.solver != "gauss_newton":
        return None
    flow = priors.flow if config.flow_weight > 0 else None
    lists: list[Any] = [graph.pairs] if flow is None else [graph.pairs, flow.pairs]
    if any(isinstance(values, jax.core.Tracer) for values in lists):
        bounds = [slots_lib.bound(graph.num_frames, *lists, *[None] * (2 - len(lists)))]
    else:
        clips = zip(*(np.reshape(values, (-1, *np.shape(values)[-2:])) for values in lists))
        bounds = []
        for clip in clips:
            # What fills up is at -1.
            kept: list[Any] = [values[values[:, 0] >= 0] for values in clip]
            bounds.append(slots_lib.bound(graph.num_frames, *kept, *[None] * (2 - len(kept))))
    return slots_lib.Degrees(*(-(-max(sizes) // 4) * 4 for sizes in zip(*bounds)))


def check(predictions: PairPredictions, graph: PairGraph, priors: AlignmentPriors) -> None:
    """Raises UserError unless the shapes fit together."""
    try:
        predictions.check(graph)
    except ValueError as error:
        raise UserError(f"{error} Give one prediction for every pair of the graph.") from error
    pairs, height, width = predictions.confidence1.shape
    maps = (graph.num_frames, height, width)
    expected = {
        "dynamic_mask": maps,
        "ignore": maps,
        "depth": maps,
        "frame_valid": (graph.num_frames,),
        "pair_valid": (pairs,),
    }
    for name, shape in expected.items():
        value = getattr(priors, name)
        if value is not None and tuple(jnp.shape(value)) != shape:
            raise UserError(
                f"The prior '{name}' has shape {tuple(jnp.shape(value))}, expected {shape}: "
                f"{graph.num_frames} frames of {width}x{height}, {pairs} pairs."
            )
    if priors.flow is not None and tuple(priors.flow.flow.shape[1:3]) != (height, width):
        raise UserError(
            f"The optical flow is {priors.flow.flow.shape[2]}x{priors.flow.flow.shape[1]}, the "
            f"predictions {width}x{height}; both must be at the working size."
        )


class Setup(NamedTuple):
    """An alignment about to start. `config` is that with what is known.

    scene_mask: variables -> (T, H, W) bool, the mask that a scene implies (no gradient passes).
    segments: how many times the loop takes the mask of where it stands.
    """

    start: AlignmentVariables
    problem: objective.Problem
    trainable: AlignmentVariables
    scene_mask: Callable[[AlignmentVariables], Array]
    segments: int
    config: AlignmentConfig

    def problem_at(self, variables: AlignmentVariables) -> objective.Problem:
        """Returns the problem with the masks of a scene."""
        return objective.with_dynamic_mask(self.problem, self.scene_mask(variables))


@functools.partial(jax.jit, static_argnames=("config", "axis", "degrees"))
def run(
    predictions: PairPredictions,
    graph: PairGraph,
    priors: AlignmentPriors,
    config: AlignmentConfig,
    axis: str | None = None,
    degrees: slots_lib.Degrees | None = None,
) -> tuple[AlignmentVariables, dict[str, Array]]:
    """`align` without checks. degrees: of `degrees`.

    axis: name of the mesh axis over which predictions, graph and flow are spread; everything else,
    the result included, is the same on every device and counts the pairs of all of them.
    """
    setup = set_up(predictions, graph, priors, config, axis)
    return optimise(setup, degrees=degrees)


def set_up(
    predictions: PairPredictions,
    graph: PairGraph,
    priors: AlignmentPriors,
    config: AlignmentConfig,
    axis: str | None = None,
    term_weights: TermWeights | None = None,
) -> Setup:
    """Returns the start and the problem of `run`. term_weights: instead of the config's."""
    known = priors.known
    config = variables_lib.settings_with_known(config, known)
    frames, (height, width) = graph.num_frames, predictions.confidence1.shape[1:]
    start = priors.start
    if start is None:
        start = start_lib.initialise(
            predictions,
            graph,
            config,
            known=known,
            frame_valid=priors.frame_valid,
            pair_valid=priors.pair_valid,
            axis=axis,
        )
    else:
        start = variables_lib.with_known(jax.tree.map(jnp.asarray, start), known, config)
    user_mask, is_given = motion_mask.given(priors.dynamic_mask, (frames, height, width))
    problem = objective.prepare(
        predictions,
        graph,
        priors.flow,
        start,
        user_mask,
        config,
        priors.frame_valid,
        priors.pair_valid,
        known=known,
        ignore=priors.ignore,
        depth_prior=priors.depth,
        axis=axis,
        term_weights=term_weights,
    )
    finds_masks = priors.flow is not None and is_given is not True

    def scene_mask(variables: AlignmentVariables) -> Array:
        if not finds_masks:
            return user_mask
        scene = variables_lib.without_invalid(variables, problem.frame_valid, problem.pair_valid)
        geometry = variables_lib.decode(scene, config, (height, width), problem.pair_valid)
        flow: Any = priors.flow
        geometry, flow = jax.lax.stop_gradient((geometry, flow))
        found = motion_mask.update_from_scene(
            geometry.depth, geometry.world_from_cam, geometry.intrinsics, flow, config, axis
        )
        return jnp.where(is_given, user_mask, found)

    return Setup(
        start=start,
        problem=problem,
        trainable=variables_lib.trainable(start, config, known),
        scene_mask=scene_mask,
        # The masks of the start, then as many more as are asked for, evenly spread.
        segments=1 + (config.motion_mask_updates if finds_masks else 0),
        config=config,
    )


def optimise(
    setup: Setup, *, degrees: slots_lib.Degrees | None = None, rematerialise: bool = False
) -> tuple[AlignmentVariables, dict[str, Array]]:
    """Runs the solver of the config. rematerialise: for gradients through the loop of Adam."""
    config = setup.config
    if config.solver == "gauss_newton" and config.iterations > 0:
        solve = functools.partial(_second_order, degrees=degrees)
    else:
        solve = functools.partial(_first_order, rematerialise=rematerialise)
    variables, trace = solve(setup.start, setup.problem_at, config, setup.trainable, setup.segments)
    trace["dynamic_mask"] = setup.scene_mask(variables)
    trace["pair_losses"] = pair_losses(variables, setup.problem, config)
    return variables, trace


def _first_order(start, problem_at, config, trainable, segments, rematerialise):
    """Adam over all pixels; problem_at(variables) is the problem with the masks found there."""
    length = -(-config.iterations // segments)
    loop = functools.partial(
        adam.scan,
        config=config,
        trainable=trainable,
        num_steps=length,
        rematerialise=rematerialise,
    )

    def segment(state, first):
        return loop(state, problem_at(state.variables), first)

    state = adam.initial_state(start)
    state, trace = jax.lax.scan(segment, state, length * jnp.arange(segments))
    trace = {name: values.reshape(-1)[: config.iterations] for name, values in trace.items()}
    return _last_finite(state, problem_at(start)), adam.without_rejected(trace)


def _second_order(start, problem_at, config, trainable, segments, degrees):
    """Gauss-Newton on the lattice, then all depths, once for every set of masks."""
    length = -(-config.gauss_newton_steps // segments)

    def segment(carry, first):
        variables, damping, failed = carry
        problem = problem_at(variables)
        height, width = problem.image_size
        stride = lattice.stride_for(height, width, config.lattice_stride)
        reduced = lattice.reduce(problem, stride)
        state = gauss_newton.initial_state(lattice.variables(variables, stride), reduced, config)
        state = dataclasses.replace(state, damping=damping, failed=state.failed | failed)
        state, trace = gauss_newton.scan(
            state,
            reduced,
            first,
            config=config,
            trainable=trainable,
            num_steps=length,
            degrees=degrees,
        )
        found, last = second_order.finish(variables, state, problem, config, trainable, stride)
        return (found, state.damping, state.failed), (trace, last)

    carry = start, jnp.full((), gauss_newton.FIRST_DAMPING), jnp.zeros((), bool)
    carry, (trace, last) = jax.lax.scan(segment, carry, length * jnp.arange(segments))
    steps = config.gauss_newton_steps
    trace = {
        name: jnp.concatenate([trace[name].reshape(-1)[:steps], last[name][-1:]]) for name in last
    }
    return carry[0], trace | {"rejected": ~trace["accepted"]}


def _last_finite(state: adam.State, problem: objective.Problem) -> AlignmentVariables:
    """The variables after the last step, or before it if that step left the finite."""
    last = variables_lib.without_invalid(state.variables, problem.frame_valid, problem.pair_valid)
    finite = ~state.failed
    for leaf in jax.tree.leaves(last):
        finite &= jnp.all(jnp.isfinite(leaf))
    return jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), state.variables, state.last_good
    )


def pair_losses(
    variables: AlignmentVariables, problem: objective.Problem, config: AlignmentConfig
) -> Array:
    """Returns (P,), the mean weighted residual of every pair over both of its sides."""
    pair_valid = problem.pair_valid
    variables = variables_lib.without_invalid(variables, problem.frame_valid, pair_valid)
    geometry = variables_lib.decode(variables, config, problem.image_size, pair_valid)
    _, sides = pointmap.alignment(
        geometry, problem.pixels, problem.pointmaps, config.distance, config.residual_over_scale
    )
    sides = jnp.mean(sides, axis=0)
    return sides if problem.axis is None else jax.lax.psum(sides, problem.axis)
