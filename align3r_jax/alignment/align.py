"""Global alignment of one graph of pairs: start, motion masks, optimisation, what is left over."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import struct

from align3r_jax.alignment import initialise as initialise_lib
from align3r_jax.alignment import known_cameras, motion_mask, objective, soundness, two_view
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.solvers import adam, second_order
from align3r_jax.alignment.solvers import gauss_newton_slots as slots_lib
from align3r_jax.alignment.terms import flow as flow_term
from align3r_jax.alignment.terms import pointmap
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.structs import (
    AlignmentVariables,
    Array,
    OpticalFlow,
    PairGraph,
    PairPredictions,
)


@struct.dataclass
class AlignResult:
    """An aligned scene, still as variables (`finish.to_scene` decodes them).

    dynamic_mask: (T, H, W) bool. confidence: (T, H, W), the largest of all pairs. pairs: (P, 2)
    frame numbers; pair_losses: (P,) mean weighted residual. trace: name -> (iterations,) of
    `objective.TERMS`, "total" and "lr". failed: the loss became NaN or infinite, and the variables
    are those of the last finite loss. fixed_world: the poses were given, so the world stays.
    """

    variables: AlignmentVariables
    dynamic_mask: Array
    trace: dict[str, Array]
    pair_losses: Array
    confidence: Array
    pairs: Array
    failed: bool = struct.field(pytree_node=False, default=False)
    fixed_world: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class Task:
    """One alignment ready for a solver, its inputs still as they came (`prepare` lays them out).

    mask: (T, H, W) bool. scene_mask: variables -> the mask that a scene implies; updates: how often
    the solver asks for it. frame_valid (T,), pair_valid (P,): what does not only fill up; None:
    all. degrees: of `gauss_newton_slots`, at least; None: those of the data. The rest: see `align`.
    """

    predictions: PairPredictions
    graph: PairGraph
    flow: OpticalFlow | None
    start: AlignmentVariables
    mask: Array
    known: variables_lib.Known | None
    ignore: Array | None
    depth_prior: Array | None
    config: AlignmentConfig = struct.field(pytree_node=False)
    scene_mask: Callable[[AlignmentVariables], np.ndarray] = struct.field(pytree_node=False)
    updates: int = struct.field(pytree_node=False)
    frame_valid: Array | None = None
    pair_valid: Array | None = None
    degrees: slots_lib.Degrees | None = struct.field(pytree_node=False, default=None)

    def trainable(self) -> AlignmentVariables:
        """Returns what the solver may move."""
        return variables_lib.trainable(self.start, self.config, self.known)


class Solved(NamedTuple):
    """A solver's answer to a `Task`. pair_losses: (P,)."""

    outcome: adam.Outcome
    pair_losses: Array


Solver = Callable[[Task, adam.Progress | None], Solved]


def solve(task: Task, progress: adam.Progress | None = None) -> Solved:
    """Runs the solver of the config on one task."""
    problem = objective.prepare(
        task.predictions,
        task.graph,
        task.flow,
        task.start,
        task.mask,
        task.config,
        task.frame_valid,
        task.pair_valid,
        known=task.known,
        ignore=task.ignore,
        depth_prior=task.depth_prior,
    )
    # Two-view scenes take no steps at all.
    is_second_order = task.config.solver == "gauss_newton" and task.config.iterations > 0
    optimise = (
        functools.partial(second_order.optimise, degrees=task.degrees)
        if is_second_order
        else adam.optimise
    )
    outcome = optimise(
        task.start,
        problem,
        task.config,
        task.trainable(),
        refresh=lambda found, old: objective.with_dynamic_mask(old, task.scene_mask(found)),
        refresh_count=task.updates,
        progress=progress,
    )
    return Solved(outcome, pair_losses(outcome.variables, problem, task.config))


def align_graph(
    predictions: PairPredictions,
    graph: PairGraph,
    flow: OpticalFlow | None,
    config: AlignmentConfig,
    *,
    progress: adam.Progress | None = None,
    solver: Solver = solve,
    **inputs: Any,
) -> AlignResult:
    """Aligns all pairs of a graph into one scene: `prepare`, `solve`, `finish`.

    inputs: as of `prepare`. progress: called as (iteration, total, loss) every few iterations.
    solver: `solve`, or one that fills the task up first (`bucketed.solve`).
    Raises UserError if the inputs do not fit together.
    """
    task = prepare(predictions, graph, flow, config, **inputs)
    return finish(task, solver(task, progress))


def prepare(
    predictions: PairPredictions,
    graph: PairGraph,
    flow: OpticalFlow | None,
    config: AlignmentConfig,
    *,
    key_frame_prior: initialise_lib.KeyFramePrior | None = None,
    known: variables_lib.Known | None = None,
    dynamic_mask: Array | None = None,
    ignore: Array | None = None,
    depth_prior: Array | None = None,
    start: AlignmentVariables | None = None,
) -> Task:
    """Finds first masks and a start for the pairs of a graph.

    Args:
        predictions: in the order of `graph.pairs`.
        flow: fields of the pairs and their reverses; pairs without one have no flow term.
            None: no flow term, and no motion masks.
        key_frame_prior: pose and focal of frame 0, where the scene is to start (clips).
        known: cameras or depth given from outside; they are set and stay.
        dynamic_mask: (T, H, W) of the user: bool, grey in [0, 1] (NaN: not known) or uint8. None
            or NaN: found from the flow, first by the two-view scenes of the pairs, then
            `config.motion_mask_updates` times and at the end from the scene itself.
        ignore: (T, H, W) bool, pixels that have no weight in any term; their confidence is 1.
        depth_prior: (T, H, W), NaN where unknown; counts with `config.depth_prior_weight`.
        start: where to begin; None: the spanning tree of the pairs, or all known cameras.

    Two frames in both directions with nothing known are their two-view scene, without iterations
    (unless `config.optimise_two_frames`).

    Raises:
        UserError: the inputs do not fit together.
    """
    predictions = soundness.checked(predictions.check(graph), graph)
    height, width = predictions.confidence1.shape[1:]
    if flow is not None and tuple(flow.flow.shape[1:3]) != (height, width):
        raise UserError(
            f"The optical flow is {flow.flow.shape[2]}x{flow.flow.shape[1]}, the predictions "
            f"{width}x{height}; both must be at the working size."
        )
    config = variables_lib.settings_with_known(config, known)
    shape = (graph.num_frames, height, width)
    if ignore is not None:
        ignore = motion_mask.from_user(ignore, *shape)
        predictions = _without_ignored(predictions, graph.pairs, ignore)
        flow = _flow_without_ignored(flow, ignore)
    user_mask = motion_mask.from_user(dynamic_mask, *shape)
    given = np.full(shape, False) if dynamic_mask is None else ~np.isnan(np.float32(dynamic_mask))
    mask_flow = None if given.all() else flow  # what masks are found from, if at all

    def with_user_mask(found: Array) -> np.ndarray:
        return np.where(given, user_mask, found)

    mask = user_mask
    if mask_flow is not None:
        mask = with_user_mask(_first_mask(predictions, graph, mask_flow, config))

    if start is not None:
        pass
    elif _is_two_view(graph, config, key_frame_prior, known):
        config = dataclasses.replace(config, iterations=0, shared_focal=False)
        start = two_view.initialise(predictions, graph, config)
    else:
        start = initialise_lib.initialise(
            predictions, graph, config, key_frame_prior=key_frame_prior, known=known
        )
        if config.residual_over_scale and known is not None and known.holds_a_scale:
            start = known_cameras.with_parallax(start, predictions, graph, config, known)

    def scene_mask(variables: AlignmentVariables) -> np.ndarray:
        if mask_flow is None:
            return mask
        geometry = variables_lib.decode_whole(variables, config, (height, width))
        return with_user_mask(
            motion_mask.update_from_scene(
                geometry.depth, geometry.world_from_cam, geometry.intrinsics, mask_flow, config
            )
        )

    updates = config.motion_mask_updates if mask_flow is not None and config.iterations else 0
    return Task(
        predictions=predictions,
        graph=graph,
        flow=flow,
        start=start,
        mask=mask,
        known=known,
        ignore=ignore,
        depth_prior=depth_prior,
        config=config,
        scene_mask=scene_mask,
        updates=updates,
    )


def finish(task: Task, solved: Solved) -> AlignResult:
    """Returns the aligned scene of a solved task."""
    outcome, known = solved.outcome, task.known
    if outcome.failed:
        logging.warning(
            "The alignment loss became NaN or infinite after %d of %d iterations; the result is "
            "that of the last finite loss.",
            len(outcome.trace["total"]),
            task.config.iterations,
        )
    return AlignResult(
        variables=outcome.variables,
        dynamic_mask=task.scene_mask(outcome.variables) if task.updates else task.mask,
        trace=outcome.trace,
        pair_losses=solved.pair_losses,
        confidence=initialise_lib.frame_confidence(task.predictions, task.graph),
        pairs=task.graph.pairs,
        failed=outcome.failed,
        fixed_world=known is not None and known.world_from_cam is not None,
    )


def result_of(
    predictions: PairPredictions,
    graph: PairGraph,
    variables: AlignmentVariables,
    trace: dict[str, Array],
    known: variables_lib.Known | None = None,
) -> AlignResult:
    """Returns what `alignment.solve.align` gave as a result that `finish.to_scene` takes."""
    trace = {name: np.asarray(values) for name, values in trace.items()}
    return AlignResult(
        variables=variables,
        dynamic_mask=trace.pop("dynamic_mask"),
        pair_losses=trace.pop("pair_losses"),
        trace=trace,
        confidence=initialise_lib.frame_confidence(predictions, graph),
        pairs=graph.pairs,
        failed=bool(trace["rejected"][-1:].any()),
        fixed_world=known is not None and known.world_from_cam is not None,
    )


def _without_ignored(
    predictions: PairPredictions, pairs: np.ndarray, ignore: np.ndarray
) -> PairPredictions:
    """Ignored pixels get confidence 1, which means nothing to whatever starts the scene."""
    return dataclasses.replace(
        predictions,
        confidence1=jnp.where(ignore[pairs[:, 0]], 1, predictions.confidence1),
        confidence2=jnp.where(ignore[pairs[:, 1]], 1, predictions.confidence2),
    )


def _flow_without_ignored(flow: OpticalFlow | None, ignore: np.ndarray) -> OpticalFlow | None:
    if flow is None:
        return None
    weight = jnp.where(ignore[np.asarray(flow.pairs)[:, 0]], 0, flow.weight)
    return dataclasses.replace(flow, weight=weight)


def _is_two_view(graph, config, key_frame_prior, known) -> bool:
    return (
        graph.num_frames == 2
        and graph.num_pairs == 2
        and graph.symmetric
        and not config.optimise_two_frames
        and key_frame_prior is None
        and known is None
    )


def _first_mask(
    predictions: PairPredictions, graph: PairGraph, flow: OpticalFlow, config: AlignmentConfig
) -> np.ndarray:
    """Masks from two-view scenes, all static where the graph or the flow has one direction only."""
    index12, index21 = (
        index[: graph.num_pairs // 2] for index in flow_term.field_indices(flow, graph)
    )
    if not graph.symmetric or min(index12.min(), index21.min()) < 0:
        return np.zeros((graph.num_frames, *predictions.confidence1.shape[1:]), bool)
    if len(np.unique(flow.pairs, axis=0)) < len(flow.pairs):
        # Several fields of one direction: those of the pairs as they stand in the graph.
        chosen = np.concatenate([index12, index21])
        flow = OpticalFlow(
            pairs=np.asarray(flow.pairs)[chosen],
            flow=flow.flow[chosen],
            weight=flow.weight[chosen],
            name=flow.name,
        )
    return motion_mask.from_two_views(predictions, graph, flow, config)


@functools.partial(jax.jit, static_argnames="config")
def pair_losses(
    variables: AlignmentVariables, problem: objective.Problem, config: AlignmentConfig
) -> Array:
    """Returns (P,), the mean weighted residual of every pair over both of its sides."""
    variables = variables_lib.without_invalid(variables, problem.frame_valid, problem.pair_valid)
    geometry = variables_lib.decode(variables, config, problem.image_size, problem.pair_valid)
    _, sides = pointmap.alignment(
        geometry,
        problem.pixels,
        problem.pointmaps,
        config.distance,
        config.residual_over_scale,
        problem.pair_valid,
    )
    return jnp.mean(sides, axis=0)
