"""From a scene and a time to colours with exact z depth, instance, pose and flow.

Pixel (x, y), centres at integers, looks along ((x - W/2) / f, (y - H/2) / f, 1) in the camera's
axes: the principal point is (W/2, H/2), f = focal_ratio * max(H, W).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from data.procedural import cameras, layout, motion, shapes, textures
from data.procedural.scene import CEILING, Scene

_PREC = jax.lax.Precision.HIGHEST
_DETAIL = 7.3  # fine texture has this many times the density of the coarse one
_AHEAD = 1e-3  # metres; points nearer than this to the plane of the camera do not project
_VISIBLE_TOLERANCE = 2e-3  # relative depth by which a point may lie behind the first surface


@struct.dataclass
class View:
    """What is exactly known of one frame.

    depth: (H, W) float32 metres along z. index: (H, W) int32, primitive, or count + face of the
    environment. world_from_cam: (4, 4). focal: () pixels. bodies: the primitives at that time.
    """

    depth: jax.Array
    index: jax.Array
    world_from_cam: jax.Array
    focal: jax.Array
    bodies: shapes.Bodies


def bodies_at(scene: Scene, time: jax.Array) -> shapes.Bodies:
    """The primitives of the scene at `time` seconds."""
    rotation, position = motion.pose_at(scene.motion, scene.position, scene.rotation, time)
    return shapes.Bodies(scene.kind, scene.scale, rotation, position, scene.active)


def view(scene: Scene, time: jax.Array, height: int, width: int) -> View:
    """Depth, instances and pose of one frame (no colours)."""
    bodies = bodies_at(scene, time)
    rotation, position = cameras.pose_at(scene.camera, time)
    focal = scene.camera.focal_ratio * max(height, width)
    depth, index = _trace(scene, bodies, position, _rays(rotation, focal, height, width))
    return View(
        depth=depth.reshape(height, width),
        index=index.reshape(height, width),
        world_from_cam=_pose(rotation, position),
        focal=focal,
        bodies=bodies,
    )


def colours(
    scene: Scene,
    time: jax.Array,
    bank: textures.TextureBank,
    height: int,
    width: int,
    *,
    offset: tuple[jax.Array, jax.Array] = (0.0, 0.0),
    level_bias: float = 0.0,
    shadows: bool = True,
    trilinear: bool = False,
) -> jax.Array:
    """Returns (H, W, 3) float32 light (about 0..1, not clipped), one sample per pixel.

    offset: of the sample from the pixel centre, pixels. level_bias: added to the mip level
    (-log2 of the samples per side when several are averaged).
    """
    bodies = bodies_at(scene, time)
    rotation, position = cameras.pose_at(scene.camera, time)
    focal = scene.camera.focal_ratio * max(height, width)
    direction = _rays(rotation, focal, height, width, offset)
    distance, index = _trace(scene, bodies, position, direction)
    light = _shade(
        scene,
        bodies,
        bank,
        position,
        direction,
        distance,
        index,
        focal,
        level_bias,
        shadows,
        trilinear,
    )
    return light.reshape(height, width, 3)


def shade_view(
    scene: Scene, seen: View, bank: textures.TextureBank, *, shadows: bool = True
) -> jax.Array:
    """Light (H, W, 3) of the very samples that a view traced: one sample per pixel."""
    height, width = seen.depth.shape
    rotation, position = seen.world_from_cam[:3, :3], seen.world_from_cam[:3, 3]
    light = _shade(
        scene, seen.bodies, bank, position, _rays(rotation, seen.focal, height, width),
        seen.depth.reshape(-1), seen.index.reshape(-1), seen.focal, 0.0, shadows, False,
    )  # fmt: skip
    return light.reshape(height, width, 3)


def flow(scene: Scene, source: View, target: View) -> tuple[jax.Array, jax.Array]:
    """Exact flow source -> target: ((H, W, 2) pixels x y, (H, W) bool visible in the target).

    Each point rides on its primitive: x2 = C2^-1 B2 B1^-1 C1 x1 (C world_from_cam, B
    world_from_body). Visible: in front of the camera, inside the image, and the ray towards it
    meets nothing before it.
    """
    height, width = source.depth.shape
    moved, second = _displace(scene, source, target.bodies, target.world_from_cam, target.focal)
    x, y = _pixels(height, width)
    x2, y2 = x + moved[..., 0].reshape(-1), y + moved[..., 1].reshape(-1)
    ahead = second[2] > _AHEAD
    inside = (x2 >= -0.5) & (x2 <= width - 0.5) & (y2 >= -0.5) & (y2 <= height - 0.5)
    z = jnp.where(ahead, second[2], 1.0)
    rotation, position = target.world_from_cam[:3, :3], target.world_from_cam[:3, 3]
    ray = [second[0] / z, second[1] / z, jnp.ones_like(z)]
    direction = tuple(sum(rotation[i, j] * ray[j] for j in range(3)) for i in range(3))
    nearest, _ = _trace(scene, target.bodies, position, direction)
    visible = ahead & inside & (nearest > z * (1 - _VISIBLE_TOLERANCE))
    return moved, visible.reshape(height, width)


def velocity(scene: Scene, seen: View, time: jax.Array, interval: float) -> jax.Array:
    """Image motion (H, W, 2) in pixels over `interval` seconds from `time`, without visibility."""
    later = time + interval
    rotation, position = cameras.pose_at(scene.camera, later)
    return _displace(scene, seen, bodies_at(scene, later), _pose(rotation, position), seen.focal)[0]


def dynamic_mask(scene: Scene, seen: View) -> jax.Array:
    """(H, W) bool: pixels of primitives that move by themselves."""
    moving = jnp.append(scene.motion.moving, False)
    return moving[jnp.minimum(seen.index, layout.COUNT)]


def _pixels(height, width):
    y, x = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32), indexing="ij"
    )
    return x.reshape(-1), y.reshape(-1)


def _rays(rotation, focal, height, width, offset=(0.0, 0.0)):
    """World directions (planes of (H*W,)) with camera z = 1."""
    x, y = _pixels(height, width)
    ray = ((x + offset[0] - width / 2) / focal, (y + offset[1] - height / 2) / focal)
    return tuple(
        rotation[i, 0] * ray[0] + rotation[i, 1] * ray[1] + rotation[i, 2] for i in range(3)
    )


def _pose(rotation, position):
    top = jnp.concatenate([rotation, position[:, None]], axis=1)
    return jnp.concatenate([top, jnp.array([[0.0, 0.0, 0.0, 1.0]])])


def _trace(scene, bodies, origin, direction):
    centre = tuple(origin[i] for i in range(3))
    distance, index = shapes.nearest_hit(centre, direction, bodies)
    wall, face = shapes.environment_hit(centre, direction, scene.centre, scene.half)
    behind = wall <= distance
    return jnp.where(behind, wall, distance), jnp.where(behind, layout.COUNT + face, index)


def _displace(scene, source, bodies2, world_from_cam2, focal2):
    """Flow (H, W, 2) of the pixels of a view, and their points in the axes of camera 2."""
    height, width = source.depth.shape
    row = _relative_motion(scene, source, bodies2, world_from_cam2)[
        jnp.minimum(source.index.reshape(-1), layout.COUNT)
    ]
    x, y = _pixels(height, width)
    depth = source.depth.reshape(-1)
    first = (
        (x - width / 2) / source.focal * depth,
        (y - height / 2) / source.focal * depth,
        depth,
    )
    second = [
        sum(row[:, 4 * i + j] * first[j] for j in range(3)) + row[:, 4 * i + 3] for i in range(3)
    ]
    z = jnp.where(second[2] > _AHEAD, second[2], 1.0)
    moved = jnp.stack(
        [
            second[0] / z * focal2 + width / 2 - x,
            second[1] / z * focal2 + height / 2 - y,
        ],
        axis=-1,
    )
    return moved.reshape(height, width, 2), second


def _relative_motion(scene, source, bodies2, world_from_cam2):
    """(N+1, 12) rows map points of camera 1 to camera 2 on each primitive; the last is still."""

    def inverse(pose):
        turn = jnp.swapaxes(pose[..., :3, :3], -1, -2)
        shift = -jnp.einsum("...ij,...j->...i", turn, pose[..., :3, 3], precision=_PREC)
        return turn, shift

    # Relative to camera 1, so that float32 does not feel where the world's origin is.
    origin = source.world_from_cam[:3, 3]
    turn2, _ = inverse(world_from_cam2)
    turn1 = source.world_from_cam[:3, :3]
    still = jnp.matmul(turn2, turn1, precision=_PREC)
    still_shift = jnp.matmul(turn2, origin - world_from_cam2[:3, 3], precision=_PREC)
    body_turn = jnp.matmul(
        bodies2.rotation, jnp.swapaxes(source.bodies.rotation, -1, -2), precision=_PREC
    )
    rides = jnp.einsum("ij,njk,kl->nil", turn2, body_turn, turn1, precision=_PREC)
    arm = jnp.einsum("nij,nj->ni", body_turn, origin - source.bodies.position, precision=_PREC)
    shift = bodies2.position + arm - world_from_cam2[:3, 3]
    rides_shift = jnp.einsum("ij,nj->ni", turn2, shift, precision=_PREC)
    moving = scene.motion.moving
    turn = jnp.where(moving[:, None, None], rides, still)
    shift = jnp.where(moving[:, None], rides_shift, still_shift)
    top = jnp.concatenate([turn, shift[..., None]], axis=-1)
    last = jnp.concatenate([still, still_shift[:, None]], axis=-1)[None]
    return jnp.concatenate([top, last]).reshape(-1, 12)


def _surface_table(scene, bodies):
    """(N+6, 25): everything that shading needs of a primitive or face, for one row gather."""
    faces = jnp.arange(6)
    rotation = jnp.concatenate([bodies.rotation, jnp.broadcast_to(jnp.eye(3), (6, 3, 3))])
    position = jnp.concatenate([bodies.position, jnp.broadcast_to(scene.centre, (6, 3))])
    scale = jnp.concatenate([bodies.scale, jnp.broadcast_to(scene.half, (6, 3))])
    kind = jnp.concatenate([bodies.kind, jnp.full(6, shapes.ENVIRONMENT)])
    axis = jnp.concatenate([jnp.zeros(layout.COUNT, jnp.int32), faces // 2])
    look = scene.surfaces
    columns = [
        rotation.reshape(-1, 9), position, scale, kind[:, None], axis[:, None], look.tile[:, None],
        look.density[:, None], look.offset, look.tint, look.gloss[:, None],
    ]  # fmt: skip
    return jnp.concatenate([column.astype(jnp.float32) for column in columns], axis=1)


def _shade(
    scene, bodies, bank, origin, direction, distance, index, focal, level_bias, shadows, trilinear
):
    row = _surface_table(scene, bodies)[index]
    point = tuple(origin[i] + distance * direction[i] for i in range(3))
    from_centre = [point[i] - row[:, 9 + i] for i in range(3)]
    local = tuple(sum(row[:, 3 * j + i] * from_centre[j] for j in range(3)) for i in range(3))
    normal = shapes.local_normal(
        row[:, 15], row[:, 16], local, tuple(row[:, 12 + i] for i in range(3))
    )
    u, v = shapes.surface_coordinates(local, normal)
    normal = tuple(sum(row[:, 3 * i + j] * normal[j] for j in range(3)) for i in range(3))
    length = jnp.sqrt(sum(d * d for d in direction))
    facing = sum(n * d for n, d in zip(normal, direction))
    normal = tuple(jnp.where(facing > 0, -n, n) for n in normal)
    cosine = jnp.abs(facing) / length

    tile = row[:, 17].astype(jnp.int32) % bank.num_tiles
    density, offset = row[:, 18], (row[:, 19], row[:, 20])
    footprint = distance * density * (textures.TILE / focal)
    level = jnp.log2(footprint / jnp.sqrt(jnp.maximum(cosine, 0.05)) + 1e-9) + level_bias
    uv = (u * density + offset[0], v * density + offset[1])
    fine_uv = (uv[0] * _DETAIL, uv[1] * _DETAIL)
    albedo = textures.sample(bank, tile, uv, level, trilinear)
    fine = textures.sample(
        bank, (tile * 7 + 3) % bank.num_tiles, fine_uv, level + jnp.log2(_DETAIL), trilinear
    )
    # Fine grain in brightness only; it fades to its mean with distance, as the mips do.
    albedo = albedo * (0.8 + 0.4 * fine.mean(-1, keepdims=True))
    albedo = 0.45 + (albedo - 0.45) * scene.surfaces.contrast
    albedo = albedo * row[:, 21:24]

    sun = scene.light.direction
    incident = jnp.maximum(sum(normal[i] * sun[i] for i in range(3)), 0.0)
    lit = jnp.ones_like(incident)
    if shadows:
        raised = tuple(point[i] + normal[i] * 3e-3 for i in range(3))
        towards = tuple(jnp.broadcast_to(sun[i], incident.shape) for i in range(3))
        blocked = shapes.nearest_hit(raised, towards, bodies)[0] < shapes.MISS / 2
        lit = jnp.where(blocked, 0.12, 1.0)
    half = [sun[i] - direction[i] / length for i in range(3)]
    half_length = jnp.sqrt(sum(h * h for h in half)) + 1e-6
    mirror = jnp.maximum(sum(normal[i] * half[i] for i in range(3)) / half_length, 0.0)
    highlight = row[:, 24] * lit * mirror**24
    ambient = scene.light.ambient * (0.8 + 0.2 * normal[2])
    lamp = scene.light.lamp * cosine / (1 + 0.3 * distance**2)
    brightness = ambient + (1 - scene.light.ambient) * 1.3 * incident * lit + lamp
    sky = scene.outdoor & (index == CEILING)
    brightness = jnp.where(sky, 1.1, brightness)
    return albedo * brightness[:, None] + highlight[:, None]
