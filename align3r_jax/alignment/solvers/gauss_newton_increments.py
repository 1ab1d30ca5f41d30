"""Small steps of cameras and pair similarities: which unknown is which, and how a step is taken.

A frame moves by (w, t, a): R <- exp([w]) R, T <- T + t, ln f <- ln f + a, and its principal point
by a step of its variable. A pair's map x -> A x + b moves by A <- e^c exp([w]) A, b <- b + t, and
its adaptor by a step of its variable. With normalised pair scales the steps c sum to 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.objective import Problem
from align3r_jax.alignment.solvers import depth_terms
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import rigid
from align3r_jax.structs import AlignmentVariables

Array = jax.Array

PAIR_SCALE = 6  # where ln sigma stands among the unknowns of a pair


@struct.dataclass
class Unknowns:
    """Numbers of the unknowns; what may not move has the number `size`, one past the last.

    frame: (T, F) int32: rotation 3, translation 3, ln focal, then principal point 2 if it is free
    in the config, then the frame's common change of ln depth if a term leaves that free. pair:
    (P, Q) int32: rotation 3, offset 3, ln scale, then adaptor 2 if free in the config. gauge:
    (size + 1,), 1 at the ln scales that must sum to 0.
    """

    frame: Array
    pair: Array
    gauge: Array
    size: int = struct.field(pytree_node=False)
    principal_point: bool = struct.field(pytree_node=False)
    mean_depth: bool = struct.field(pytree_node=False)


def is_free(leaf: Any, count: int) -> Array:
    """Returns (count,) bool of one group of `variables.trainable`: a bool, or one per entry."""
    return jnp.broadcast_to(jnp.asarray(leaf, bool), (count,))


def unknowns(problem: Problem, config: AlignmentConfig, trainable: AlignmentVariables) -> Unknowns:
    """Returns the numbering; a shared focal is one number that stands in every frame."""
    frames, pairs = problem.dynamic.shape[0], problem.pointmaps.num_pairs
    free = {
        field.name: is_free(getattr(trainable, field.name), pairs)
        if field.name.startswith("pair")
        else getattr(trainable, field.name)
        for field in dataclasses.fields(trainable)
    }

    def repeat(name, times):
        return [is_free(free[name], frames)] * times

    frame_groups = [*repeat("frame_quaternion", 3), *repeat("frame_translation", 3)]
    if config.shared_focal:
        frame_groups += [jnp.broadcast_to(is_free(free["log_focal"], 1), (frames,))]
    else:
        frame_groups += repeat("log_focal", 1)
    if config.optimise_principal_point:
        frame_groups += repeat("principal_point", 2)
    mean_depth = depth_terms.are_present(problem, config)
    if mean_depth:
        frame_groups += repeat("log_depth", 1)
    pair_groups = [free["pair_quaternion"]] * 3 + [free["pair_translation"]] * 3
    pair_groups += [free["pair_log_scale"]]
    if config.optimise_adaptors:
        pair_groups += [free["pair_adaptor"]] * 2

    frame_free = jnp.stack(frame_groups, axis=1)
    pair_free = jnp.stack(pair_groups, axis=1)
    if problem.frame_valid is not None:
        frame_free &= problem.frame_valid[:, None] > 0
    if problem.pair_valid is not None:
        pair_free &= problem.pair_valid[:, None] > 0
    size = frame_free.size + pair_free.size
    frame = jnp.arange(frame_free.size).reshape(frame_free.shape)
    if config.shared_focal:
        frame = frame.at[:, 6].set(6)
    pair = frame_free.size + jnp.arange(pair_free.size).reshape(pair_free.shape)
    frame, pair = jnp.where(frame_free, frame, size), jnp.where(pair_free, pair, size)
    gauge = jnp.zeros(size + 1, problem.pixels.dtype)
    if config.normalise_pair_scale:
        gauge = gauge.at[pair[:, PAIR_SCALE]].set(1).at[size].set(0)
    return Unknowns(
        frame=frame.astype(jnp.int32),
        pair=pair.astype(jnp.int32),
        gauge=gauge,
        size=size,
        principal_point=config.optimise_principal_point,
        mean_depth=mean_depth,
    )


def without_gauge(step: Array, numbers: Unknowns) -> Array:
    """Returns a vector (size + 1,) whose entries at `gauge` have mean 0 (or stay, if none)."""
    mean = jnp.sum(numbers.gauge * step) / jnp.maximum(jnp.sum(numbers.gauge), 1)
    return step - numbers.gauge * mean


def move_camera(
    step: Array, numbers: Unknowns, pose: Array, focal: Array, principal_point: Array
) -> tuple[Array, Array, Array]:
    """Returns pose (..., 4, 4), focal (...,), principal point (..., 2), to first order in a step.

    For derivatives at a step of zero; step: (..., F).
    """
    turn = rigid.compose(rigid.hat(step[..., :3]), pose[..., :3, :3])
    moved = rigid.pose(pose[..., :3, :3] + turn, pose[..., :3, 3] + step[..., 3:6])
    if numbers.principal_point:
        principal_point = principal_point + variables_lib.PRINCIPAL_POINT_UNIT * step[..., 7:9]
    return moved, focal * (1 + step[..., 6]), principal_point


def move_pair(
    matrix: Array, offset: Array, step: Array, config: AlignmentConfig
) -> tuple[Array, Array]:
    """Returns the matrix (3, 3) and offset (3,) of a pair's map, to first order in a step (Q,)."""
    matrix = (1 + step[PAIR_SCALE]) * matrix + rigid.compose(rigid.hat(step[:3]), matrix)
    if config.optimise_adaptors:
        matrix = matrix * variables_lib.adaptor_scale(step[None, 7:9], config)
    return matrix, offset + step[3:6]


def take(
    variables: AlignmentVariables,
    step: Array,
    depth_step: Array,
    numbers: Unknowns,
    problem: Problem,
    config: AlignmentConfig,
    trainable: AlignmentVariables,
) -> AlignmentVariables:
    """Returns the variables after a step; groups that may not move keep their exact values.

    step: (size + 1,), the last entry 0. depth_step: (T, L), of ln depth.
    """
    frames, pairs = numbers.frame.shape[0], numbers.pair.shape[0]
    clean = variables_lib.without_invalid(variables, problem.frame_valid, problem.pair_valid)
    geometry = variables_lib.decode(clean, config, problem.image_size, problem.pair_valid)
    step = without_gauge(step, numbers)
    frame_step, pair_step = step[numbers.frame], step[numbers.pair]
    pose = geometry.world_from_cam
    camera_rotation = rigid.compose(rigid.exp_so3(frame_step[:, :3]), pose[:, :3, :3])
    offset = geometry.pair_offset + pair_step[:, 3:6]
    rotation = rigid.compose(
        rigid.exp_so3(pair_step[:, :3]), rigid.matrix_from_quaternion(clean.pair_quaternion)
    )
    scale = geometry.pair_scale * jnp.exp(pair_step[:, PAIR_SCALE])
    focal_step = frame_step[:, 6]
    if clean.log_focal.shape[0] == 1:  # shared: the number that some frame has, if it may move
        focal_step = step[jnp.min(numbers.frame[:, 6])][None]
    new = {
        "log_depth": clean.log_depth + depth_step.reshape(clean.log_depth.shape),
        "frame_quaternion": rigid.quaternion_from_matrix(camera_rotation),
        "frame_translation": rigid.encode_translation(pose[:, :3, 3] + frame_step[:, 3:6]),
        "log_focal": clean.log_focal + config.focal_break * focal_step,
        "principal_point": clean.principal_point,
        "pair_quaternion": rigid.quaternion_from_matrix(rotation),
        "pair_translation": rigid.encode_translation(offset / scale[:, None]),
        "pair_log_scale": clean.pair_log_scale + pair_step[:, PAIR_SCALE],
        "pair_adaptor": clean.pair_adaptor,
    }
    if numbers.principal_point:
        new["principal_point"] = clean.principal_point + frame_step[:, 7:9]
    if config.optimise_adaptors:
        new["pair_adaptor"] = clean.pair_adaptor + pair_step[:, 7:9]

    def choose(name):
        old, moved = getattr(variables, name), new[name].astype(getattr(variables, name).dtype)
        free = is_free(getattr(trainable, name), old.shape[0])
        valid = problem.pair_valid if name.startswith("pair") else problem.frame_valid
        if valid is not None and len(old) == (pairs if name.startswith("pair") else frames):
            free &= valid > 0
        return jnp.where(free.reshape(-1, *[1] * (old.ndim - 1)), moved, old)

    return AlignmentVariables(**{name: choose(name) for name in new})
