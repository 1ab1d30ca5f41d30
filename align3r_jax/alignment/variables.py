"""What the aligner changes: codings of depth, cameras and pair similarities; what stays frozen.

Frame n: depth D = exp(log_depth), focal f = exp(log_focal / focal_break), principal point
(W/2, H/2) + 10 * principal_point, pose from a quaternion and a coded translation.
Pair e maps its points x to the world by sigma_e (R_e (a_e * x) + T_e): the scale multiplies the
translation as well. sigma_e = g exp(s_e), g = exp(ln base_scale - mean s): the geometric mean of
all sigma_e is always `base_scale`, so the scene can neither shrink nor grow.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.geometry import camera, rigid
from align3r_jax.structs import AlignmentVariables, Array

PRINCIPAL_POINT_UNIT = 10.0  # pixels per unit of the variable


@struct.dataclass
class Known:
    """What is given from outside: held fixed, or a soft prior where it has deviations.

    world_from_cam: (T, 4, 4). focal: (T,) working pixels. principal_point: (T, 2) working pixels.
    depth: (T, H, W). None: free. pose_mask, intrinsics_mask: (T,) bool, the frames whose pose,
    whose focal and principal point are known (any finite value stands for the others); None: all.

    rotation_deviation (T,) radians and translation_deviation (T,) in the unit of the poses: poses
    are not held but drawn to the given ones; None: held. focal_deviation (T,) of ln focal likewise.
    fixes_scale: the poses say how large the world is.
    """

    world_from_cam: Array | None = None
    focal: Array | None = None
    principal_point: Array | None = None
    depth: Array | None = None
    pose_mask: Array | None = None
    intrinsics_mask: Array | None = None
    rotation_deviation: Array | None = None
    translation_deviation: Array | None = None
    focal_deviation: Array | None = None
    fixes_scale: bool = struct.field(pytree_node=False, default=True)

    @property
    def holds_all_cameras(self) -> bool:
        """Poses and focals of all frames are given and held."""
        given = self.world_from_cam is not None and self.focal is not None
        return given and self.holds_all_poses and self.holds_all_intrinsics

    @property
    def holds_all_poses(self) -> bool:
        """Whatever poses are given are those of all frames, and held."""
        return self.pose_mask is None and self.rotation_deviation is None

    @property
    def holds_a_scale(self) -> bool:
        """Poses of all frames are given and held, and they say how large the world is."""
        return self.world_from_cam is not None and self.holds_all_poses and self.fixes_scale

    @property
    def holds_all_intrinsics(self) -> bool:
        """Whatever focals are given are those of all frames, and held."""
        return self.intrinsics_mask is None and self.focal_deviation is None

    def known_focals(self, num_frames: int) -> np.ndarray:
        """Returns (T,) float64 pixels, NaN where the focal is not known."""
        if self.focal is None:
            return np.full(num_frames, np.nan)
        focals = np.array(self.focal, np.float64)
        return (
            focals
            if self.intrinsics_mask is None
            else np.where(self.intrinsics_mask, focals, np.nan)
        )

    def check(self, num_frames: int, height: int, width: int) -> Known:
        """Returns self. Raises UserError if an array does not fit T frames of H x W."""
        expected = {
            "world_from_cam": (num_frames, 4, 4),
            "focal": (num_frames,),
            "principal_point": (num_frames, 2),
            "depth": (num_frames, height, width),
            "pose_mask": (num_frames,),
            "intrinsics_mask": (num_frames,),
            "rotation_deviation": (num_frames,),
            "translation_deviation": (num_frames,),
            "focal_deviation": (num_frames,),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is None:
                continue
            if tuple(np.shape(value)) != shape:
                raise UserError(
                    f"Known {name} has shape {tuple(np.shape(value))}, expected {shape}: give it "
                    "for every frame or not at all."
                )
            if not np.all(np.isfinite(np.asarray(value))):
                raise UserError(
                    f"Known {name} holds NaN or infinite values; every value is needed."
                )
            positive = name in ("focal", "depth") or name.endswith("deviation")
            if positive and np.any(np.asarray(value) <= 0):
                raise UserError(f"Known {name} must be positive everywhere.")
        return self


@struct.dataclass
class Geometry:
    """Decoded variables.

    depth: (T, H, W). world_from_cam: (T, 4, 4). focal: (T,), principal_point: (T, 2), intrinsics:
    (T, 3, 3), pixels. pair_scale: (P,) sigma_e. pair_matrix: (P, 3, 3) = sigma_e R_e diag(a_e),
    pair_offset: (P, 3) = sigma_e T_e, so that a pair's point x lies at pair_matrix x + pair_offset.
    """

    depth: Array
    world_from_cam: Array
    focal: Array
    principal_point: Array
    intrinsics: Array
    pair_scale: Array
    pair_matrix: Array
    pair_offset: Array


def settings_with_known(config: AlignmentConfig, known: Known | None) -> AlignmentConfig:
    """Returns the config that holds with `known`.

    Known poses fix the scale of the world, so g = 1; focals that are held are one per frame.
    """
    known = known or Known()
    if known.world_from_cam is not None and known.fixes_scale:
        config = dataclasses.replace(config, normalise_pair_scale=False)
    if known.focal is not None and known.focal_deviation is None:
        config = dataclasses.replace(config, shared_focal=False)
    return config


def scale_normalisation(
    pair_log_scale: Array, config: AlignmentConfig, pair_valid: Array | None = None
) -> Array:
    """Returns g = base_scale / geometric mean of the pair scales, () ; 1 if not normalised.

    pair_valid: (P,) 0 or 1, the pairs that count; None: all.
    """
    if not config.normalise_pair_scale:
        return jnp.ones((), pair_log_scale.dtype)
    return jnp.exp(jnp.log(config.base_scale) - mean_of_valid(pair_log_scale, pair_valid))


def mean_of_valid(values: Array, valid: Array | None) -> Array:
    """Returns the mean of the values (n,) with `valid` (n,) 1, 0 without any; None: of all.

    What is not valid must still be finite.
    """
    if valid is None:
        return jnp.mean(values)
    return jnp.sum(valid * values) / jnp.maximum(jnp.sum(valid), 1)


def without_invalid(
    variables: AlignmentVariables, frame_valid: Array | None, pair_valid: Array | None
) -> AlignmentVariables:
    """Returns the variables with 0 (the identity) in frames and pairs that only fill up a shape.

    So whatever they hold, NaN included, reaches neither the loss nor a gradient. frame_valid: (T,),
    pair_valid: (P,), 0 or 1; None: all valid.
    """

    def keep(valid, names):
        kept = {}
        for name in names if valid is not None else ():
            value = getattr(variables, name)
            if value.shape[0] != valid.shape[0]:
                continue  # a shared focal
            neutral = jnp.zeros(value.shape[1:], value.dtype)
            if name.endswith("quaternion"):
                neutral = neutral.at[3].set(1)
            is_valid = jnp.reshape(valid > 0, (-1,) + (1,) * neutral.ndim)
            kept[name] = jnp.where(is_valid, value, neutral)
        return kept

    frame_groups = (
        "log_depth", "frame_quaternion", "frame_translation", "log_focal", "principal_point",
    )  # fmt: skip
    pair_groups = ("pair_quaternion", "pair_translation", "pair_log_scale", "pair_adaptor")
    return dataclasses.replace(
        variables, **keep(frame_valid, frame_groups), **keep(pair_valid, pair_groups)
    )


def encode(
    depth: Array,
    world_from_cam: Array,
    focal: Array,
    pair_scale: Array,
    pair_rotation: Array,
    pair_translation: Array,
    config: AlignmentConfig,
    *,
    principal_point: Array | None = None,
) -> AlignmentVariables:
    """Returns the variables of a scene.

    depth: (T, H, W), already multiplied by g like the pose translations; non-positive or
    non-finite depths become 1. world_from_cam: (T, 4, 4). focal: (T,) pixels; the shared focal is
    their mean.
    pair_scale (P,), pair_rotation (P, 3, 3), pair_translation (P, 3): the similarity x -> s R x + T
    of every pair before the multiplication by g, so T / s and ln s are coded.
    principal_point: (T, 2) pixels, default (W/2, H/2).
    """
    depth = jnp.asarray(depth)
    frames, height, width = depth.shape
    world_from_cam, pair_scale = jnp.asarray(world_from_cam), jnp.asarray(pair_scale)
    if config.shared_focal:
        focal = jnp.mean(jnp.asarray(focal), keepdims=True)
    centre = jnp.array([width / 2, height / 2], depth.dtype)
    offset = 0.0 if principal_point is None else (principal_point - centre)
    positive = (depth > 0) & jnp.isfinite(depth)
    return AlignmentVariables(
        log_depth=jnp.where(positive, jnp.log(jnp.where(positive, depth, 1.0)), 0.0),
        frame_quaternion=rigid.quaternion_from_matrix(world_from_cam[..., :3, :3]),
        frame_translation=rigid.encode_translation(world_from_cam[..., :3, 3]),
        log_focal=config.focal_break * jnp.log(jnp.asarray(focal)),
        principal_point=jnp.zeros((frames, 2), depth.dtype) + offset / PRINCIPAL_POINT_UNIT,
        pair_quaternion=rigid.quaternion_from_matrix(jnp.asarray(pair_rotation)),
        pair_translation=rigid.encode_translation(
            jnp.asarray(pair_translation) / pair_scale[:, None]
        ),
        pair_log_scale=jnp.log(pair_scale),
        pair_adaptor=jnp.zeros((pair_scale.shape[0], 2), depth.dtype),
    )


def with_known(
    variables: AlignmentVariables, known: Known | None, config: AlignmentConfig
) -> AlignmentVariables:
    """Returns the variables with every known quantity that is held written over the estimated one.

    A soft focal is written too: it is where the optimisation starts.
    """
    known = known or Known()
    changes = {}

    def write(name: str, value: Array, mask: Array | None) -> None:
        if mask is not None:
            mask = jnp.asarray(mask).reshape((-1,) + (1,) * (value.ndim - 1))
            value = jnp.where(mask, value, getattr(variables, name))
        changes[name] = value

    if known.world_from_cam is not None and known.rotation_deviation is None:
        pose = jnp.asarray(known.world_from_cam, variables.log_depth.dtype)
        quaternion = rigid.quaternion_from_matrix(pose[:, :3, :3])
        write("frame_quaternion", quaternion, known.pose_mask)
        write("frame_translation", rigid.encode_translation(pose[:, :3, 3]), known.pose_mask)
    if known.focal is not None:
        log_focal = config.focal_break * jnp.log(
            jnp.asarray(known.focal, variables.log_depth.dtype)
        )
        if config.shared_focal:
            weight = None if known.intrinsics_mask is None else jnp.asarray(known.intrinsics_mask)
            log_focal = jnp.average(log_focal, weights=weight, keepdims=True)
            changes["log_focal"] = log_focal
        else:
            write("log_focal", log_focal, known.intrinsics_mask)
    if known.principal_point is not None:
        height, width = variables.log_depth.shape[-2:]
        offset = jnp.asarray(known.principal_point) - jnp.array([width / 2, height / 2])
        write("principal_point", offset / PRINCIPAL_POINT_UNIT, known.intrinsics_mask)
    if known.depth is not None:
        changes["log_depth"] = jnp.log(jnp.asarray(known.depth, variables.log_depth.dtype))
    return dataclasses.replace(variables, **changes)


def adaptor_scale(pair_adaptor: Array, config: AlignmentConfig) -> Array:
    """Returns (P, 3), the stretch of x, y, z: exp(a / adaptor_break), a = (a1, a1, a2).

    With normalised pair scales the mean of a is removed, so the stretch keeps the volume.
    """
    a = jnp.stack([pair_adaptor[:, 0], pair_adaptor[:, 0], pair_adaptor[:, 1]], axis=-1)
    if config.normalise_pair_scale:
        a = a - jnp.mean(a, axis=-1, keepdims=True)
    return jnp.exp(a / config.adaptor_break)


def decode(
    variables: AlignmentVariables,
    config: AlignmentConfig,
    image_size: tuple[int, int],
    pair_valid: Array | None = None,
) -> Geometry:
    """Returns what the variables mean. image_size: (H, W) of the working size.

    pair_valid: (P,) 0 or 1, the pairs whose scales are normalised; None: all.
    """
    height, width = image_size
    frames = variables.frame_quaternion.shape[0]
    focal = jnp.exp(jnp.broadcast_to(variables.log_focal, (frames,)) / config.focal_break)
    centre = jnp.array([width / 2, height / 2], focal.dtype)
    principal_point = centre + PRINCIPAL_POINT_UNIT * variables.principal_point
    scale = jnp.exp(variables.pair_log_scale) * scale_normalisation(
        variables.pair_log_scale, config, pair_valid
    )
    rotation = rigid.matrix_from_quaternion(variables.pair_quaternion)
    stretch = adaptor_scale(variables.pair_adaptor, config)
    return Geometry(
        depth=jnp.exp(variables.log_depth),
        world_from_cam=rigid.pose(
            rigid.matrix_from_quaternion(variables.frame_quaternion),
            rigid.decode_translation(variables.frame_translation),
        ),
        focal=focal,
        principal_point=principal_point,
        intrinsics=camera.intrinsics_matrix(focal, principal_point),
        pair_scale=scale,
        pair_matrix=scale[:, None, None] * rotation * stretch[:, None, :],
        pair_offset=scale[:, None] * rigid.decode_translation(variables.pair_translation),
    )


@functools.partial(jax.jit, static_argnames=("config", "image_size"))
def decode_whole(
    variables: AlignmentVariables, config: AlignmentConfig, image_size: tuple[int, int]
) -> Geometry:
    """`decode` for the host: one program, where that would compile every operation."""
    return decode(variables, config, image_size)


def trainable(
    variables: AlignmentVariables, config: AlignmentConfig, known: Known | None = None
) -> AlignmentVariables:
    """Returns the variables' tree with a bool per group: True where the optimiser may move it.

    A group that is held in some frames only is a (T,) bool array instead.
    """
    known = known or Known()

    def free(value: Array | None, mask: Array | None, deviation: Array | None) -> Array | bool:
        if value is None or deviation is not None:
            return True
        return False if mask is None else ~jnp.asarray(mask, bool)

    pose = free(known.world_from_cam, known.pose_mask, known.rotation_deviation)
    point = free(known.principal_point, known.intrinsics_mask, None)
    return AlignmentVariables(
        log_depth=known.depth is None,
        frame_quaternion=pose,
        frame_translation=pose,
        log_focal=free(known.focal, known.intrinsics_mask, known.focal_deviation),
        principal_point=point if config.optimise_principal_point else False,
        pair_quaternion=True,
        pair_translation=True,
        pair_log_scale=True,
        pair_adaptor=config.optimise_adaptors,
    )
