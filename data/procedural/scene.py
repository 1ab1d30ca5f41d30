"""Random scenes: rooms, table-tops and outdoor places, with furniture, clutter and movers.

Every scene has the same number of primitives in fixed slots, so one compiled renderer serves all:
a table, clutter (on the floor, on the table, stacked, on walls), thin structures, free movers and
a walking figure. Sizes are metric: clutter on tables is 5-30 cm, texture tiles have a size of
their own that does not follow the room.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from data.procedural import cameras, layout, motion
from data.procedural.draws import Draws

_PREC = jax.lax.Precision.HIGHEST
FACES = 6  # of the environment box, after the primitives in every surface array
FLOOR, CEILING = layout.COUNT + 4, layout.COUNT + 5


@dataclasses.dataclass(frozen=True)
class SceneOptions:
    """What is drawn how often. Hashable, so it can be a static argument of jit.

    table_top, outdoor: shares of these places, the rest are rooms. moving: share of scenes with
    free movers; walker: share of those (never on table-tops) with a walking figure. texture:
    contrast of textures, 1 = as drawn, 0 = plain. faded: share of scenes whose textures have only
    a part of that contrast, uniform.
    """

    table_top: float = 0.45
    outdoor: float = 0.2
    moving: float = 0.8
    walker: float = 0.6
    texture: float = 1.0
    faded: float = 0.0
    camera: cameras.CameraOptions = cameras.CameraOptions()


@struct.dataclass
class Surfaces:
    """Appearance of N primitives and the 6 environment faces.

    tile: (N+6,) int32, taken modulo the size of the bank. density: (N+6,) tiles per metre.
    offset: (N+6, 2) tiles. tint: (N+6, 3). gloss: (N+6,) strength of the highlight.
    contrast: (): 1 = the texture as drawn.
    """

    tile: jax.Array
    density: jax.Array
    offset: jax.Array
    tint: jax.Array
    gloss: jax.Array
    contrast: jax.Array


@struct.dataclass
class Light:
    """direction: (3,) unit, towards the light. ambient, lamp: () (lamp = near the camera)."""

    direction: jax.Array
    ambient: jax.Array
    lamp: jax.Array


@struct.dataclass
class Scene:
    """A moving world of N primitives inside a box. Metres, z up, times in seconds.

    kind (N,), scale (N, 3), position (N, 3), rotation (N, 3, 3), active (N,): primitives at
    time 0. half, centre (3,): the environment box. outdoor: () bool, its ceiling is sky.
    """

    kind: jax.Array
    scale: jax.Array
    position: jax.Array
    rotation: jax.Array
    active: jax.Array
    motion: motion.Motion
    half: jax.Array
    centre: jax.Array
    outdoor: jax.Array
    surfaces: Surfaces
    light: Light
    camera: cameras.CameraPath


def sample_scene(key: jax.Array, options: SceneOptions = SceneOptions()) -> Scene:
    """Draws a scene; a pure function of the key."""
    key_place, key_fill, key_move, key_look, key_light, key_camera = jax.random.split(key, 6)
    place = layout.sample_place(key_place, options.table_top, options.outdoor)
    clutter = layout.fill(key_fill, place)
    kind, scale, position, rotation, active, moves = layout.add_movers(
        key_move, place, clutter, options.moving, options.walker
    )
    start, target, low, high = _viewpoint(key_camera, place)
    return Scene(
        kind=kind,
        scale=scale,
        position=position,
        rotation=rotation,
        active=active,
        motion=moves,
        half=place.half,
        centre=place.centre,
        outdoor=place.outdoor,
        surfaces=_sample_surfaces(key_look, scale, place.outdoor, _contrast(key_look, options)),
        light=_sample_light(key_light, place.outdoor),
        camera=cameras.sample_path(
            jax.random.fold_in(key_camera, 1), start, target, low, high, options.camera
        ),
    )


def _viewpoint(key, place):
    """Start and target of the camera: looking down on a table-top, or across the place."""
    draw = Draws(key, 32)
    azimuth = draw.uniform(-3.1416, 3.1416)
    on_table = layout.on_table(place, draw.uniform(-0.7, 0.7, 2), 0.05 + draw.uniform(-0.05, 0.15))
    distance = draw.log_uniform(0.5, 1.9)
    above = cameras.orbit_point(on_table, azimuth, jnp.deg2rad(draw.uniform(8.0, 75.0)), distance)

    target_z = jnp.where(draw.uniform(0.0, 1.0) < 0.25, 0.05, draw.uniform(0.1, 1.5))
    across_target = jnp.append(draw.uniform(-0.45, 0.45, 2) * place.radius, target_z)
    ring = draw.uniform(0.4, 0.95) * place.radius * jnp.where(place.outdoor, 1.2, 1.0)
    height = draw.uniform(0.4, 1.9) * jnp.where(
        place.outdoor & (draw.uniform(0.0, 1.0) < 0.3), draw.uniform(1.5, 3.5), 1.0
    )
    across = jnp.append(
        across_target[:2] + ring * jnp.stack([jnp.cos(azimuth), jnp.sin(azimuth)]), height
    )
    low = jnp.append(-0.92 * place.half[:2], 0.2)
    high = jnp.append(0.92 * place.half[:2], 2 * place.half[2] * 0.92)
    start = jnp.where(place.table_top, above, across)
    target = jnp.where(place.table_top, on_table, across_target)
    return jnp.clip(start, low, high), target, low, high


def _contrast(key, options):
    draw = Draws(jax.random.fold_in(key, 1), 4)
    part = jnp.where(draw.uniform(0.0, 1.0) < options.faded, draw.uniform(0.0, 1.0), 1.0)
    return options.texture * part


def _sample_surfaces(key, scale, outdoor, contrast):
    draw = Draws(key)
    count = layout.COUNT + FACES
    tile = draw.integer(0, 1 << 16, count)
    # One tile spans 1-5 times the half size of an object, 0.5-3 m on walls, more outdoors.
    spread = draw.log_uniform(1.0, 5.0, count)
    objects = jnp.clip(jnp.median(scale, axis=1), 0.02, 0.6)
    walls = jnp.full(FACES, 0.55) * jnp.where(outdoor, 3.0, 1.0)
    density = 1.0 / (jnp.concatenate([objects, walls]) * spread)
    tint = jnp.clip(
        1 + 0.2 * draw.normal(count, 1) + 0.1 * draw.normal(count, 3),
        0.4,
        1.4,
    )
    sky = outdoor & (jnp.arange(count) == CEILING)
    tint = jnp.where(sky[:, None], jnp.array([0.75, 0.85, 1.05]), tint)
    density = jnp.where(sky, 0.03, density)
    glossy = draw.chance(0.3, count)
    gloss = jnp.where(glossy, draw.uniform(0.0, 0.5, count), 0.0)
    return Surfaces(
        tile=tile,
        density=density,
        offset=draw.uniform(0.0, 1.0, count, 2),
        tint=tint,
        gloss=jnp.where(sky, 0.0, gloss),
        contrast=jnp.float32(contrast),
    )


def _sample_light(key, outdoor):
    draw = Draws(key, 8)
    direction = draw.normal(3)
    direction = direction.at[2].set(jnp.abs(direction[2]) + 0.5)
    lamp = draw.uniform(0.0, 0.6)
    return Light(
        direction=direction / jnp.linalg.norm(direction),
        ambient=draw.uniform(0.3, 0.75),
        lamp=jnp.where(outdoor, 0.0, lamp),
    )
