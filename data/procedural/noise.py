"""A model of what monocular depth gets wrong, applied to true depth. For training and tests only.

prior = blur(depth^gamma) * frame scale * object scale * smooth field * pixel noise, with gamma
acting on ln(depth / median). Measured networks have structured errors beyond it (sky, mirrors).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

_OBJECTS = 64  # instance numbers are taken modulo this


@dataclasses.dataclass(frozen=True)
class NoiseOptions:
    """Standard deviations of the natural logarithm, except where said.

    scale: per frame. contrast: of gamma about 1. objects: per instance. field: of a smooth 4x4
    field. blur: share of frames averaged over 4x4 pixels. pixel: of single pixels.
    """

    scale: float = 0.25
    contrast: float = 0.12
    objects: float = 0.10
    field: float = 0.12
    blur: float = 0.7
    pixel: float = 0.01


@functools.partial(jax.jit, static_argnames="options")
def noisy_prior(
    key: jax.Array,
    depth: jax.Array,
    instance: jax.Array,
    options: NoiseOptions = NoiseOptions(),
) -> jax.Array:
    """Returns (..., H, W) float32 > 0: every frame with errors of its own.

    depth: (..., H, W) > 0. instance: (..., H, W) integers, constant on an object. NumPy arrays
    will do. A pure function of the key.
    """
    depth, instance = jnp.asarray(depth, jnp.float32), jnp.asarray(instance)
    height, width = depth.shape[-2:]
    frames = depth.reshape(-1, height, width)
    keys = jax.random.split(key, frames.shape[0])
    one = functools.partial(_one_frame, options=options)
    noisy = jax.vmap(one)(keys, frames, instance.reshape(frames.shape))
    return noisy.reshape(depth.shape)


def _one_frame(key, depth, instance, options):
    keys = jax.random.split(key, 6)
    height, width = depth.shape
    log_depth = jnp.log(depth)
    middle = jnp.median(log_depth)
    gamma = 1 + options.contrast * jax.random.normal(keys[0])
    log_depth = middle + gamma * (log_depth - middle)
    objects = options.objects * jax.random.normal(keys[1], (_OBJECTS,))
    log_depth = log_depth + objects[instance % _OBJECTS]
    field = jax.image.resize(jax.random.normal(keys[2], (4, 4)), (height, width), "cubic")
    small = jax.image.resize(
        jnp.exp(log_depth), (max(height // 4, 1), max(width // 4, 1)), "linear", antialias=True
    )
    soft = jnp.log(jax.image.resize(small, (height, width), "linear"))
    log_depth = jnp.where(jax.random.uniform(keys[3]) < options.blur, soft, log_depth)
    log_depth = log_depth + options.field * field
    log_depth = log_depth + options.pixel * jax.random.normal(keys[4], depth.shape)
    return jnp.exp(log_depth + options.scale * jax.random.normal(keys[5]))
