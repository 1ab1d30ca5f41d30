"""The total loss: a weighted sum of terms, each also returned by name."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.alignment import variables as variables_module
from align3r_jax.alignment.terms import depth_prior, flow, pointmap, smoothness
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import warp
from align3r_jax.structs import (
    AlignmentVariables,
    Array,
    OpticalFlow,
    PairGraph,
    PairPredictions,
)

# The names in the trace, in the order of the paper's equation; all unweighted.
TERMS = ("pointmap_1", "pointmap_2", "smoothness", "flow_12", "flow_21", "depth")


@struct.dataclass
class Problem:
    """The data of one alignment, laid out once for the loop. A pytree: stack several and vmap.

    pixels: (2, L) x and y of the pixels. initial_log_depth: (T, L) and dynamic: (T, L) bool, for
    the depth regulariser.
    """

    pointmaps: pointmap.PointmapData
    flow: flow.FlowData | None
    initial_log_depth: Array
    dynamic: Array
    pixels: Array
    image_size: tuple[int, int] = struct.field(pytree_node=False)


def prepare(
    predictions: PairPredictions,
    graph: PairGraph,
    optical_flow: OpticalFlow | None,
    initial: AlignmentVariables,
    dynamic_mask: Array | None,
    config: AlignmentConfig,
) -> Problem:
    """Returns the problem. dynamic_mask: (T, H, W) bool, None: nothing moves by itself."""
    frames, height, width = initial.log_depth.shape
    if dynamic_mask is None:
        dynamic_mask = jnp.zeros((frames, height, width), bool)
    fields = None
    if optical_flow is not None and config.flow_weight > 0:
        fields = flow.prepare(
            optical_flow,
            *flow.field_indices(optical_flow, graph),
            ~jnp.asarray(dynamic_mask, bool),
            config.flow_use_weight,
        )
    return Problem(
        pointmaps=pointmap.prepare(predictions, graph, config.confidence_weight),
        flow=fields,
        # A copy: the variables' own buffers are donated to the loop.
        initial_log_depth=jnp.array(initial.log_depth).reshape(frames, -1),
        dynamic=jnp.asarray(dynamic_mask, bool).reshape(frames, -1),
        pixels=warp.pixel_grid(height, width, initial.log_depth.dtype).reshape(-1, 2).T,
        image_size=(height, width),
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
    """L = L_pointmap + w_s L_smooth + w_f [L_flow <= gate] L_flow + w_d L_depth.

    with_flow: whether the iteration has reached the start of the flow term. Returns L and the
    terms by name, unweighted (the flow terms also while the gate drops them; 0 before the start),
    and "pairs": (2, P), mean weighted residual of both sides of every pair.
    """
    geometry = variables_module.decode(variables, config, problem.image_size)
    total, pairs = pointmap.alignment(
        geometry, problem.pixels, problem.pointmaps, config.distance, config.residual_over_scale
    )
    terms = {"pointmap_1": jnp.mean(pairs[0]), "pointmap_2": jnp.mean(pairs[1]), "pairs": pairs}
    zero = jnp.zeros_like(total)

    terms["smoothness"] = zero
    if geometry.world_from_cam.shape[0] > 1:
        terms["smoothness"] = smoothness.smoothness(
            geometry.world_from_cam, config.smoothness_translation_weight
        )
    total = total + config.smoothness_weight * terms["smoothness"]

    terms["flow_12"] = terms["flow_21"] = zero
    fields = problem.flow
    if fields is not None:
        terms["flow_12"], terms["flow_21"] = jax.lax.cond(
            with_flow,
            lambda scene: flow.flow_terms(scene, problem.pixels, fields, config.flow_pixel_cut),
            lambda scene: (zero, zero),
            geometry,
        )
        both = terms["flow_12"] + terms["flow_21"]
        if config.flow_gate > 0:
            # parity: a loss above the gate is dropped for this iteration, not capped.
            both = jnp.where(both > config.flow_gate, 0.0, both)
        total = total + config.flow_weight * both

    terms["depth"] = zero
    if config.depth_regulariser_weight > 0:
        terms["depth"] = depth_prior.log_depth_change(
            variables.log_depth.reshape(problem.dynamic.shape),
            problem.initial_log_depth,
            problem.dynamic,
        )
        total = total + config.depth_regulariser_weight * terms["depth"]
    return total, terms
