"""First-order optimisation of all variables together, in one compiled loop.

`scan` is the pure loop over a number of iterations: it can be jitted, vmapped over a batch of
problems of equal shapes (`first_step` unbatched). `optimise` is the host's
driver: it calls the compiled loop in chunks, so that progress can be shown and Ctrl-C works.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from align3r_jax.alignment import objective, schedule
from align3r_jax.alignment.solvers import checkpointed
from align3r_jax.config import AlignmentConfig
from align3r_jax.structs import AlignmentVariables

Array = jax.Array
Progress = Callable[[int, int, float], None]

CHUNK = 50  # iterations between two looks at the host
BETA1, BETA2, EPSILON = 0.9, 0.9, 1e-8
# After a rejected step the rate is this much smaller, and then grows back step by step.
REJECTED, ACCEPTED = 0.5, 1.1


@struct.dataclass
class State:
    """Where the loop stands.

    last_good: the variables of the last iteration whose loss and gradient were finite. failed: ()
    bool, whether those of the last iteration were not. step_scale: (), what the learning rate is
    multiplied by: 1 unless steps were rejected.
    """

    variables: AlignmentVariables
    last_good: AlignmentVariables
    moments: optax.OptState
    failed: Array
    step_scale: Array


@struct.dataclass
class Outcome:
    """variables: at the end, or the last with a finite loss. trace: name -> (n,) host arrays.

    failed: after n iterations the loss was NaN or infinite, and stayed so.
    """

    variables: AlignmentVariables
    trace: dict[str, np.ndarray]
    failed: bool = struct.field(pytree_node=False)


def _transform() -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=BETA1, b2=BETA2, eps=EPSILON)


def _direction(moments: optax.ScaleByAdamState) -> AlignmentVariables:
    """m / (sqrt(v) + eps), bias-corrected; its derivative is finite also where v is 0.

    The moments are optax's, and so is the value; but the derivative of optax's own sqrt(0) is not
    finite, and a variable that nothing pulls at has v = 0.
    """
    mean = optax.tree.bias_correction(moments.mu, BETA1, moments.count)
    square = optax.tree.bias_correction(moments.nu, BETA2, moments.count)

    def leaf(m, v):
        positive = v > 0
        return m / (jnp.where(positive, jnp.sqrt(jnp.where(positive, v, 1)), 0) + EPSILON)

    return jax.tree.map(leaf, mean, square)


def initial_state(variables: AlignmentVariables) -> State:
    """Returns the state before the first iteration, on buffers of its own."""
    variables = jax.tree.map(jnp.array, variables)
    return State(
        variables=variables,
        last_good=jax.tree.map(jnp.array, variables),
        moments=_transform().init(variables),
        failed=jnp.zeros((), bool),
        step_scale=jnp.ones(()),
    )


def scan(
    state: State,
    problem: objective.Problem,
    first_step: Array,
    *,
    config: AlignmentConfig,
    trainable: AlignmentVariables,
    num_steps: int,
    rematerialise: bool = False,
) -> tuple[State, dict[str, Array]]:
    """Runs iterations first_step ... first_step + num_steps - 1 of config.iterations.

    x <- x - lr m / (sqrt(v) + eps) with bias-corrected m, v (Adam; Kingma & Ba 2015). Steps at and
    beyond config.iterations change nothing. trainable: a bool per group (static), or one per frame.
    A step that leads to a loss or a gradient that is not finite is rejected: the variables go back
    to the last good ones, the moments are forgotten and the rate is halved for a while.
    rematerialise: for gradients through the loop, which then keep some 2 sqrt(num_steps) states.
    Returns the new state and the trace, name -> (num_steps,): "total" before each step, the rate
    "lr", "rejected" (bool) and every term of `objective.term_names`.
    """
    flow_start = objective.flow_start_iteration(config)

    def body(state, step):
        (total, terms), gradient = objective.value_and_gradient(
            state.variables, problem, config, step >= flow_start
        )
        gradient = jax.tree.map(_only_free, trainable, gradient)
        finite = jnp.isfinite(total)
        for leaf in jax.tree.leaves(gradient):
            finite &= jnp.all(jnp.isfinite(leaf))
        rate = schedule.learning_rate(
            step, config.iterations, config.schedule, config.lr, config.lr_min
        )
        rate = rate * state.step_scale
        _, moments = _transform().update(gradient, state.moments)
        updates = _direction(moments)
        moved = jax.tree.map(lambda x, u: x - rate.astype(x.dtype) * u, state.variables, updates)
        active = step < config.iterations

        def choose(accepted, rejected, old):
            def leaf(a, b, c):
                return jnp.where(active, jnp.where(finite, a, b), c)

            return jax.tree.map(leaf, accepted, rejected, old)

        forgotten = jax.tree.map(jnp.zeros_like, state.moments)
        scale = jnp.minimum(state.step_scale * ACCEPTED, 1), state.step_scale * REJECTED
        following = State(
            variables=choose(moved, state.last_good, state.variables),
            last_good=choose(state.variables, state.last_good, state.last_good),
            moments=choose(moments, forgotten, state.moments),
            failed=choose(jnp.array(False), jnp.array(True), state.failed),
            step_scale=choose(*scale, state.step_scale),
        )
        trace = {name: terms[name] for name in objective.term_names(problem)}
        return following, trace | {"total": total, "lr": rate, "rejected": active & ~finite}

    loop = checkpointed.scan if rematerialise else jax.lax.scan
    return loop(body, state, first_step + jnp.arange(num_steps))


def without_rejected(trace: dict[str, Array]) -> dict[str, Array]:
    """Returns the trace with the losses of rejected steps replaced by those of the step before."""
    rejected = trace["rejected"]
    own = jnp.where(rejected, 0, jnp.arange(rejected.shape[-1]))
    last = jax.lax.cummax(own, axis=rejected.ndim - 1)
    kept = {name: jnp.take_along_axis(values, last, axis=-1) for name, values in trace.items()}
    return kept | {"rejected": rejected, "lr": trace["lr"]}


def _only_free(free: bool | Array, gradient: Array) -> Array:
    if isinstance(free, bool):
        return gradient if free else jnp.zeros_like(gradient)
    return jnp.where(free.reshape(free.shape + (1,) * (gradient.ndim - 1)), gradient, 0)


class Static:
    """A hashable wrapper of the tree of `trainable`, which makes it a static argument of jit."""

    def __init__(self, tree: AlignmentVariables):
        self.tree = jax.tree.map(lambda x: x if isinstance(x, bool) else np.asarray(x), tree)
        leaves = jax.tree.leaves(self.tree)
        self._key = tuple(x if isinstance(x, bool) else tuple(x.tolist()) for x in leaves)

    def __hash__(self):
        return hash(self._key)

    def __eq__(self, other):
        return isinstance(other, Static) and self._key == other._key


@functools.partial(jax.jit, static_argnames=("config", "trainable", "num_steps"), donate_argnums=0)
def _compiled_scan(state, problem, first_step, *, config, trainable, num_steps):
    return scan(
        state, problem, first_step, config=config, trainable=trainable.tree, num_steps=num_steps
    )


def chunk_length(iterations: int) -> int:
    """Returns the chunk near `CHUNK` that wastes the fewest iterations in the last chunk."""
    return -(-iterations // max(1, round(iterations / CHUNK))) if iterations else 1


def due_refreshes(iterations: int, count: int) -> list[int]:
    """Returns the iterations at (or after) which the problem is refreshed, evenly spread."""
    return [round(iterations * (k + 1) / (count + 1)) for k in range(count)]


def optimise(
    variables: AlignmentVariables,
    problem: objective.Problem,
    config: AlignmentConfig,
    trainable: AlignmentVariables,
    *,
    refresh: Callable[[AlignmentVariables, objective.Problem], objective.Problem] | None = None,
    refresh_count: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Minimises `objective.evaluate` from `variables` with config.iterations steps of Adam.

    The same problem shapes and config compile once. refresh(variables, problem) is called
    `refresh_count` times, evenly spread over the iterations (at chunk ends), and gives the problem
    to go on with (same shapes). progress(iteration, total, loss) is called after every chunk.
    Steps that lead to a NaN or infinite loss are rejected. A run that ends that way returns the
    last good variables and sets `failed`; it ends early where a whole chunk was rejected.
    """
    total = config.iterations
    length = chunk_length(total)
    due = due_refreshes(total, refresh_count)
    state, traces = initial_state(variables), []
    for first in range(0, total, length):
        while refresh is not None and due and first >= due[0]:
            due.pop(0)
            problem = refresh(state.variables, problem)
        state, trace = _compiled_scan(
            state,
            problem,
            jnp.asarray(first),
            config=config,
            trainable=Static(trainable),
            num_steps=length,
        )
        traces.append(jax.device_get(trace))
        done = min(first + length, total)
        losses = traces[-1]["total"][: done - first]
        if progress is not None:
            progress(done, total, float(losses[-1]))
        if traces[-1]["rejected"][: done - first].all():
            break
    trace = {name: np.concatenate([t[name] for t in traces])[:total] for name in _names(traces)}
    return outcome_of(state, trace)


def outcome_of(state: State, trace: dict[str, np.ndarray]) -> Outcome:
    """Returns what a finished loop leaves behind; its trace as `scan` gave it."""
    failed = bool(state.failed)
    if failed:
        count = int(np.max(np.flatnonzero(~trace["rejected"]), initial=-1)) + 1
        trace = {name: values[:count] for name, values in trace.items()}
    if trace and trace["rejected"].any():
        trace = jax.device_get(without_rejected({k: jnp.asarray(v) for k, v in trace.items()}))
    return Outcome(state.last_good if failed else state.variables, trace, failed)


def _names(traces: list[dict[str, np.ndarray]]) -> list[str]:
    return list(traces[0]) if traces else []
