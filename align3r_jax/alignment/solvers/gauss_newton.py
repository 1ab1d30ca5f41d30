"""Reweighted Gauss-Newton over cameras and pair similarities, the depth of pixels eliminated.

    minimise objective.evaluate, one step = reweighted normal equations at the current point
    (`gauss_newton_frames`, `gauss_newton_cameras`), damped (Levenberg-Marquardt), solved
    (`gauss_newton_system`) and taken (`gauss_newton_increments.take`), once or up to three times as
    far, if the true loss falls.

Meant for a lattice of pixels (`alignment.lattice`), where a step costs a few passes over the data;
it works on any. All terms of the objective take part. Cost of a step for T frames with S
observations of L pixels each and u = 7 + 7 S + 7 R unknowns per frame: 2 T L u^2 for the
elimination and (7 T + 7 P)^3 / 3 for the solution, or 2 T u^2 per conjugate-gradient step.
Pairs that share a frame are coupled by its depth, so eliminating pairs first would save nothing.

Over several devices (`Problem.axis`) every device treats some of the frames: the lattice of their
pairs is handed over once (`gauss_newton_slots.divide`). A step then exchanges the blocks of the
equations, the steps of the depths, and one vector of losses; the system is solved by every device.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.alignment import objective
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.solvers import flow_weights
from align3r_jax.alignment.solvers import gauss_newton_cameras as cameras
from align3r_jax.alignment.solvers import gauss_newton_frames as frames_lib
from align3r_jax.alignment.solvers import gauss_newton_increments as increments
from align3r_jax.alignment.solvers import gauss_newton_residuals as residuals
from align3r_jax.alignment.solvers import gauss_newton_slots as slots_lib
from align3r_jax.alignment.solvers import gauss_newton_system as system
from align3r_jax.config import AlignmentConfig
from align3r_jax.structs import AlignmentVariables

Array = jax.Array

FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-4, 1e-6, 1e4
DAMPING_FALL, DAMPING_RISE = 1 / 3, 10.0
# Distances below this share of their mean (and of the mean depth) count as these.
SMALLEST_DISTANCE, SMALLEST_OF_DEPTH = 3e-3, 1e-6
# Reweighted squares lie above the norms they stand for, so their minimum is always too near: the
# best of these multiples is taken. An evaluation costs a fiftieth of the equations.
STEP_LENGTHS = (1.0, 1.8, 3.0)
TOLERANCE = 1e-5  # relative
LARGEST_DEPTH_STEP = 1.0  # of ln depth


@struct.dataclass
class State:
    """Where the loop stands.

    terms: `terms_at` the variables, all of them whether or not they count now. damping: (). failed:
    (), the very start or its loss is not finite, so nothing moves. converged: (), the last step
    lowered the loss by less than `TOLERANCE`; no more are taken.
    """

    variables: AlignmentVariables
    terms: dict[str, Array]
    damping: Array
    failed: Array
    converged: Array


def terms_at(
    variables: AlignmentVariables, problem: objective.Problem, config: AlignmentConfig
) -> dict[str, Array]:
    """Returns `objective.terms_of` the variables, over all devices."""
    return objective.terms_of(objective.own_sums(variables, problem, config), problem)


def flow_counts(terms: dict[str, Array], config: AlignmentConfig, step: Array | int) -> Array:
    """Whether the flow term counts in this step: started, and not above the gate."""
    counts = jnp.asarray(step >= flow_start_step(config))
    if config.flow_gate > 0:
        counts &= terms["flow_12"] + terms["flow_21"] <= config.flow_gate
    return counts


def total_of(terms: dict[str, Array], config: AlignmentConfig, with_flow: Array | bool) -> Array:
    """Returns the loss; with_flow: `flow_counts`."""
    flow = config.flow_weight * (terms["flow_12"] + terms["flow_21"])
    return terms["still"] + jnp.where(with_flow, flow, 0.0)


def flow_start_step(config: AlignmentConfig) -> int:
    """Returns the first step n >= flow_start * gauss_newton_steps."""
    return int(np.ceil(config.flow_start * config.gauss_newton_steps - 1e-9))


def initial_state(
    variables: AlignmentVariables, problem: objective.Problem, config: AlignmentConfig
) -> State:
    """Returns the state before the first step."""
    terms = terms_at(variables, problem, config)
    finite = jnp.isfinite(terms["still"])
    clean = variables_lib.without_invalid(variables, problem.frame_valid, problem.pair_valid)
    for leaf in jax.tree.leaves(clean):
        finite &= jnp.all(jnp.isfinite(leaf))
    return State(
        variables=variables,
        terms=terms,
        damping=jnp.full((), FIRST_DAMPING, problem.pixels.dtype),
        failed=~finite,
        converged=jnp.zeros((), bool),
    )


def smallest_distance(
    terms: dict[str, Array], weight: Array, problem: objective.Problem, depth: Array
) -> Array:
    """Returns the distance below which |r| is rounded off: a share of the mean residual.

    weight: the sum of all weights, over all devices.
    """
    weight = weight / (problem.pointmaps.num_pairs * problem.pixels.shape[1])
    mean = (terms["pointmap_1"] + terms["pointmap_2"]) / jnp.maximum(weight, 1e-12)
    return jnp.maximum(SMALLEST_DISTANCE * mean, SMALLEST_OF_DEPTH * jnp.mean(depth))


def equations(
    variables: AlignmentVariables,
    problem: objective.Problem,
    config: AlignmentConfig,
    trainable: AlignmentVariables,
    slots: slots_lib.Slots,
    *,
    flow_counts: Array | bool,
    damping: Array | float,
    floor: Array | float | None = None,
    terms: dict[str, Array] | None = None,
) -> tuple[list[frames_lib.Blocks], residuals.Scene, increments.Unknowns, Array]:
    """Returns the normal equations at a point, what they were made from, and which depths move.

    problem, slots: of `gauss_newton_slots.divide`. floor: the smallest distance that divides,
    default `smallest_distance`. terms: `terms_at` the variables, if they are known already.
    """
    numbers = increments.unknowns(problem, config, trainable)
    if terms is None:
        terms = terms_at(variables, problem, config)
    if floor is None:
        clean = variables_lib.without_invalid(variables, problem.frame_valid, problem.pair_valid)
        floor = smallest_distance(terms, slots.weight, problem, jnp.exp(clean.log_depth))
    field_weight = None
    if problem.flow is not None:
        field_weight = flow_weights.per_field(
            problem.flow, terms["flow_count"], config, flow_counts
        ).reshape(-1)
    scene = residuals.linearise(
        variables, problem, config, numbers, slots, field_weight, jnp.asarray(floor)
    )
    free = increments.is_free(trainable.log_depth, problem.dynamic.shape[0])
    blocks = [
        frames_lib.normal_equations(scene, problem, config, numbers, jnp.asarray(damping), free)
    ]
    for term in cameras.terms_of(scene.geometry, problem, config):
        blocks.append(cameras.normal_equations(term, scene.geometry, numbers))
    return blocks, scene, numbers, free


def scan(
    state: State,
    problem: objective.Problem,
    first_step: Array,
    *,
    config: AlignmentConfig,
    trainable: AlignmentVariables,
    num_steps: int,
    degrees: slots_lib.Degrees,
) -> tuple[State, dict[str, Array]]:
    """Runs steps first_step ... first_step + num_steps - 1 of config.gauss_newton_steps.

    Pure, with fixed shapes: jit it, vmap it over problems of equal shapes. A step that does not
    lower the loss, or is not finite, is not taken and the damping rises; steps at and beyond
    config.gauss_newton_steps change nothing, nor do steps once the loss rests. trainable: a bool
    per group, or one per frame or pair. degrees: `slots.degrees(problem)` (of all devices), or
    larger; smaller ones fail the state.
    Returns the new state and the trace, name -> (num_steps,): "total" before each step, "accepted",
    "damping", and every term of `objective.term_names`.
    """
    problem, slots = slots_lib.divide(problem, degrees)
    state = dataclasses.replace(state, failed=state.failed | ~slots.complete)

    def body(state, step):
        is_over = state.failed | state.converged | (step >= config.gauss_newton_steps)
        counts = flow_counts(state.terms, config, step)
        trace = {name: state.terms[name] for name in objective.term_names(problem)}
        trace |= {"total": total_of(state.terms, config, counts), "damping": state.damping}
        state, accepted = jax.lax.cond(
            is_over, lambda s, _: (s, jnp.zeros((), bool)), take_step, state, step
        )
        return state, trace | {"accepted": accepted}

    def take_step(state, step):
        counts = flow_counts(state.terms, config, step)
        total = total_of(state.terms, config, counts)
        blocks, scene, numbers, free = equations(
            state.variables, problem, config, trainable, slots,
            flow_counts=counts, damping=state.damping, terms=state.terms,
        )  # fmt: skip
        move = system.solve(blocks, numbers, state.damping)
        depth_move = frames_lib.depth_steps(
            move, scene, problem, config, numbers, state.damping, free
        )

        def longer(factor):
            limit = LARGEST_DEPTH_STEP
            moved = increments.take(
                state.variables,
                factor * move,
                jnp.clip(factor * depth_move, min=-limit, max=limit),
                numbers,
                problem,
                config,
                trainable,
            )
            return moved, objective.own_sums(moved, problem, config)

        tried, sums = jax.lax.map(longer, jnp.asarray(STEP_LENGTHS, total.dtype))
        terms = objective.terms_of(sums, problem)
        reached = total_of(terms, config, counts)
        best = jnp.argmin(jnp.where(jnp.isfinite(reached), reached, jnp.inf))
        moved, terms, reached = jax.tree.map(lambda leaf: leaf[best], (tried, terms, reached))
        better = reached < total
        finite = jnp.all(jnp.isfinite(move)) & jnp.all(jnp.isfinite(depth_move))
        accepted = better & finite

        def choose(new, old):
            return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old)

        damping = state.damping * jnp.where(accepted, DAMPING_FALL, DAMPING_RISE)
        # The flow term joins later, so an early rest is not the end.
        small = accepted & (reached > (1 - TOLERANCE) * total) & (step > flow_start_step(config))
        following = State(
            variables=choose(moved, state.variables),
            terms=choose(terms, state.terms),
            damping=jnp.clip(damping, min=LEAST_DAMPING, max=MOST_DAMPING),
            failed=state.failed,
            converged=small,
        )
        return following, accepted

    return jax.lax.scan(body, state, first_step + jnp.arange(num_steps))
