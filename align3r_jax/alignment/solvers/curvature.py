"""The Hessian of the alignment as a linear map, and systems with it solved by conjugate gradients.

What the loss cannot see has no curvature and is projected away: the lengths of quaternions, the
mean of the pairs' log scales, the world's frame (where no pose is known), depths without an
observation. So a solution is the one that moves nothing along these.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from align3r_jax.alignment import objective
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import rigid
from align3r_jax.structs import AlignmentVariables, Array

_Tree = TypeVar("_Tree")  # variables, or one group of them
_SMALL_GROUPS = (
    "frame_quaternion", "frame_translation", "log_focal", "principal_point",
    "pair_quaternion", "pair_translation", "pair_log_scale", "pair_adaptor",
)  # fmt: skip
_PINNED = 1e-9  # of the mean curvature: depths with less have no observation
_LEAST = 1e-6  # of the largest curvature of its group: what the preconditioner assumes at least
_INDEPENDENT = 1e-10  # eigenvalues of a Gram matrix, of its largest


class System(NamedTuple):
    """(P H P + damping M) at one point. free: tree of bool; diagonal: M, tree; gauge: (k, n)."""

    variables: AlignmentVariables
    problem: objective.Problem
    free: AlignmentVariables
    diagonal: AlignmentVariables
    gauge: Array
    config: AlignmentConfig


def free_entries(
    variables: AlignmentVariables, problem: objective.Problem, trainable: AlignmentVariables
) -> AlignmentVariables:
    """Returns a tree of bool arrays in the variables' shapes: what the solver may move.

    trainable: as of `variables.trainable`, or its leaves as arrays. Frames and pairs that only fill
    up the shape are not free, and neither are coded translations of exactly 0 (their derivative is
    0, see `rigid.decode_translation`): these hold the origin of the world.
    """
    masks = {}
    for field in dataclasses.fields(variables):
        name, value = field.name, getattr(variables, field.name)
        tail = (1,) * (value.ndim - 1)
        free = jnp.asarray(getattr(trainable, name), bool)
        free = jnp.broadcast_to(free.reshape(free.shape + tail if free.ndim else ()), value.shape)
        valid = problem.pair_valid if name.startswith("pair") else problem.frame_valid
        if valid is not None and valid.shape[0] == value.shape[0]:
            free &= (valid > 0).reshape((-1, *tail))
        if name.endswith("translation"):
            free &= value != 0
        masks[name] = free
    return AlignmentVariables(**masks)


def keep(free: _Tree, values: _Tree) -> _Tree:
    """Returns the values where they are free, 0 elsewhere."""
    return jax.tree.map(lambda mask, value: jnp.where(mask, value, 0), free, values)


def gradient(
    variables: AlignmentVariables, problem: objective.Problem, config: AlignmentConfig
) -> AlignmentVariables:
    """Returns the gradient of the loss with its flow term."""
    return jax.grad(lambda x: objective.evaluate(x, problem, config, True)[0])(variables)


def hessian_product(system: System, direction: AlignmentVariables) -> AlignmentVariables:
    """Returns P H P v: forward derivative of the gradient."""
    _, product = jax.jvp(
        lambda x: gradient(x, system.problem, system.config),
        (system.variables,),
        (project(system, direction),),
    )
    return project(system, product)


def linearise(
    variables: AlignmentVariables,
    problem: objective.Problem,
    config: AlignmentConfig,
    trainable: AlignmentVariables,
    *,
    world_is_free: bool,
    diagonal: AlignmentVariables | None = None,
) -> System:
    """Returns the system at a point. world_is_free: no pose is known, held or soft.

    diagonal: of the system at this point, if it is known already.
    """
    free = free_entries(variables, problem, trainable)
    system = System(variables, problem, free, free, jnp.zeros((0, 1)), config)
    if diagonal is None:
        diagonal = _diagonal(system)
    # A depth that nothing observes is undetermined, and takes no part.
    curvature = jnp.where(free.log_depth, diagonal.log_depth, 0)
    pinned = curvature > _PINNED * jnp.mean(curvature)
    free = dataclasses.replace(free, log_depth=free.log_depth & pinned)
    system = system._replace(free=free, diagonal=diagonal)
    if world_is_free:
        system = system._replace(gauge=_gauge(system))
    return system


def solve(
    system: System,
    right: AlignmentVariables,
    *,
    damping: Array | float,
    steps: Array | int,
    tolerance: float,
) -> AlignmentVariables:
    """Returns v with (P H P + damping M) v = P right, by preconditioned conjugate gradients.

    Ends after `steps` products with the Hessian, when the residual is `tolerance` of the right
    side, or where the curvature is not positive: what is found until then points downhill.
    """

    def precondition(v):
        scaled = jax.tree.map(lambda x, m: x / jnp.where(m > 0, m, 1), v, system.diagonal)
        return project(system, scaled)

    right = project(system, right)
    least = tolerance**2 * inner(right, right)
    first = precondition(right)
    found = jax.tree.map(jnp.zeros_like, right)
    state = (found, right, first, inner(right, first), jnp.zeros((), jnp.int32), jnp.array(True))

    def goes_on(state):
        _, residual, _, _, count, good = state
        return good & (count < steps) & (inner(residual, residual) > least)

    def step(state):
        found, residual, direction, square, count, _ = state
        product = hessian_product(system, direction)
        product = jax.tree.map(
            lambda a, m, x: a + damping * m * x, product, system.diagonal, direction
        )
        bend = inner(direction, product)
        good = bend > 0
        length = jnp.where(good, square / jnp.where(good, bend, 1), 0)
        found = jax.tree.map(lambda a, b: a + length * b, found, direction)
        residual = jax.tree.map(lambda a, b: a - length * b, residual, product)
        following = precondition(residual)
        new = inner(residual, following)
        ratio = new / jnp.where(square > 0, square, 1)
        direction = jax.tree.map(lambda a, b: a + ratio * b, following, direction)
        return found, residual, direction, new, count + 1, good

    return project(system, jax.lax.while_loop(goes_on, step, state)[0])


def inner(first: AlignmentVariables, second: AlignmentVariables) -> Array:
    """Returns the scalar product of two trees."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), first, second)
    return sum(jax.tree.leaves(products))


def project(system: System, values: AlignmentVariables) -> AlignmentVariables:
    """Returns the values without the parts that the loss cannot see."""
    values = _without_lengths(system, keep(system.free, values))
    if system.gauge.shape[0] == 0:
        return values
    vector, restore = ravel_pytree(values)
    share = jnp.matmul(system.gauge, vector, precision="highest")
    return restore(vector - jnp.matmul(share, system.gauge, precision="highest"))


def _without_lengths(system: System, values: AlignmentVariables) -> AlignmentVariables:
    """Without changes of quaternions along themselves and of the mean log scale of the pairs."""
    variables, changes = system.variables, {}
    for name in ("frame_quaternion", "pair_quaternion"):
        own = keep(getattr(system.free, name), getattr(variables, name))
        square = jnp.sum(own * own, axis=-1, keepdims=True)
        change = getattr(values, name)
        along = jnp.sum(own * change, axis=-1, keepdims=True) / jnp.where(square > 0, square, 1)
        changes[name] = change - along * own
    if system.config.normalise_pair_scale:
        free = system.free.pair_log_scale
        mean = jnp.sum(values.pair_log_scale) / jnp.maximum(jnp.sum(free), 1)
        changes["pair_log_scale"] = jnp.where(free, values.pair_log_scale - mean, 0)
    return dataclasses.replace(values, **changes)


def _diagonal(system: System) -> AlignmentVariables:
    """Curvature of every variable, positive: exact for depths, otherwise by probes with signs.

    A depth meets only cameras in the loss, a pair only frames; so one product with signs on one
    component of all of them gives the curvature of each, up to the little that they do share.
    """
    variables = system.variables

    def add(total, number):
        probe = keep(system.free, _probe(variables, number))
        _, product = jax.jvp(
            lambda x: gradient(x, system.problem, system.config), (variables,), (probe,)
        )
        return jax.tree.map(lambda t, v, h: t + v * h, total, probe, product), None

    zero = jax.tree.map(jnp.zeros_like, variables)
    total, _ = jax.lax.scan(add, zero, jnp.arange(_num_probes(variables)))
    positive = {}
    for field in dataclasses.fields(total):
        size = jnp.abs(getattr(total, field.name))
        least = jnp.maximum(_LEAST * jnp.max(size), jnp.finfo(size.dtype).tiny * 1e6)
        # Depths without an observation keep their 0 until `linearise` has seen it.
        positive[field.name] = size if field.name == "log_depth" else jnp.maximum(size, least)
    return AlignmentVariables(**positive)


def _num_probes(variables: AlignmentVariables) -> int:
    return 1 + sum(getattr(variables, name)[0].size for name in _SMALL_GROUPS)


def _probe(variables: AlignmentVariables, number: Array) -> AlignmentVariables:
    """Ones on all depths (number 0), or signs on one component of one small group."""
    direction = {"log_depth": jnp.full_like(variables.log_depth, number == 0)}
    first = 1
    for index, name in enumerate(_SMALL_GROUPS):
        value = getattr(variables, name)
        signs = jax.random.rademacher(jax.random.key(index), value.shape[:1], value.dtype)
        components = value[0].size
        chosen = (number == first + jnp.arange(components)).astype(value.dtype)
        direction[name] = (signs[:, None] * chosen).reshape(value.shape)
        first += components
    return AlignmentVariables(**direction)


def _gauge(system: System) -> Array:
    """Returns (6, n), orthonormal rows or zeros: turns and shifts of the whole world."""
    variables, problem, free = system.variables, system.problem, system.free
    clean = variables_lib.without_invalid(variables, problem.frame_valid, problem.pair_valid)
    geometry = variables_lib.decode(clean, system.config, problem.image_size, problem.pair_valid)
    zero = jax.tree.map(jnp.zeros_like, variables)
    axes = jnp.eye(3, dtype=variables.log_depth.dtype)

    def coded(code, move):
        """A motion of decoded translations as one of their codes."""
        return move * jnp.exp(-jnp.abs(code))

    def finish(changes, moved):
        # Translations held at exactly 0 forbid what would move them.
        allowed: Array | bool = True
        for name, move in moved.items():
            code = getattr(clean, name)
            valid = problem.pair_valid if name.startswith("pair") else problem.frame_valid
            held = (code == 0) if valid is None else (code == 0) & (valid > 0)[:, None]
            allowed &= ~jnp.any(held & (jnp.abs(move) > 0))
            changes[name] = coded(code, move)
        tree = _without_lengths(system, keep(free, dataclasses.replace(zero, **changes)))
        return jnp.where(allowed, ravel_pytree(tree)[0], 0)

    def turned(quaternion, axis):
        vector, scalar = quaternion[:, :3], quaternion[:, 3:]
        towards = scalar * axis + jnp.cross(jnp.broadcast_to(axis, vector.shape), vector)
        along = -jnp.sum(vector * axis, axis=-1, keepdims=True)
        return jnp.concatenate([towards, along], axis=-1) / 2

    places = {
        name: rigid.decode_translation(getattr(clean, name))
        for name in ("frame_translation", "pair_translation")
    }
    rows = []
    for axis in axes:
        turns = {
            name: turned(getattr(clean, name), axis)
            for name in ("frame_quaternion", "pair_quaternion")
        }
        spins = {
            name: jnp.cross(jnp.broadcast_to(axis, place.shape), place)
            for name, place in places.items()
        }
        rows.append(finish(turns, spins))
        shift = jnp.broadcast_to(axis, places["frame_translation"].shape)
        rows.append(
            finish(
                {},
                {"frame_translation": shift,
                 "pair_translation": axis / geometry.pair_scale[:, None]},
            )
        )  # fmt: skip
    generators = jnp.stack(rows)
    gram = jnp.matmul(generators, generators.T, precision="highest")
    values, vectors = jnp.linalg.eigh(gram)
    usable = values > _INDEPENDENT * jnp.maximum(values[-1], 1e-30)
    scale = jnp.where(usable, 1 / jnp.sqrt(jnp.where(usable, values, 1)), 0)
    return jnp.matmul(scale[:, None] * vectors.T, generators, precision="highest")
