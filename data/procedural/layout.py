"""Where things stand: places, tables, clutter in contact and stacked, thin structures, movers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from data.procedural import motion
from data.procedural.draws import Draws
from data.procedural.shapes import BOX, CYLINDER, SPHERE

_PREC = jax.lax.Precision.HIGHEST

# Slots of the primitives, by role.
TABLE = slice(0, 5)  # top and four legs
CLUTTER = slice(5, 21)
THIN = slice(21, 25)  # poles, rails, cables
MOVERS = slice(25, 30)
WALKER = slice(30, 36)
COUNT = 36


@struct.dataclass
class Place:
    """A room or an outdoor ground, with a table.

    half, centre (3,): the box. radius (): of the populated area. table_half (3,): of the top.
    table_position (3,): centre of the top. table_turn (3, 3). outdoor, table_top, has_table: ()
    bool.
    """

    half: jax.Array
    centre: jax.Array
    radius: jax.Array
    table_half: jax.Array
    table_position: jax.Array
    table_turn: jax.Array
    outdoor: jax.Array
    table_top: jax.Array
    has_table: jax.Array


@struct.dataclass
class Clutter:
    """Primitives that stand still, slots 0 .. MOVERS.start."""

    kind: jax.Array
    scale: jax.Array
    position: jax.Array
    rotation: jax.Array
    active: jax.Array


def _yaw(angle: jax.Array) -> jax.Array:
    return motion.rotation_from_vector(angle[..., None] * jnp.array([0.0, 0.0, 1.0]))


def sample_place(key: jax.Array, table_top: float, outdoor: float) -> Place:
    """Draws the box, the size of the populated area and the table."""
    draw = Draws(key)
    which = draw.uniform(0.0, 1.0)
    is_table, is_outdoor = which < table_top, which > 1.0 - outdoor
    room = jnp.stack(
        [draw.log_uniform(1.5, 5.5), draw.log_uniform(1.5, 5.5), draw.uniform(1.2, 1.9)]
    )
    open_air = jnp.stack(
        [draw.log_uniform(15.0, 60.0), draw.log_uniform(15.0, 60.0), draw.log_uniform(8.0, 30.0)]
    )
    half = jnp.where(is_outdoor, open_air, room)
    inner = jnp.minimum(half[0], half[1])
    radius = 0.95 * jnp.minimum(inner, jnp.where(is_outdoor, draw.log_uniform(2.0, 8.0), 9.0))
    table_half = jnp.stack(
        [draw.uniform(0.4, 1.0), draw.uniform(0.3, 0.6), draw.uniform(0.01, 0.03)]
    )
    room_left = jnp.maximum(half[:2] - 0.75, 0.0) * jnp.where(is_outdoor, 0.1, 0.8)
    height = draw.uniform(0.4, 0.8)
    return Place(
        half=half,
        centre=jnp.stack([0.0 * inner, 0.0 * inner, half[2]]),
        radius=radius,
        table_half=table_half,
        table_position=jnp.append(draw.uniform(-1.0, 1.0, 2) * room_left, height),
        table_turn=_yaw(draw.normal() * 0.5),
        outdoor=is_outdoor,
        table_top=is_table,
        has_table=is_table | draw.chance(jnp.where(is_outdoor, 0.2, 0.6)),
    )


def on_table(place: Place, across: jax.Array, above: jax.Array) -> jax.Array:
    """Point(s) (..., 3) on the table top: across (..., 2) in its half sizes, `above` in metres."""
    flat = jnp.concatenate([across * place.table_half[:2], jnp.zeros_like(across[..., :1])], -1)
    point = place.table_position + jnp.einsum(
        "ij,...j->...i", place.table_turn, flat, precision=_PREC
    )
    return point.at[..., 2].add(place.table_half[2] + above)


def fill(key: jax.Array, place: Place) -> Clutter:
    """Draws table, clutter and thin structures."""
    keys = jax.random.split(key, 3)
    parts = [table(place), _clutter(keys[0], place), _thin(keys[1], place)]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def table(place: Place) -> Clutter:
    """Top and four legs."""
    top = place.table_position
    leg_half = (top[2] - place.table_half[2]) / 2
    corners = jnp.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]) * 0.92
    legs = on_table(place, corners, jnp.float32(0.0)).at[:, 2].set(leg_half)
    leg_scale = jnp.stack([jnp.float32(0.025), jnp.float32(0.025), leg_half])
    return Clutter(
        kind=jnp.full(5, BOX),
        scale=jnp.concatenate([place.table_half[None], jnp.broadcast_to(leg_scale, (4, 3))]),
        position=jnp.concatenate([top[None], legs]),
        rotation=jnp.broadcast_to(place.table_turn, (5, 3, 3)),
        active=jnp.broadcast_to(place.has_table, (5,)),
    )


def _clutter(key: jax.Array, place: Place) -> Clutter:
    """Things on the table, the floor and the walls; every odd one may stand on its neighbour."""
    draw = Draws(key)
    count = CLUTTER.stop - CLUTTER.start
    share_table = jnp.where(place.table_top, 0.8, jnp.where(place.has_table, 0.35, 0.0))
    tabled = draw.chance(share_table, count)
    hung = ~tabled & ~place.outdoor & draw.chance(0.3, count)
    floating = ~tabled & ~hung & draw.chance(0.15, count)

    # Sizes: generic, flat (paper, keyboard, rug), upright (book, screen, panel).
    small = draw.log_uniform(0.025, 0.13, count, 1) * jnp.exp(0.35 * draw.normal(count, 3))
    reach = jnp.clip(place.radius / 2.5, 0.6, 3.0)
    large = draw.log_uniform(0.08, 0.5, count, 1) * jnp.exp(0.4 * draw.normal(count, 3)) * reach
    scale = jnp.where(tabled[:, None], small, large)
    form = draw.uniform(0.0, 1.0, count)
    flat, upright = form < 0.2, (form > 0.2) & (form < 0.35)
    mean_size = scale.mean(1, keepdims=True)
    sheet = mean_size * jnp.stack(
        [
            draw.uniform(0.8, 1.8, count),
            draw.uniform(0.6, 1.4, count),
            draw.uniform(0.02, 0.15, count),
        ],
        1,
    )
    panel = mean_size * jnp.stack(
        [
            draw.uniform(0.7, 1.7, count),
            draw.uniform(0.05, 0.2, count),
            draw.uniform(0.6, 1.5, count),
        ],
        1,
    )
    scale = jnp.where(flat[:, None], sheet, jnp.where(upright[:, None], panel, scale))
    picture = jnp.stack(
        [
            draw.uniform(0.15, 0.6, count),
            draw.uniform(0.008, 0.04, count),
            draw.uniform(0.12, 0.45, count),
        ],
        1,
    )
    scale = jnp.where(hung[:, None], picture, scale)
    largest = jnp.stack([place.radius * 0.45, place.radius * 0.45, place.half[2] * 0.8])
    scale = jnp.clip(scale, 0.003, largest)
    kind = draw.integer(0, 3, count)
    kind = jnp.where(flat | upright | hung, BOX, kind)

    # Positions.
    spot = on_table(place, draw.uniform(-0.95, 0.95, count, 2), scale[:, 2])
    ground = jnp.concatenate(
        [draw.uniform(-1.0, 1.0, count, 2) * place.radius, scale[:, 2:]], axis=1
    )
    afloat = ground.at[:, 2].set(draw.uniform(0.2, 1.7, count))
    side = draw.integer(0, 4, count)
    along = draw.uniform(-0.85, 0.85, count)
    wall_xy = jnp.where(
        (side < 2)[:, None],
        jnp.stack([along * place.half[0], jnp.where(side == 0, 1.0, -1.0) * place.half[1]], 1),
        jnp.stack([jnp.where(side == 2, 1.0, -1.0) * place.half[0], along * place.half[1]], 1),
    )
    wall = jnp.concatenate([wall_xy, draw.uniform(0.7, 1.9, count, 1)], axis=1)
    position = jnp.where(tabled[:, None], spot, ground)
    position = jnp.where(floating[:, None], afloat, position)
    position = jnp.where(hung[:, None], wall, position)

    # Stacks: number 2k+1 stands on number 2k if that has a flat top and both stand freely.
    base, top = slice(0, None, 2), slice(1, None, 2)
    stacked = (
        draw.chance(0.45, count // 2)
        & (kind[base] != SPHERE)
        & ~(hung[base] | hung[top] | floating[base] | floating[top])
    )
    shrink = jnp.minimum(1.0, 0.9 * scale[base, :2].min(1) / scale[top, :2].max(1))
    small_top = scale[top] * shrink[:, None]
    scale = scale.at[top].set(jnp.where(stacked[:, None], small_top, scale[top]))
    height = position[base, 2] + scale[base, 2] + scale[top, 2]
    on_base = jnp.concatenate([position[base, :2], height[:, None]], axis=1)
    position = position.at[top].set(jnp.where(stacked[:, None], on_base, position[top]))

    turn = draw.uniform(-3.1416, 3.1416, count)
    wall_turn = jnp.where(side < 2, 0.0, 1.5708)
    rotation = _yaw(jnp.where(hung, wall_turn, turn))
    tilt = motion.rotation_from_vector(
        draw.normal(count, 3) * 0.8 * floating[:, None].astype(jnp.float32)
    )
    rotation = jnp.matmul(rotation, tilt, precision=_PREC)
    density = draw.uniform(0.45, 1.0)
    return Clutter(kind, scale, position, rotation, draw.chance(density, count))


def _thin(key: jax.Array, place: Place) -> Clutter:
    """Poles, rails and cables of 4-25 mm, on the floor, the table or in the air."""
    draw = Draws(key)
    count = THIN.stop - THIN.start
    lying = draw.chance(0.4, count)
    tabled = draw.chance(jnp.where(place.table_top, 0.8, 0.15), count)
    radius = draw.log_uniform(0.004, 0.025, count)
    length = jnp.where(tabled, draw.uniform(0.08, 0.25, count), draw.uniform(0.4, 1.1, count))
    scale = jnp.stack([radius, radius, length], 1)
    tilt = motion.rotation_from_vector(
        jnp.where(lying[:, None], jnp.array([1.5708, 0.0, 0.0]), 0.04 * draw.normal(count, 3))
    )
    rotation = jnp.matmul(_yaw(draw.uniform(-3.1416, 3.1416, count)), tilt, precision=_PREC)
    rise = jnp.where(lying, draw.uniform(0.0, 1.6, count) * (~tabled) + radius, length)
    on_top = on_table(place, draw.uniform(-0.9, 0.9, count, 2), rise)
    ground = jnp.concatenate(
        [draw.uniform(-0.9, 0.9, count, 2) * place.radius, rise[:, None]], axis=1
    )
    position = jnp.where((tabled & place.has_table)[:, None], on_top, ground)
    kind = jnp.where(draw.chance(0.75, count), CYLINDER, BOX)
    return Clutter(kind, scale, position, rotation, draw.chance(0.4, count))


def add_movers(
    key: jax.Array, place: Place, clutter: Clutter, moving: float, walking: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, motion.Motion]:
    """Adds free movers and the figure: (kind, scale, position, rotation, active, Motion) of all.

    Movers roll (balls), slide (boxes, tins) on floor or table, or fly and tumble.
    """
    draw = Draws(key)
    count = MOVERS.stop - MOVERS.start
    has_movers = draw.chance(moving)
    reach = jnp.where(place.table_top, 0.35, jnp.clip(place.radius / 2.5, 0.6, 3.0))
    size = jnp.where(
        place.table_top, draw.log_uniform(0.03, 0.13, count), draw.log_uniform(0.08, 0.4, count)
    )
    flying = draw.chance(0.4, count)
    kind = draw.integer(0, 3, count)
    rolling = ~flying & (kind == SPHERE)
    scale = size[:, None] * jnp.where(rolling[:, None], 1.0, jnp.exp(0.3 * draw.normal(count, 3)))
    across = draw.uniform(-0.8, 0.8, count, 2)
    rise = jnp.where(flying, draw.uniform(0.1, 0.6, count) * reach, 0.0)
    spot = on_table(place, across, scale[:, 2] + rise)
    ground = jnp.concatenate([across * place.radius, (scale[:, 2] + rise)[:, None]], axis=1)
    position = jnp.where(place.table_top, spot, ground)

    level = jnp.where(flying, 1.0, 0.0)[:, None] * jnp.array([0.0, 0.0, 1.0])
    level = level + jnp.array([1.0, 1.0, 0.0])
    velocity = draw.normal(count, 3) * jnp.array([0.45, 0.45, 0.15]) * reach * level
    sway = draw.normal(count, 3) * 0.2 * reach * level * flying[:, None]
    roll = jnp.cross(jnp.array([0.0, 0.0, 1.0]), velocity) / scale[:, 2:]
    tumble = draw.normal(count, 3) * jnp.array([0.6, 0.6, 1.2])
    spin = jnp.where(rolling[:, None], roll, jnp.where(flying[:, None], tumble, 0.0))
    free = dataclasses.replace(
        motion.at_rest(count),
        moving=jnp.ones(count, bool),
        velocity=velocity,
        sway=sway,
        sway_rate=draw.uniform(0.8, 4.0, count),
        sway_phase=draw.uniform(0.0, 6.283, count),
        spin=spin,
    )
    rotation = jnp.matmul(
        _yaw(draw.uniform(-3.1416, 3.1416, count)),
        motion.rotation_from_vector(draw.normal(count, 3) * 0.6 * flying[:, None]),
        precision=_PREC,
    )
    active = draw.chance(draw.uniform(0.35, 1.0), count) & has_movers

    foot = jnp.append(draw.uniform(-0.55, 0.55, 2) * place.radius, 0.0)
    figure_position, figure_rotation, figure_scale, figure_motion = motion.walker(
        foot, draw.uniform(-3.1416, 3.1416), draw.uniform(1.4, 1.9), draw.uniform(0.3, 1.4)
    )
    walks = has_movers & ~place.table_top & draw.chance(walking)
    return (
        jnp.concatenate([clutter.kind, kind, jnp.asarray(motion.WALKER_KINDS)]).astype(jnp.int32),
        jnp.concatenate([clutter.scale, scale, figure_scale]),
        jnp.concatenate([clutter.position, position, figure_position]),
        jnp.concatenate([clutter.rotation, rotation, figure_rotation]),
        jnp.concatenate([clutter.active, active, jnp.broadcast_to(walks, (6,))]),
        jax.tree.map(
            lambda *leaves: jnp.concatenate(leaves),
            motion.at_rest(MOVERS.start),
            free,
            figure_motion,
        ),
    )
