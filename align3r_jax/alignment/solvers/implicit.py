"""Derivatives of a converged alignment, without the way that led there.

At a minimum x* of L(x; theta) the gradient vanishes, whatever theta is; so (implicit functions)

    d x* / d theta = - H^+ d(dL/dx) / d theta,   H = d2L / dx2

and the cotangent of x* costs one system with H. `refine` makes sure of the minimum by Newton steps,
`attach` gives its derivative.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from align3r_jax.alignment import objective
from align3r_jax.alignment.solvers import curvature
from align3r_jax.config import AlignmentConfig
from align3r_jax.structs import AlignmentVariables, Array

_FIRST_DAMPING, _FALL, _RISE, _MOST_DAMPING = 1e-3, 0.1, 10.0, 1e3
_STEP_SIZES = (1.0, 0.5, 0.2, 0.05, 0.01)


@dataclasses.dataclass(frozen=True)
class ImplicitConfig:
    """How the minimum is refined and its system solved.

    newton_steps: towards the minimum, 0 to take the point as it is. conjugate_gradients: products
    with the Hessian per system at most; tolerance: residual of a system at which it ends. damping:
    added to the curvature, as a share of every variable's own.
    """

    newton_steps: int = 10
    conjugate_gradients: int = 300
    tolerance: float = 1e-7
    damping: float = 1e-8


def refine(
    variables: AlignmentVariables,
    problem: objective.Problem,
    config: AlignmentConfig,
    trainable: AlignmentVariables,
    settings: ImplicitConfig = ImplicitConfig(),
    *,
    world_is_free: bool = True,
) -> tuple[AlignmentVariables, AlignmentVariables, Array]:
    """Takes damped Newton steps downhill.

    x <- x - a (H + lambda M)^-1 dL/dx, a of several step sizes the one with the lowest loss, lambda
    raised where none lowers it. Returns the variables, the diagonal M of the curvature there, and
    (newton_steps + 1,) the norm of the gradient by all that is free, before every step and at the
    end.
    """

    def loss(x):
        return objective.evaluate(x, problem, config, True)[0]

    def step(carry, number):
        x, damping, _ = carry
        system = curvature.linearise(x, problem, config, trainable, world_is_free=world_is_free)
        before, pull = jax.value_and_grad(loss)(x)
        pull = curvature.keep(curvature.free_entries(x, problem, trainable), pull)
        is_end = number == settings.newton_steps
        move = curvature.solve(
            system,
            pull,
            damping=damping,
            steps=jnp.where(is_end, 0, settings.conjugate_gradients),
            tolerance=settings.tolerance,
        )
        sizes = jnp.array(_STEP_SIZES, before.dtype)
        after = jax.lax.map(lambda a: loss(_moved(x, move, a)), sizes)
        after = jnp.where(jnp.isfinite(after), after, jnp.inf)
        best = jnp.argmin(after)
        better = (after[best] < before) & ~is_end
        damping = jnp.where(
            better,
            jnp.maximum(damping * _FALL, settings.damping),
            jnp.minimum(damping * _RISE, _MOST_DAMPING),
        )
        moved = _moved(x, move, sizes[best])
        x = jax.tree.map(lambda new, old: jnp.where(better, new, old), moved, x)
        return (x, damping, system.diagonal), jnp.sqrt(curvature.inner(pull, pull))

    first = jnp.full((), _FIRST_DAMPING, variables.log_depth.dtype)
    carry = variables, first, jax.tree.map(jnp.zeros_like, variables)
    (variables, _, diagonal), norms = jax.lax.scan(
        step, carry, jnp.arange(settings.newton_steps + 1)
    )
    return variables, diagonal, norms


def _moved(x, move, size):
    return jax.tree.map(lambda a, b: a - size * b, x, move)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def attach(
    solution: AlignmentVariables,
    held: AlignmentVariables,
    problem: objective.Problem,
    trainable: AlignmentVariables,
    diagonal: AlignmentVariables,
    config: AlignmentConfig,
    settings: ImplicitConfig,
    world_is_free: bool,
) -> AlignmentVariables:
    """Returns the solution, as a function of the problem and of what was held.

    solution: a minimum of the problem over what is `trainable` (leaves as arrays), the rest being
    as in `held`. diagonal: of the curvature there (`refine`). No gradient passes to the solution
    itself: where the solver began does not matter.
    """
    del problem, diagonal, config, settings, world_is_free
    return _merged(solution, held, trainable)


def _merged(solution, held, trainable):
    def leaf(free, moved, kept):
        free = jnp.asarray(free)
        return jnp.where(free.reshape(free.shape + (1,) * (moved.ndim - 1)), moved, kept)

    return jax.tree.map(leaf, trainable, solution, held)


def _attach_forward(solution, held, problem, trainable, diagonal, *static):
    result = attach(solution, held, problem, trainable, diagonal, *static)
    return result, (result, held, problem, trainable, diagonal)


def _attach_backward(config, settings, world_is_free, saved, cotangent):
    solution, held, problem, trainable, diagonal = saved
    system = curvature.linearise(
        solution, problem, config, trainable, world_is_free=world_is_free, diagonal=diagonal
    )
    weights = curvature.solve(
        system,
        cotangent,
        damping=settings.damping,
        steps=settings.conjugate_gradients,
        tolerance=settings.tolerance,
    )

    def force(kept, data):
        return curvature.gradient(_merged(solution, kept, trainable), data, config)

    _, pull = jax.vjp(force, held, problem)
    by_held, by_problem = pull(jax.tree.map(jnp.negative, weights))
    direct = jax.vjp(lambda kept: _merged(solution, kept, trainable), held)[1](cotangent)[0]
    return None, jax.tree.map(jnp.add, by_held, direct), by_problem, None, None


attach.defvjp(_attach_forward, _attach_backward)
