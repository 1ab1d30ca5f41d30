"""What the hand-written gradients of the terms share.

A rule gives the gradient by the scene in one pass together with the value; that is what solvers
need. Where more is asked for (gradients by the data, or of a second result), the plain function is
differentiated instead: slower, but nothing is silently zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from flax import struct
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

Array = jax.Array


@struct.dataclass
class Saved:
    """What a rule keeps: the fast gradient, its inputs, and whether the data have a gradient."""

    gradient: tuple[Array, ...]
    inputs: tuple
    by_data: bool = struct.field(pytree_node=False)


def is_perturbed(tree: Any) -> bool:
    """Whether a gradient by any of these primals is asked for."""
    return any(leaf.perturbed for leaf in jax.tree.leaves(tree, is_leaf=_is_primal))


def values_of(tree: Any) -> Any:
    """Returns the values of primals."""
    return jax.tree.map(lambda leaf: leaf.value, tree, is_leaf=_is_primal)


def _is_primal(leaf: Any) -> bool:
    return isinstance(leaf, CustomVJPPrimal)


def counts(cotangent: Array | SymbolicZero) -> TypeGuard[Array]:
    """Whether a gradient of this result is asked for."""
    return not isinstance(cotangent, SymbolicZero)


def instantiated(cotangent: Array | SymbolicZero) -> Array:
    """Returns a cotangent as an array."""
    return cotangent if counts(cotangent) else jnp.zeros(cotangent.shape, cotangent.dtype)


def pull_back(plain: Callable[..., tuple[Array, ...]], saved: Saved, cotangents: tuple) -> tuple:
    """Returns the cotangents of the saved inputs by differentiating `plain`."""
    _, pull = jax.vjp(plain, *saved.inputs)
    return pull(tuple(instantiated(value) for value in cotangents))
