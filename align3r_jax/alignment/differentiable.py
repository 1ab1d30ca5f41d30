"""Global alignment as a layer: its result has gradients by everything that went in.

    variables, trace = align_unrolled(predictions, graph, priors, config)
    variables, trace = align_implicit(predictions, graph, priors, config)

Both take what `alignment.solve.align` takes. Gradients reach point maps, confidences, flow and its
weights, the depth prior, known cameras, the start (if it is given: `priors.start`) and
`term_weights`.

| | unrolled | implicit |
|---|---|---|
| what is differentiated | the steps that were taken | the minimum |
| needs | few iterations, see below | a minimum, see trace["stationarity"] |
| gradients by the start | yes | only by what is held; the minimum does not depend on the rest |
| memory | about 2 sqrt(iterations) copies of the variables and Adam's moments | one system |
| time | about 5 alignments | one alignment, Newton steps, one system per gradient |

Unroll tens of iterations, not hundreds: near a minimum the steps of Adam are gradients divided
by their own size, and the derivative of such steps grows with every further one. It is the true
derivative (differences agree), but of a jitter. There the implicit gradient is the one to take.

Switches have no gradient, their choice is taken as it was: the start found from the pairs, motion
masks, the gate and the cut of the flow, rejected steps, which pixels are valid. The l1 distance has
a kink where a residual is 0: gradients of gradients grow without bound near it, so give
`config.distance_floor` (0.1 to 1 % of the depth, say) where residuals may vanish. Steps that were
rejected (trace["rejected"]) may make an unrolled gradient NaN.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from align3r_jax.alignment import solve
from align3r_jax.alignment.solvers import implicit
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

DEFAULTS = implicit.ImplicitConfig()


def align_unrolled(
    predictions: PairPredictions,
    graph: PairGraph,
    priors: AlignmentPriors = solve.NO_PRIORS,
    config: AlignmentConfig = AlignmentConfig(),
    term_weights: TermWeights | None = None,
) -> tuple[AlignmentVariables, dict[str, Array]]:
    """`alignment.solve.align` whose gradient runs back through the iterations of Adam.

    The same values. jit it and vmap it; reverse mode only.

    Args:
        predictions, graph, priors, config: see `alignment.solve.align`.
        term_weights: instead of the config's, as arrays.

    Returns:
        variables and trace, both with gradients ("dynamic_mask" and "rejected" have none).

    Raises:
        UserError: shapes do not fit together, or the solver is not Adam.
    """
    if config.solver != "adam":
        raise UserError(
            f"Only the iterations of solver='adam' can be unrolled, got '{config.solver}'; use "
            "align_implicit for others."
        )
    solve.check(predictions, graph, priors)
    return _unrolled(predictions, graph, priors, config, term_weights)


@functools.partial(jax.jit, static_argnames="config")
def _unrolled(predictions, graph, priors, config, term_weights):
    setup = solve.set_up(predictions, graph, priors, config, term_weights=term_weights)
    return solve.optimise(setup, rematerialise=True)


def align_implicit(
    predictions: PairPredictions,
    graph: PairGraph,
    priors: AlignmentPriors = solve.NO_PRIORS,
    config: AlignmentConfig = AlignmentConfig(),
    term_weights: TermWeights | None = None,
    settings: implicit.ImplicitConfig = DEFAULTS,
) -> tuple[AlignmentVariables, dict[str, Array]]:
    """`alignment.solve.align`, refined to a minimum, with the derivative of that minimum.

    Meaningful for functions that do not depend on the choice of the world's frame (depths, relative
    poses, focals, errors after a fit): the derivative moves nothing along such directions. Motion
    masks are those of the end, and held while refining. To go on from the result of any solver,
    give it as `priors.start` and `config.iterations` 0.

    Args:
        predictions, graph, priors, config: see `alignment.solve.align`.
        term_weights: instead of the config's, as arrays. Not with solver "gauss_newton".
        settings: Newton steps and the system's accuracy.

    Returns:
        variables: with gradients. trace: without; "stationarity" (newton_steps + 1,) is the norm of
        the loss's gradient by all free variables before every Newton step and at the end. Where the
        last is not far below the first, there is no minimum and the gradient means nothing.

    Raises:
        UserError: shapes do not fit together, or term weights with a solver that has none.
    """
    if config.solver != "adam" and term_weights is not None:
        raise UserError(
            f"The solver '{config.solver}' takes its term weights from the config alone; use "
            "solver='adam' with term_weights."
        )
    solve.check(predictions, graph, priors)
    degrees = solve.degrees(graph, priors, config)
    return _implicit(predictions, graph, priors, config, term_weights, settings, degrees)


@functools.partial(jax.jit, static_argnames=("config", "settings", "degrees"))
def _implicit(predictions, graph, priors, config, term_weights, settings, degrees):
    setup = solve.set_up(predictions, graph, priors, config, term_weights=term_weights)
    config, trainable = setup.config, jax.tree.map(jnp.asarray, setup.trainable)
    known = priors.known
    world_is_free = known is None or known.world_from_cam is None
    constant = jax.lax.stop_gradient
    found, trace = solve.optimise(
        setup._replace(start=constant(setup.start), problem=constant(setup.problem)),
        degrees=degrees,
    )
    problem = setup.problem_at(constant(found))
    found, diagonal, norms = implicit.refine(
        constant(found),
        constant(problem),
        config,
        trainable,
        settings,
        world_is_free=world_is_free,
    )
    variables = implicit.attach(
        found, setup.start, problem, trainable, diagonal, config, settings, world_is_free
    )
    trace = trace | {
        "stationarity": norms,
        "pair_losses": solve.pair_losses(found, constant(problem), config),
    }
    return variables, trace
