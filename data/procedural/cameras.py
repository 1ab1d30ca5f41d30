"""Camera paths: look-at point, sideways travel, roll, hand-held jitter, all closed form.

World axes are z up, metres. The camera follows OpenCV (x right, y down, z forward). Its principal
point is (W/2, H/2) with pixel centres at integers, as the aligner has it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from data.procedural import motion
from data.procedural.draws import Draws

_PREC = jax.lax.Precision.HIGHEST
_JITTERS = 3  # sinusoids per axis


@dataclasses.dataclass(frozen=True)
class CameraOptions:
    """How cameras move. Distances are scaled by what is in view (metres at about 2.5 m).

    standing: share of scenes with a camera that does not move at all. speed: range (log-uniform)
    of the path speed, 1 = about 0.4 m/s at 2.5 m. turn: the same for the look-at point. jitter:
    range (log-uniform) of hand tremor, 1 = 4 mm and 0.3 deg. fov: horizontal field of view of
    the long side in degrees. roll: standard deviation in degrees; one scene in eight has four
    times as much.
    """

    standing: float = 0.1
    speed: tuple[float, float] = (0.2, 1.8)
    turn: tuple[float, float] = (0.15, 1.5)
    jitter: tuple[float, float] = (0.1, 2.0)
    fov: tuple[float, float] = (38.0, 82.0)
    roll: float = 4.0


@struct.dataclass
class CameraPath:
    """Where the camera is and looks at every time.

    position, velocity, sway (3,), sway_rate (), sway_phase (): as in `motion`. target (3,),
    target_velocity (3,): the point looked at. roll, roll_rate (): rad, rad/s. focal_ratio ():
    focal / long side of the image. low, high (3,): the position is clipped to this box.
    jitter_rate (3,) rad/s; jitter_shift (3, 3) m and jitter_turn (3, 3) rad: amplitude by
    (sinusoid, camera axis); jitter_phase (2, 3, 3).
    """

    position: jax.Array
    velocity: jax.Array
    sway: jax.Array
    sway_rate: jax.Array
    sway_phase: jax.Array
    target: jax.Array
    target_velocity: jax.Array
    roll: jax.Array
    roll_rate: jax.Array
    focal_ratio: jax.Array
    low: jax.Array
    high: jax.Array
    jitter_rate: jax.Array
    jitter_shift: jax.Array
    jitter_turn: jax.Array
    jitter_phase: jax.Array


def pose_at(path: CameraPath, time: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (rotation (3, 3) world_from_cam, position (3,)) at `time` seconds."""
    wave = jnp.sin(path.sway_rate * time + path.sway_phase) - jnp.sin(path.sway_phase)
    base = jnp.clip(path.position + path.velocity * time + path.sway * wave, path.low, path.high)
    level = look_at(base, path.target + path.target_velocity * time)
    roll = path.roll + path.roll_rate * time
    cosine, sine = jnp.cos(roll), jnp.sin(roll)
    rolled = jnp.stack(
        [
            level[:, 0] * cosine + level[:, 1] * sine,
            -level[:, 0] * sine + level[:, 1] * cosine,
            level[:, 2],
        ],
        1,
    )
    waves = jnp.sin(path.jitter_rate[None, :, None] * time + path.jitter_phase)
    shift = (path.jitter_shift * waves[0]).sum(0)
    turn = motion.rotation_from_vector((path.jitter_turn * waves[1]).sum(0))
    rotation = jnp.matmul(rolled, turn, precision=_PREC)
    return rotation, base + jnp.matmul(rolled, shift, precision=_PREC)


def look_at(position: jax.Array, target: jax.Array) -> jax.Array:
    """Rotation (3, 3) world_from_cam of a level camera at `position` (3,) facing `target` (3,)."""
    forward = target - position
    forward = forward / jnp.maximum(jnp.linalg.norm(forward), 1e-6)
    right = jnp.cross(forward, jnp.array([0.0, 0.0, 1.0])) + jnp.array([1e-4, 0.0, 0.0])
    right = right - forward * (right * forward).sum()
    right = right / jnp.linalg.norm(right)
    return jnp.stack([right, jnp.cross(forward, right), forward], 1)


def orbit_point(
    target: jax.Array, azimuth: jax.Array, elevation: jax.Array, distance: jax.Array
) -> jax.Array:
    """The point (3,) at `distance` from the target, `elevation` radians above its horizon."""
    level = jnp.cos(elevation)
    offset = jnp.stack([jnp.cos(azimuth) * level, jnp.sin(azimuth) * level, jnp.sin(elevation)])
    return target + distance * offset


def sample_path(
    key: jax.Array,
    position: jax.Array,
    target: jax.Array,
    low: jax.Array,
    high: jax.Array,
    options: CameraOptions,
) -> CameraPath:
    """Draws a path that starts at `position` (clipped to the box low..high) facing `target`.

    Travel is mostly sideways in the camera's own axes, then forward, least up and down.
    """
    draw = Draws(key, 128)
    position = jnp.clip(position, low, high)
    distance = jnp.linalg.norm(target - position)
    axes = look_at(position, target)
    moves = (draw.uniform(0.0, 1.0) >= options.standing).astype(jnp.float32)
    reach = jnp.clip(distance, 0.4, 6.0) / 2.5
    speed = draw.log_uniform(*options.speed) * reach * moves
    turn = draw.log_uniform(*options.turn) * reach * moves
    jitter = draw.log_uniform(*options.jitter) * moves
    own_velocity = draw.normal(3) * jnp.array([0.45, 0.15, 0.3]) * speed
    tilt = jnp.deg2rad(options.roll) * jnp.where(draw.uniform(0.0, 1.0) < 0.125, 4.0, 1.0)
    fade = 1.0 / jnp.array([1.0, 2.0, 4.0])[:, None]  # fast tremor is small
    return CameraPath(
        position=position,
        velocity=jnp.matmul(axes, own_velocity, precision=_PREC),
        sway=draw.normal(3) * 0.1 * speed,
        sway_rate=draw.uniform(0.5, 3.0),
        sway_phase=draw.uniform(0.0, 6.283),
        target=target,
        target_velocity=draw.normal(3) * jnp.array([0.4, 0.4, 0.25]) * turn,
        roll=draw.normal() * tilt,
        roll_rate=draw.normal() * 0.1 * jnp.minimum(moves * draw.log_uniform(*options.turn), 1.0),
        focal_ratio=0.5 / jnp.tan(jnp.deg2rad(draw.uniform(*options.fov)) / 2),
        low=low,
        high=high,
        jitter_rate=jnp.array([6.0, 14.0, 30.0]) * jnp.exp(0.25 * draw.normal(3)),
        jitter_shift=draw.normal(3, 3) * 0.004 * fade * jitter * jnp.minimum(reach * 2, 1.0),
        jitter_turn=draw.normal(3, 3) * 0.005 * fade * jitter,
        jitter_phase=draw.uniform(0.0, 6.283, 2, 3, 3),
    )
