"""Batches of rendered pairs for training, drawn, rendered and rejected inside one jitted call."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct

from data.procedural import render, scene, sensor, textures

_PREC = jax.lax.Precision.HIGHEST
_PROBE = 20  # long side of the depth maps on which candidates are judged


@dataclasses.dataclass(frozen=True)
class PairOptions:
    """What a training pair is. Hashable: a static argument of jit.

    gap: seconds between the two frames, log-uniform. candidates: scenes tried per pair; the first
    that passes `acceptable` is rendered. min_motion: least median parallax |t| / median depth or
    rotation (rad) of an accepted pair, 0 = any. shadows: half of the cost of rendering.
    """

    scene: scene.SceneOptions = scene.SceneOptions()
    sensor: sensor.SensorOptions = sensor.SensorOptions()
    gap: tuple[float, float] = (0.1, 1.5)
    candidates: int = 4
    min_motion: float = 0.0
    shadows: bool = True


@struct.dataclass
class PairBatch:
    """B rendered pairs. Pixel centres at integers, principal point (W/2, H/2).

    rgb: (B, 2, H, W, 3) float32 in [0, 1]. depth: (B, 2, H, W) metres along z. cam1_from_cam2:
    (B, 4, 4). focal: (B,) pixels, of both frames. instance: (B, 2, H, W) int32. dynamic_mask:
    (B, 2, H, W) bool. flow, visible: (B, H, W, 2), (B, H, W) from frame 1 to frame 2. valid: (B,)
    bool, False where no candidate was acceptable (rare).
    """

    rgb: jax.Array
    depth: jax.Array
    cam1_from_cam2: jax.Array
    focal: jax.Array
    instance: jax.Array
    dynamic_mask: jax.Array
    flow: jax.Array
    visible: jax.Array
    valid: jax.Array


@functools.partial(jax.jit, static_argnames=("batch", "height", "width", "options", "chunk"))
def render_pairs(
    key: jax.Array,
    bank: textures.TextureBank,
    batch: int,
    height: int,
    width: int,
    options: PairOptions = PairOptions(),
    chunk: int = 0,
) -> PairBatch:
    """Renders `batch` pairs; a pure function of the key.

    chunk: pairs rendered at once; 0 = one on a CPU (it then stays in cache), else up to 64.
    Tracing inside another jitted function drops whatever outputs it does not use.
    """
    keys = jax.random.split(key, batch)
    one = functools.partial(_pair, bank=bank, height=height, width=width, options=options)
    chunk = chunk or (1 if jax.default_backend() == "cpu" else 64)
    if chunk == 1:
        return jax.lax.map(one, keys)
    return jax.lax.map(one, keys, batch_size=min(chunk, batch))


def acceptable(first: jax.Array, second: jax.Array) -> jax.Array:
    """() bool: nothing nearer than 15 cm, some relief, and alike distances in both depth maps."""
    nearest = jnp.minimum(first.min(), second.min())
    relief = jnp.minimum(jnp.log(first).std(), jnp.log(second).std())
    ratio = jnp.log(jnp.median(first) / jnp.median(second))
    return (nearest > 0.15) & (relief > 0.08) & (jnp.abs(ratio) < jnp.log(4.0))


def relative_pose(world_from_cam1: jax.Array, world_from_cam2: jax.Array) -> jax.Array:
    """cam1_from_cam2 (4, 4)."""
    turn = world_from_cam1[:3, :3].T
    rotation = jnp.matmul(turn, world_from_cam2[:3, :3], precision=_PREC)
    baseline = world_from_cam2[:3, 3] - world_from_cam1[:3, 3]
    shift = jnp.matmul(turn, baseline, precision=_PREC)
    top = jnp.concatenate([rotation, shift[:, None]], axis=1)
    return jnp.concatenate([top, jnp.array([[0.0, 0.0, 0.0, 1.0]])])


def _candidate(key, options, height, width):
    """(scene, time of frame 2, accepted), judged on small depth maps."""
    key_scene, key_gap = jax.random.split(key)
    drawn = scene.sample_scene(key_scene, options.scene)
    low, high = jnp.log(options.gap[0]), jnp.log(options.gap[1])
    gap = jnp.exp(jax.random.uniform(key_gap, (), minval=low, maxval=high))
    long_side = max(height, width)
    size = (max(height * _PROBE // long_side, 4), max(width * _PROBE // long_side, 4))
    first, second = render.view(drawn, 0.0, *size), render.view(drawn, gap, *size)
    accepted = acceptable(first.depth, second.depth)
    if options.min_motion > 0:
        pose = relative_pose(first.world_from_cam, second.world_from_cam)
        parallax = jnp.linalg.norm(pose[:3, 3]) / jnp.median(first.depth)
        angle = jnp.arccos(jnp.clip((jnp.trace(pose[:3, :3]) - 1) / 2, min=-1.0, max=1.0))
        accepted &= jnp.maximum(parallax, angle) >= options.min_motion
    return drawn, gap, accepted


def _pair(key, bank, height, width, options):
    key_scene, key_first, key_second, key_shutter, key_gain = jax.random.split(key, 5)
    keys = jax.random.split(key_scene, options.candidates)
    scenes, gaps, accepted = jax.vmap(lambda k: _candidate(k, options, height, width))(keys)
    chosen = jnp.argmax(accepted)
    drawn = jax.tree.map(lambda leaf: leaf[chosen], scenes)
    times = jnp.stack([jnp.float32(0.0), gaps[chosen]])
    share = jax.random.uniform(key_shutter, (), maxval=max(options.sensor.shutter, 1e-6))
    gain = jnp.exp(0.2 * jax.random.normal(key_gain))

    def frame(inputs):
        time, key_sensor = inputs
        seen = render.view(drawn, time, height, width)
        light = render.shade_view(drawn, seen, bank, shadows=options.shadows)
        if options.sensor.shutter > 0:
            speed = render.velocity(drawn, seen, time, sensor.FRAME_INTERVAL)
            light = sensor.motion_blur(light, speed, share)
        rgb = sensor.expose(key_sensor, light, options.sensor, gain * sensor.auto_gain(light))
        return seen, rgb, render.dynamic_mask(drawn, seen)

    seen, rgb, dynamic_mask = jax.lax.map(frame, (times, jnp.stack([key_first, key_second])))
    first, second = (jax.tree.map(lambda leaf, k=k: leaf[k], seen) for k in range(2))
    flow, visible = render.flow(drawn, first, second)
    return PairBatch(
        rgb=rgb,
        depth=seen.depth,
        cam1_from_cam2=relative_pose(first.world_from_cam, second.world_from_cam),
        focal=first.focal,
        instance=seen.index,
        dynamic_mask=dynamic_mask,
        flow=flow,
        visible=visible,
        valid=accepted[chosen],
    )
