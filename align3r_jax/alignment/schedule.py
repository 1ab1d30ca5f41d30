"""Learning rates over the iterations of the aligner."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from align3r_jax.config import check_schedule

Array = jax.Array


def learning_rate(step: Array, iterations: int, kind: str, start: float, end: float) -> Array:
    """Returns the rate at iteration `step` = 0 ... iterations - 1; t = step / iterations < 1.

    linear: start + (end - start) t. cosine: end + (start - end) (1 + cos(pi t)) / 2. cycleK: K
    linear ramps one after the other (cycle: 2). Raises UserError for other names.
    """
    check_schedule(kind)
    t = step / iterations
    if kind == "linear":
        return start + (end - start) * t
    if kind == "cosine":
        return end + (start - end) * (1 + jnp.cos(jnp.pi * t)) / 2
    return start + (end - start) * (t * int(kind.removeprefix("cycle") or 2) % 1.0)
