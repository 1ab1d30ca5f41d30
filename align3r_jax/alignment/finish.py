"""From aligned variables to the scene that a user gets."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.alignment import mask_outline
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.align import AlignResult
from align3r_jax.alignment.user_world import World
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import camera, rigid
from align3r_jax.structs import Array, Frames, Scene

_VIEWS_AT_ONCE = 4  # cameras that look at the points of one frame together; bounds the memory


def to_scene(
    result: AlignResult,
    frames: Frames,
    config: AlignmentConfig,
    *,
    world: World | None = None,
    scale: float = 1.0,
    metric: bool = False,
    given_mask: np.ndarray | None = None,
) -> Scene:
    """Returns depth, cameras, masks, confidence and colours as one `Scene` of NumPy arrays.

    world: the way from the result to the world of known poses; None: the world is the camera of
    the first frame, unless the poses were given. scale: multiplies the result before. With
    `config.clean` standing points that others see through have confidence 0. metric: depth is in
    metres.
    given_mask: (T, H, W) float32 masks of the user, NaN where there are none; with
    `config.outline_masks` the others are drawn to the edges of their images.
    """
    height, width = result.variables.log_depth.shape[-2:]
    geometry = variables_lib.decode_whole(result.variables, config, (height, width))
    poses = geometry.world_from_cam
    if world is None and not result.fixed_world:
        poses = _from_first(poses)
    mask = np.asarray(result.dynamic_mask, bool)
    if config.outline_masks:
        mask = mask_outline.to_image_edges(mask, np.asarray(frames.images), given_mask)
    confidence = np.asarray(result.confidence, np.float32)
    if config.clean:
        cleaned = clean_confidence(
            confidence,
            geometry.depth,
            geometry.intrinsics,
            poses,
            config.clean_tolerance,
            config.clean_views,
        )
        # Another frame says nothing of what has moved on since.
        confidence = np.where(mask, confidence, cleaned)
    poses = np.array(poses, np.float64)
    poses[:, :3, 3] *= scale
    factor = scale
    if world is not None:
        factor, poses = world.scale * scale, world.poses_to_user(poses)
    return Scene(
        depth=np.asarray(geometry.depth, np.float32) * np.float32(factor),
        world_from_cam=poses.astype(np.float32),
        intrinsics=np.asarray(geometry.intrinsics),
        confidence=np.asarray(confidence, np.float32),
        dynamic_mask=mask,
        colours=np.asarray(frames.images),
        times=np.asarray(frames.times),
        pair_losses=np.asarray(result.pair_losses),
        trace={name: np.asarray(values) for name, values in result.trace.items()},
        size=frames.size,
        names=frames.names,
        metric=metric,
    )


@jax.jit
def _from_first(world_from_cam: Array) -> Array:
    return rigid.compose(rigid.invert(world_from_cam[:1]), world_from_cam)


@functools.partial(jax.jit, static_argnames=("tolerance", "views"))
def clean_confidence(
    confidence: Array,
    depth: Array,
    intrinsics: Array,
    world_from_cam: Array,
    tolerance: float = 0.001,
    views: int = 0,
) -> Array:
    """Returns the confidence, 0 for points that float before a surface another frame is surer of.

    For i ascending, for all j != i: the points of frame i that lie at z < (1 - tolerance) D_j in
    the pixel of camera j they fall on, with conf_i < conf_j there, get min(conf_i, 0). Frame i
    meets the already lowered confidences of the frames before it. Of more than `views` other
    frames (0: no limit) only so many look, at distances that grow geometrically to both sides.

    confidence, depth: (T, H, W). intrinsics: (T, 3, 3). world_from_cam: (T, 4, 4).
    """
    frames, height, width = depth.shape
    cam_from_world = rigid.invert(world_from_cam)
    all_look = views <= 0 or frames <= views + 1
    distances = np.unique(np.geomspace(1, max(frames - 1, 1), max(views // 2, 1)).round())
    steps = np.concatenate([-distances, distances]).astype(np.int32)

    def lower(current, i):
        points = camera.unproject(depth[i], intrinsics[i]).reshape(-1, 3)
        points = rigid.apply(world_from_cam[i], points)

        def is_seen_through(view):
            j = jnp.clip(view, min=0, max=frames - 1)
            local = rigid.apply(cam_from_world[j], points)
            pixel = rigid.rotate(intrinsics[j], local)
            z = local[:, 2]
            x, y = (jnp.round(pixel[:, a] / pixel[:, 2]) for a in range(2))
            inside = (z > 0) & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
            index = jnp.where(inside, y * width + x, 0).astype(jnp.int32)
            before = z < (1 - tolerance) * depth[j].reshape(-1)[index]
            unsure = current[i].reshape(-1) < current[j].reshape(-1)[index]
            return inside & before & unsure & (view == j) & (j != i)

        # The confidence of i is not compared again once lowered (it cannot fall below 0), so all
        # j can be looked at together.
        looking = jnp.arange(frames) if all_look else i + steps
        seen = jax.lax.map(is_seen_through, looking, batch_size=_VIEWS_AT_ONCE)
        lowered = jnp.minimum(current[i], 0)
        mask = jnp.any(seen, axis=0).reshape(height, width)
        return current.at[i].set(jnp.where(mask, lowered, current[i])), None

    return jax.lax.scan(lower, confidence, jnp.arange(frames))[0]


def point_mask(scene: Scene, min_confidence: float) -> np.ndarray:
    """Returns (T, H, W) bool: pixels whose points are worth showing, confidence above the bar."""
    return np.asarray(scene.confidence) > min_confidence
