"""What a camera does to light: motion blur, exposure, white balance, vignetting, noise, 8 bit."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from align3r_jax.geometry import warp

FRAME_INTERVAL = 1 / 30  # seconds; the shutter is open for a share of it


@dataclasses.dataclass(frozen=True)
class SensorOptions:
    """Strengths; all zero = a perfect camera.

    shutter: largest share of the frame interval (0.033 s) that the shutter is open. exposure:
    standard deviation of ln(gain) between frames of a pair; balance: of ln(gain) per channel.
    noise: largest deviation of read noise in grey levels of 0..1. vignetting: largest loss in
    the corners.
    """

    shutter: float = 0.7
    exposure: float = 0.12
    balance: float = 0.03
    noise: float = 0.02
    vignetting: float = 0.25


def motion_blur(
    light: jax.Array, velocity: jax.Array, share: jax.Array, taps: int = 5
) -> jax.Array:
    """Averages (H, W, 3) along its own motion: a cheap stand-in for rendering in between.

    velocity: (H, W, 2) pixels per frame interval. share: of the interval that the shutter is open,
    centred on the frame, so that depth and flow stay those of the middle.
    """
    grid = warp.pixel_grid(*light.shape[:2])
    total = jnp.zeros_like(light)
    for tap in range(taps):
        step = tap / (taps - 1) - 0.5
        total = total + warp.sample_bilinear(light, grid + step * share * velocity, "replicate")
    return total / taps


def auto_gain(light: jax.Array, target: float = 0.42) -> jax.Array:
    """() gain that brings the mean of (H, W, 3) light most of the way to `target`."""
    return jnp.clip((target / (light.mean() + 1e-6)) ** 0.8, min=0.4, max=4.0)


def expose(
    key: jax.Array, light: jax.Array, options: SensorOptions, gain: jax.Array | float = 1.0
) -> jax.Array:
    """Light (H, W, 3) to an image in [0, 1]: gain, balance, vignetting, shoulder, noise, clipping.

    gain: of this frame (see `auto_gain`); the key adds the frame's own deviation. The shoulder
    x / (1 + x^3)^(1/3) keeps texture in bright places. Noise has a constant (read) and a
    brightness-dependent (shot) part.
    """
    keys = jax.random.split(key, 5)
    height, width = light.shape[:2]
    own = jnp.exp(options.exposure * jax.random.normal(keys[0]))
    colour = jnp.exp(options.balance * jax.random.normal(keys[1], (3,)))
    x, y = jnp.meshgrid(jnp.linspace(-1, 1, width), jnp.linspace(-1, 1, height))
    loss = jax.random.uniform(keys[2]) * options.vignetting
    image = light * (gain * own * colour) * (1 - loss * (x**2 + y**2) / 2)[..., None]
    image = image / jnp.cbrt(1 + image**3)
    read = jax.random.uniform(keys[3]) * options.noise
    deviation = read * jnp.sqrt(0.3 + jnp.clip(image, min=0.0))
    image = image + deviation * jax.random.normal(keys[4], image.shape)
    return jnp.clip(image, min=0.0, max=1.0)


def to_uint8(image: jax.Array) -> jax.Array:
    """[0, 1] to uint8, rounded."""
    return jnp.round(jnp.clip(image, min=0.0, max=1.0) * 255).astype(jnp.uint8)
