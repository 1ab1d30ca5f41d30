"""Terms that touch only cameras, linearised by forward differentiation.

A term is a list of small residual vectors, each a function of one or two cameras. Its loss is a
weighted sum of their norms, or of a smooth norm, reweighted like those of pixels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.objective import Problem
from align3r_jax.alignment.solvers import gauss_newton_increments as increments
from align3r_jax.alignment.solvers.gauss_newton_frames import Blocks
from align3r_jax.alignment.solvers.gauss_newton_increments import Unknowns
from align3r_jax.alignment.terms import known_cameras
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import rigid

Array = jax.Array

# Rotation, translation and focal of `known_cameras.residuals` are robust each by itself.
_PRIOR_PARTS = (slice(0, 3), slice(3, 6), slice(6, 7))
# Norms below these count as these: radians, and shares of the scene's mean depth.
SMALLEST_TURN, SMALLEST_MOVE = 1e-3, 1e-3


@dataclasses.dataclass(frozen=True)
class CameraTerm:
    """sum_k weight_k |r_k| ("norm") or sum_k weight_k (sqrt(1 + |r_k|^2) - 1) ("pseudo_huber").

    frames: (K, B) int32, the cameras that residual k sees. residual(poses (B, 4, 4), focals (B,),
    principal points (B, 2), k) -> (m,). weight: (K,). floor: the smallest norm that divides.
    """

    frames: Array
    residual: Callable[[Array, Array, Array, Array], Array]
    weight: Array
    kind: Literal["norm", "pseudo_huber"] = "norm"
    floor: Array | float = 0.0


def terms_of(
    geometry: variables_lib.Geometry, problem: Problem, config: AlignmentConfig
) -> list[CameraTerm]:
    """Returns the terms of `objective.evaluate` that touch cameras only."""
    terms = []
    frames = geometry.world_from_cam.shape[0]
    if frames > 1 and config.smoothness_weight > 0:
        steps = jnp.stack([jnp.arange(frames - 1), jnp.arange(1, frames)], axis=1)
        weight = jnp.full(frames - 1, config.smoothness_weight, geometry.focal.dtype)
        if problem.frame_valid is not None:
            weight = weight * problem.frame_valid[:-1] * problem.frame_valid[1:]
        moved = config.smoothness_translation_weight * weight
        floor = SMALLEST_MOVE * jnp.mean(geometry.depth)
        terms.append(CameraTerm(steps, _turn, weight, floor=SMALLEST_TURN))
        terms.append(CameraTerm(steps, _move, moved, floor=floor))
    priors = problem.known_cameras
    if priors is not None:
        count = frames
        weight = jnp.full(frames, config.known_camera_weight, geometry.focal.dtype)
        if problem.frame_valid is not None:
            count = jnp.maximum(jnp.sum(problem.frame_valid), 1)
            weight = weight * problem.frame_valid
        for part in _PRIOR_PARTS:
            residual = functools.partial(_prior, priors=priors, part=part)
            terms.append(
                CameraTerm(jnp.arange(frames)[:, None], residual, weight / count, "pseudo_huber")
            )
    return terms


def _prior(poses, focals, principal_points, k, *, priors, part):
    del principal_points
    prior = jax.tree.map(lambda leaf: leaf[k][None], priors)
    return known_cameras.residuals(poses, focals, prior)[0, part]


def _turn(poses, focals, principal_points, k):
    """R_n' R_n+1 - I; its Frobenius norm is a term of the smoothness."""
    del focals, principal_points, k
    turn = rigid.compose(poses[0, :3, :3].T, poses[1, :3, :3])
    return (turn - jnp.eye(3, dtype=turn.dtype)).reshape(-1)


def _move(poses, focals, principal_points, k):
    """R_n' (T_n+1 - T_n)."""
    del focals, principal_points, k
    return rigid.rotate(poses[0, :3, :3].T, poses[1, :3, 3] - poses[0, :3, 3])


def normal_equations(
    term: CameraTerm, geometry: variables_lib.Geometry, numbers: Unknowns
) -> Blocks:
    """Returns one block for every residual vector of the term, u = B F unknowns each."""
    width = numbers.frame.shape[1]

    def one(frames, weight, k):
        cameras = tuple(
            part[frames]
            for part in (geometry.world_from_cam, geometry.focal, geometry.principal_point)
        )

        def residual(step):
            return term.residual(
                *increments.move_camera(step.reshape(-1, width), numbers, *cameras), k
            )

        start = jnp.zeros(len(frames) * width, geometry.focal.dtype)
        value, jacobian = residual(start), jax.jacfwd(residual)(start)
        if term.kind == "norm":
            slope = weight / jnp.maximum(rigid.safe_norm(value), term.floor)
        else:
            slope = weight / jnp.sqrt(1 + jnp.sum(value**2))
        matrix = slope * jnp.matmul(jacobian.T, jacobian, precision="highest")
        gradient = slope * jnp.matmul(jacobian.T, value, precision="highest")
        # Only fills up the shape: whatever its cameras hold.
        matrix, gradient = (jnp.where(weight > 0, v, 0) for v in (matrix, gradient))
        return Blocks(numbers.frame[frames].reshape(-1), matrix, gradient, jnp.diagonal(matrix))

    return jax.vmap(one)(term.frames, term.weight, jnp.arange(term.frames.shape[0]))
