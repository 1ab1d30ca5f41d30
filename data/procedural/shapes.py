"""Exact ray intersections with spheres, boxes and cylinders under an affine pose.

Rays and points are triples of flat arrays ("planes": x, y, z, each (M,)), and primitives are
scanned one after another: on a CPU this is ten times faster than one batched einsum, because
each step stays in cache and fuses. A ray is `origin + distance * direction`; if the direction has
camera z = 1, the distance is the z depth.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

SPHERE, BOX, CYLINDER, ENVIRONMENT = 0, 1, 2, 3
MISS = 1e9  # distance of a ray that meets nothing
_NEAREST = 1e-3  # metres along the ray; closer hits are the surface that the ray starts on

Planes = tuple[jax.Array, jax.Array, jax.Array]


@struct.dataclass
class Bodies:
    """Primitives at one instant, N of them: |x| <= 1 in the unit shape, `rotation` world_from_body.

    kind: (N,) int32. scale: (N, 3) half sizes in metres. rotation: (N, 3, 3). position: (N, 3)
    metres. active: (N,) bool, False = not there.
    """

    kind: jax.Array
    scale: jax.Array
    rotation: jax.Array
    position: jax.Array
    active: jax.Array


def nearest_hit(origin: Planes, direction: Planes, bodies: Bodies) -> tuple[jax.Array, jax.Array]:
    """Returns (distance (M,), index (M,) int32 of the body) of the first hit; MISS, 0 if none.

    origin may hold scalars (one centre) or (M,) arrays. Sphere and cylinder use the closest
    approach of the ray to the axis, which keeps float32 precision far from the origin.
    """
    shape = direction[0].shape

    def step(carry, body):
        nearest, index, number = carry
        kind, scale, rotation, position, active = body
        offset = [origin[j] - position[j] for j in range(3)]
        inverse_scale = 1.0 / scale
        start = [
            sum(rotation[j, i] * offset[j] for j in range(3)) * inverse_scale[i] for i in range(3)
        ]
        way = [
            sum(rotation[j, i] * direction[j] for j in range(3)) * inverse_scale[i]
            for i in range(3)
        ]
        sphere_in, _ = _round_interval(start, way)
        tube_in, tube_out = _round_interval(start[:2], way[:2])
        slab_in, slab_out = zip(*[_slab_interval(start[i], way[i]) for i in range(3)])
        box_in = jnp.maximum(jnp.maximum(slab_in[0], slab_in[1]), slab_in[2])
        box_out = jnp.minimum(jnp.minimum(slab_out[0], slab_out[1]), slab_out[2])
        box_in = jnp.where(box_in < box_out, box_in, MISS)
        tube_in = jnp.maximum(tube_in, slab_in[2])
        tube_in = jnp.where(tube_in < jnp.minimum(tube_out, slab_out[2]), tube_in, MISS)
        distance = jnp.where(kind == SPHERE, sphere_in, jnp.where(kind == BOX, box_in, tube_in))
        distance = jnp.where((distance > _NEAREST) & active, distance, MISS)
        closer = distance < nearest
        return (
            jnp.where(closer, distance, nearest),
            jnp.where(closer, number, index),
            number + 1,
        ), None

    start_carry = (jnp.full(shape, MISS), jnp.zeros(shape, jnp.int32), jnp.int32(0))
    (distance, index, _), _ = jax.lax.scan(
        step,
        start_carry,
        (bodies.kind, bodies.scale, bodies.rotation, bodies.position, bodies.active),
    )
    return distance, index


def environment_hit(
    origin: Planes, direction: Planes, centre: jax.Array, half: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The wall met from inside a box: (distance (M,), face (M,) int32 = 2 * axis + positive)."""
    exits = []
    for i in range(3):
        inverse = 1.0 / _away_from_zero(direction[i])
        local = origin[i] - centre[i]
        exits.append(jnp.maximum((-half[i] - local) * inverse, (half[i] - local) * inverse))
    distance = jnp.minimum(jnp.minimum(exits[0], exits[1]), exits[2])
    axis = jnp.where(exits[0] <= distance, 0, jnp.where(exits[1] <= distance, 1, 2))
    along = jnp.where(axis == 0, direction[0], jnp.where(axis == 1, direction[1], direction[2]))
    return distance, (2 * axis + (along > 0)).astype(jnp.int32)


def local_normal(kind: jax.Array, face_axis: jax.Array, local: Planes, scale: Planes) -> Planes:
    """Outward unit normal (up to sign for the environment) in body axes.

    kind: (M,). face_axis: (M,) axis of an environment face. local: point in body axes, metres.
    """
    unit = [local[i] / scale[i] for i in range(3)]
    largest = jnp.maximum(jnp.maximum(jnp.abs(unit[0]), jnp.abs(unit[1])), jnp.abs(unit[2]))
    on_cap = jnp.abs(unit[2]) > 0.9999
    normal = []
    for i in range(3):
        ellipsoid = unit[i] / scale[i]
        box = jnp.where(jnp.abs(unit[i]) >= largest - 1e-6, jnp.sign(unit[i]), 0.0)
        cap = jnp.sign(unit[2]) if i == 2 else jnp.zeros_like(unit[2])
        tube = jnp.zeros_like(unit[2]) if i == 2 else ellipsoid
        cylinder = jnp.where(on_cap, cap, tube)
        face = (face_axis == i).astype(unit[i].dtype)
        normal.append(
            jnp.where(
                kind == SPHERE,
                ellipsoid,
                jnp.where(kind == BOX, box, jnp.where(kind == CYLINDER, cylinder, face)),
            )
        )
    length = jnp.sqrt(sum(n * n for n in normal)) + 1e-9
    return tuple(n / length for n in normal)


def surface_coordinates(local: Planes, normal: Planes) -> tuple[jax.Array, jax.Array]:
    """The two local coordinates (metres) across the dominant axis of the normal."""
    size = [jnp.abs(n) for n in normal]
    first = (size[0] >= size[1]) & (size[0] >= size[2])
    second = ~first & (size[1] >= size[2])
    u = jnp.where(first, local[1], local[0])
    v = jnp.where(first | second, local[2], local[1])
    return u, v


def _round_interval(start: list, way: list) -> tuple[jax.Array, jax.Array]:
    """Entry and exit of the unit ball in len(start) dimensions."""
    speed2 = sum(w * w for w in way) + 1e-12
    closest = -sum(s * w for s, w in zip(start, way)) / speed2
    gap2 = sum((s + closest * w) ** 2 for s, w in zip(start, way))
    reach = jnp.sqrt(jnp.maximum(1.0 - gap2, 0.0) / speed2)
    inside = gap2 < 1.0
    return (
        jnp.where(inside, closest - reach, MISS),
        jnp.where(inside, closest + reach, -MISS),
    )


def _slab_interval(start: jax.Array, way: jax.Array) -> tuple[jax.Array, jax.Array]:
    inverse = 1.0 / _away_from_zero(way)
    first, second = (-1.0 - start) * inverse, (1.0 - start) * inverse
    return jnp.minimum(first, second), jnp.maximum(first, second)


def _away_from_zero(value: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(value) < 1e-9, 1e-9, value)
