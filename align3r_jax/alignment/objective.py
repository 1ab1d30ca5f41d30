"""The total loss: a weighted sum of terms, each also returned by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.alignment import variables as variables_module
from align3r_jax.alignment.terms import (
    depth_prior,
    flow,
    known_cameras,
    pointmap,
    prior_depth,
    smoothness,
)
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import warp
from align3r_jax.structs import (
    AlignmentVariables,
    Array,
    OpticalFlow,
    PairGraph,
    PairPredictions,
    TermWeights,
)

# The names in the trace, in the order of the paper's equation; all unweighted.
TERMS = ("pointmap_1", "pointmap_2", "smoothness", "flow_12", "flow_21", "depth")
# Ours, in the trace only of problems that have them.
USER_TERMS = ("known_cameras", "depth_prior")


@struct.dataclass
class Problem:
    """The data of one alignment, laid out once for the loop. A pytree: stack several and vmap.

    pixels: (2, L) x and y of the pixels. initial_log_depth: (T, L) and dynamic: (T, L) bool, for
    the depth regulariser. frame_valid: (T,), pair_valid: (P,), 0 or 1: frames and pairs with 0 only
    fill up the shape, whatever they hold, and the loss is that of the others alone; None: all 1.
    known_cameras: soft priors on cameras. depth_prior: what the depth should look like.
    axis: name of the mesh axis over which the chunks of point maps and flow are spread; all else is
    the same on every device. term_weights: used instead of the config's (not by Gauss-Newton).
    """

    pointmaps: pointmap.PointmapData
    flow: flow.FlowData | None
    initial_log_depth: Array
    dynamic: Array
    pixels: Array
    image_size: tuple[int, int] = struct.field(pytree_node=False)
    frame_valid: Array | None = None
    pair_valid: Array | None = None
    known_cameras: known_cameras.CameraPriorData | None = None
    depth_prior: prior_depth.PriorDepthData | None = None
    axis: str | None = struct.field(pytree_node=False, default=None)
    term_weights: TermWeights | None = None


def weights_of(term_weights: TermWeights | None, config: AlignmentConfig) -> TermWeights:
    """Returns the weights that hold: those given, the config's where there are none."""
    names = [field.name for field in dataclasses.fields(TermWeights)]
    given = {name: getattr(term_weights, name, None) for name in names}
    return TermWeights(
        **{
            name: getattr(config, f"{name}_weight") if value is None else value
            for name, value in given.items()
        }
    )


def _counts(weight: Array | float) -> bool:
    """Whether a term takes part: all but those that the config leaves out."""
    return not isinstance(weight, int | float) or weight > 0


def term_names(problem: Problem) -> tuple[str, ...]:
    """Returns the terms of this problem that belong into its trace."""
    return TERMS + tuple(name for name in USER_TERMS if getattr(problem, name) is not None)


def prepare(
    predictions: PairPredictions,
    graph: PairGraph,
    optical_flow: OpticalFlow | None,
    initial: AlignmentVariables,
    dynamic_mask: Array | None,
    config: AlignmentConfig,
    frame_valid: Array | None = None,
    pair_valid: Array | None = None,
    *,
    known: variables_module.Known | None = None,
    ignore: Array | None = None,
    depth_prior: Array | None = None,
    axis: str | None = None,
    term_weights: TermWeights | None = None,
) -> Problem:
    """Returns the problem; traceable, also in the lists of pairs.

    dynamic_mask: (T, H, W) bool, None: nothing moves by itself. frame_valid (T,), pair_valid (P,):
    bool, what only fills up the shape is False. None: all valid. known: its soft priors count.
    ignore: (T, H, W) bool, pixels without weight in any term. depth_prior: (T, H, W), NaN where
    unknown; counts with `config.depth_prior_weight`. axis: name of the mesh axis over which
    predictions, graph and flow are spread; pair_valid then counts the pairs of all devices.
    term_weights: instead of the config's.
    """
    frames, height, width = initial.log_depth.shape
    dtype = jnp.promote_types(jnp.result_type(initial.log_depth), jnp.float32)
    if dynamic_mask is None:
        dynamic_mask = jnp.zeros((frames, height, width), bool)
    if frame_valid is not None:
        frame_valid = jnp.asarray(frame_valid).astype(dtype)
    if pair_valid is not None:
        pair_valid = jnp.asarray(pair_valid).astype(dtype)
    pointmaps = pointmap.prepare(
        predictions,
        graph,
        config.confidence_weight,
        pair_valid,
        storage=None if config.storage_dtype == "float32" else config.storage_dtype,
        axis=axis,
    )
    weights = weights_of(term_weights, config)
    if not _counts(weights.flow):
        optical_flow = None
    fields = _prepare_flow(optical_flow, graph, dynamic_mask, config, pair_valid, axis)
    if ignore is not None:
        ignored = jnp.asarray(ignore, bool).reshape(frames, -1)
        weight = jnp.where(ignored[pointmaps.frame], 0, pointmaps.weight)
        pointmaps = dataclasses.replace(pointmaps, weight=weight)
        if fields is not None:
            trust = jnp.where(ignored[fields.source], 0, fields.trust)
            fields = dataclasses.replace(fields, trust=trust)
    prior = None
    if depth_prior is not None and _counts(weights.depth_prior):
        start_depth = jnp.exp(initial.log_depth) if config.depth_prior_shift else None
        prior = prior_depth.prepare(depth_prior, ignore, depth=start_depth)
    return Problem(
        pointmaps=pointmaps,
        flow=fields,
        # A copy: the variables' own buffers are donated to the loop.
        initial_log_depth=jnp.array(initial.log_depth).reshape(frames, -1),
        dynamic=jnp.asarray(dynamic_mask, bool).reshape(frames, -1),
        pixels=warp.pixel_grid(height, width, initial.log_depth.dtype).reshape(-1, 2).T,
        image_size=(height, width),
        frame_valid=frame_valid,
        pair_valid=pair_valid,
        known_cameras=known_cameras.prepare(known, frames, dtype),
        depth_prior=prior,
        axis=axis,
        term_weights=term_weights,
    )


def _prepare_flow(
    optical_flow, graph, dynamic_mask, config, pair_valid, axis
) -> flow.FlowData | None:
    if optical_flow is None:
        return None
    index12, index21 = flow.field_indices(optical_flow, graph, axis)
    if pair_valid is not None:
        index12, index21 = (jnp.where(pair_valid > 0, index, -1) for index in (index12, index21))
    # A pair and its reverse share their two fields, unless every pair has two of its own.
    equal_roles = graph.symmetric and optical_flow.flow.shape[0] != 2 * graph.num_pairs
    static = ~jnp.asarray(dynamic_mask, bool)
    return flow.prepare(
        optical_flow,
        index12,
        index21,
        static,
        config.flow_use_weight,
        equal_roles,
        axis=axis,
    )


def with_dynamic_mask(problem: Problem, dynamic_mask: Array) -> Problem:
    """Returns the problem with another mask of moving pixels, (T, H, W) bool."""
    dynamic_mask = jnp.asarray(dynamic_mask, bool)
    fields = problem.flow
    if fields is not None:
        fields = dataclasses.replace(fields, static=flow.static_weight(~dynamic_mask))
    dynamic = dynamic_mask.reshape(problem.dynamic.shape)
    return dataclasses.replace(problem, flow=fields, dynamic=dynamic)


def flow_start_iteration(config: AlignmentConfig) -> int:
    """Returns the first iteration n >= flow_start * iterations, at which the flow term counts."""
    return int(np.ceil(config.flow_start * config.iterations - 1e-9))


def evaluate(
    variables: AlignmentVariables,
    problem: Problem,
    config: AlignmentConfig,
    with_flow: Array | bool = True,
) -> tuple[Array, dict[str, Array]]:
    """L = L_pointmap + w_s L_smooth + w_f [L_flow <= gate] L_flow + w_d L_depth + w_c L_cameras
    + w_p L_prior, the last two in problems that have them.

    with_flow: whether the iteration has reached the start of the flow term. Returns L and the
    terms by name, unweighted (the flow terms also while the gate drops them; 0 before the start),
    and "pairs": (2, P), mean weighted residual of both sides of every pair. With `problem.axis` L
    and the parts of the point maps are this device's share of them (`value_and_gradient` sums up).
    """
    frame_valid, pair_valid = problem.frame_valid, problem.pair_valid
    weights: Any = weights_of(problem.term_weights, config)  # none of them is None
    variables = variables_module.without_invalid(variables, frame_valid, pair_valid)
    geometry = variables_module.decode(variables, config, problem.image_size, pair_valid)
    total, pairs = pointmap.alignment(
        geometry,
        problem.pixels,
        problem.pointmaps,
        config.distance,
        config.residual_over_scale,
        pair_valid,
        config.distance_floor,
    )
    terms = {"pairs": pairs}
    for side in (0, 1):
        mean = variables_module.mean_of_valid(pairs[side], pair_valid)
        terms[f"pointmap_{side + 1}"] = mean
    zero = jnp.zeros_like(total)

    def share(value):  # of a term that every device computes
        return value if problem.axis is None else value / jax.lax.axis_size(problem.axis)

    terms["smoothness"] = zero
    if geometry.world_from_cam.shape[0] > 1:
        terms["smoothness"] = smoothness.smoothness(
            geometry.world_from_cam, config.smoothness_translation_weight, frame_valid
        )
    total = total + share(weights.smoothness * terms["smoothness"])

    terms["flow_12"] = terms["flow_21"] = zero
    fields = problem.flow
    if fields is not None:

        def shares(scene):
            return flow.flow_shares(
                scene, problem.pixels, fields, config.flow_pixel_cut, problem.axis
            )

        if with_flow is True:
            own, (terms["flow_12"], terms["flow_21"]) = shares(geometry)
        else:
            own, (terms["flow_12"], terms["flow_21"]) = jax.lax.cond(
                with_flow, shares, lambda _: ((zero, zero), (zero, zero)), geometry
            )
        both = own[0] + own[1]
        if config.flow_gate > 0:
            # parity: a loss above the gate is dropped for this iteration, not capped.
            above = terms["flow_12"] + terms["flow_21"] > config.flow_gate
            both = jnp.where(above, 0.0, both)
        total = total + weights.flow * both

    terms["depth"] = zero
    if _counts(weights.depth_regulariser):
        initial = problem.initial_log_depth
        if frame_valid is not None:
            initial = jnp.where(frame_valid[:, None] > 0, initial, 0)
        terms["depth"] = depth_prior.log_depth_change(
            variables.log_depth.reshape(problem.dynamic.shape),
            initial,
            problem.dynamic,
            frame_valid,
        )
        total = total + share(weights.depth_regulariser * terms["depth"])

    if problem.known_cameras is not None:
        terms["known_cameras"] = known_cameras.camera_prior(
            geometry.world_from_cam, geometry.focal, problem.known_cameras, frame_valid
        )
        total = total + share(weights.known_camera * terms["known_cameras"])
    if problem.depth_prior is not None:
        terms["depth_prior"] = prior_depth.shape_error(
            variables.log_depth.reshape(problem.dynamic.shape), problem.depth_prior, frame_valid
        )
        total = total + share(weights.depth_prior * terms["depth_prior"])
    return total, terms


def value_and_gradient(
    variables: AlignmentVariables,
    problem: Problem,
    config: AlignmentConfig,
    with_flow: Array | bool = True,
) -> tuple[tuple[Array, dict[str, Array]], AlignmentVariables]:
    """Returns ((L, terms), gradient of L) of `evaluate`, over all devices of `problem.axis`.

    With an axis three sums go over the devices: the sums of the flow term, the gradient of the log
    depth, and everything small in one vector.
    """
    evaluated = jax.value_and_grad(evaluate, has_aux=True)(variables, problem, config, with_flow)
    if problem.axis is None:
        return evaluated
    (total, terms), gradient = evaluated
    log_depth = jax.lax.psum(gradient.log_depth, problem.axis)
    others = dataclasses.replace(gradient, log_depth=jnp.zeros(()))
    vector, restore = jax.flatten_util.ravel_pytree((total, terms["pairs"], others))
    total, pairs, others = restore(jax.lax.psum(vector, problem.axis))
    terms = dict(terms, pairs=pairs)
    for side in (0, 1):
        mean = variables_module.mean_of_valid(pairs[side], problem.pair_valid)
        terms[f"pointmap_{side + 1}"] = mean
    return (total, terms), dataclasses.replace(others, log_depth=log_depth)


@struct.dataclass
class Sums:
    """What this device adds to the loss at one point; no device has talked to another yet.

    still: (), all of it but the flow. pairs: (2, P) as of `evaluate`. flow_cost, flow_count: (R,),
    of `terms.flow.robust_sums`. others: the terms that every device has whole, by name.
    """

    still: Array
    pairs: Array
    flow_cost: Array
    flow_count: Array
    others: dict[str, Array]


def own_sums(variables: AlignmentVariables, problem: Problem, config: AlignmentConfig) -> Sums:
    """Returns what the pairs and fields of this device say of the variables."""
    still_problem = dataclasses.replace(problem, flow=None)
    still, terms = evaluate(variables, still_problem, config)
    cost = count = jnp.zeros(1, still.dtype)
    fields = problem.flow
    if fields is not None:
        frame_valid, pair_valid = problem.frame_valid, problem.pair_valid
        clean = variables_module.without_invalid(variables, frame_valid, pair_valid)
        geometry = variables_module.decode(clean, config, problem.image_size, pair_valid)
        cost, count = flow.own_sums(geometry, problem.pixels, fields, config.flow_pixel_cut)
    whole = [name for name in term_names(problem) if not name.startswith(("pointmap", "flow"))]
    return Sums(still, terms["pairs"], cost, count, {name: terms[name] for name in whole})


def terms_of(sums: Sums, problem: Problem) -> dict[str, Array]:
    """Returns the terms of `evaluate` without its gate, over all devices of `problem.axis`.

    sums: at one point or, with leading axes, at several: one sum goes over the devices for all.
    Beside the terms "still", the weighted sum of all but the flow, and "flow_count", (R,).
    """
    over = sums.still, sums.pairs, sums.flow_cost, sums.flow_count
    if problem.axis is not None:
        vector, restore = jax.flatten_util.ravel_pytree(over)
        over = restore(jax.lax.psum(vector, problem.axis))

    def finish(still, pairs, cost, count):
        terms = {"still": still, "pairs": pairs, "flow_count": count}
        for side in (0, 1):
            mean = variables_module.mean_of_valid(pairs[side], problem.pair_valid)
            terms[f"pointmap_{side + 1}"] = mean
        terms["flow_12"], terms["flow_21"] = flow.mean_of(cost, count)
        return terms

    for _ in range(sums.still.ndim):
        finish = jax.vmap(finish)
    return finish(*over) | sums.others
