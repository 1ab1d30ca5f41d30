"""Floating-point operations of a training step, for the share of the hardware's peak that is used.

Counted on the step as it is written (its jaxpr): matrix products and convolutions, a multiply-add
as two. What XLA reports after compiling counts the body of a loop once and on GPUs misses library
calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def step_flops(step: Callable[..., Any], state: Any, batch: Any, key: Any = None) -> float:
    """Returns the operations of one step over all devices, backward pass included.

    Arrays or shapes will do; nothing is compiled. With remat the second forward pass counts too.
    Of alternatives (`lax.cond`) the cheapest counts, a `while` loop as one turn.
    """
    key = jax.eval_shape(lambda: jax.random.key(0)) if key is None else key
    return _operations(jax.make_jaxpr(step)(state, batch, key).jaxpr)


def _operations(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, settings = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = settings["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":
            total += min(_operations(branch.jaxpr) for branch in settings["branches"])
        else:
            inside = sum(_operations(inner) for inner in inner_programs(settings))
            total += inside * (settings["length"] if name == "scan" else 1)
    return total


def _convolution(equation: Any) -> float:
    """2 x output x kernel taps x inputs per output, of which only those on real samples count.

    In the backward pass inputs or kernels are spread out by zeros, which cost nothing in theory.
    """
    settings = equation.params
    numbers = settings["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])
    spread = math.prod(settings["lhs_dilation"])
    out = math.prod(equation.outvars[0].aval.shape)
    return 2.0 * out * taps / spread


def inner_programs(settings: dict[str, Any]) -> list[Any]:
    """Returns the programs that an operation holds (jit, remat, custom derivatives, loops)."""
    found = []
    for value in settings.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
