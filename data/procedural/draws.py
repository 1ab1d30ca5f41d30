"""Many small random draws from one key with few random-number kernels (each costs compile time)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


class Draws:
    """Hands out slices of one uniform and one normal block; a pure function of the key.

    capacity: numbers in each block; drawing more is an error.
    """

    def __init__(self, key: jax.Array, capacity: int = 512):
        key_uniform, key_normal = jax.random.split(key)
        self._uniform = jax.random.uniform(key_uniform, (capacity,))
        self._normal = jax.random.normal(key_normal, (capacity,))
        self._used = {"uniform": 0, "normal": 0}

    def _take(self, block: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
        start = self._used[name]
        stop = start + math.prod(shape)
        if stop > block.shape[0]:
            raise ValueError(f"{stop} {name} draws asked of {block.shape[0]}; raise the capacity.")
        self._used[name] = stop
        return block[start:stop].reshape(shape)

    def uniform(self, low: float | jax.Array, high: float | jax.Array, *shape: int) -> jax.Array:
        """Uniform in [low, high)."""
        return low + (high - low) * self._take(self._uniform, "uniform", shape)

    def log_uniform(self, low: float, high: float, *shape: int) -> jax.Array:
        """exp of a uniform between the logarithms."""
        return jnp.exp(self.uniform(math.log(low), math.log(high), *shape))

    def normal(self, *shape: int) -> jax.Array:
        """Standard normal."""
        return self._take(self._normal, "normal", shape)

    def chance(self, share: float | jax.Array, *shape: int) -> jax.Array:
        """True with probability `share`."""
        return self.uniform(0.0, 1.0, *shape) < share

    def integer(self, low: int, high: int, *shape: int) -> jax.Array:
        """Integers in low .. high - 1."""
        return jnp.floor(self.uniform(float(low), float(high), *shape)).astype(jnp.int32)
