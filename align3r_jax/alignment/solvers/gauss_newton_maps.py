"""The small matrices that act on pixels, and their derivatives by the steps of cameras and pairs.

Every residual is linear in such a matrix: world points X = F (D x, D y, D, 1), predicted points
Y = G (x, 1), projections y = U (x, y, 1, 1 / D). So the derivative by any step is another matrix
on the same pixels, and sums over pixels of products are sums of their moments.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.objective import Problem
from align3r_jax.alignment.solvers import gauss_newton_increments as increments
from align3r_jax.alignment.solvers.gauss_newton_increments import Unknowns
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import camera, rigid, warp

Array = jax.Array


@struct.dataclass
class Maps:
    """Matrices and their derivatives.

    frame: (T, 3, 4), frame_tangent: (T, F, 3, 4); on pixels counted from the image centre.
    pair: (P, 3, 4), pair_tangent: (P, Q, 3, 4). pair_factor: (P,), what multiplies residuals.
    field: (K, 3, 4), field_tangent: (K, 2 F, 3, 4), by the source camera, then the target's; None
    without flow.
    """

    frame: Array
    frame_tangent: Array
    pair: Array
    pair_tangent: Array
    pair_factor: Array
    field: Array | None
    field_tangent: Array | None


def centre(problem: Problem) -> tuple[float, float]:
    """Returns the (x, y) from which the pixels of `Maps.frame` are counted."""
    height, width = problem.image_size
    return width / 2, height / 2


def derive(
    geometry: variables_lib.Geometry,
    problem: Problem,
    numbers: Unknowns,
    config: AlignmentConfig,
) -> Maps:
    """Returns all matrices of a scene with their derivatives at a step of zero."""
    cameras = (geometry.world_from_cam, geometry.focal, geometry.principal_point)
    dtype = geometry.focal.dtype
    middle = jnp.array(centre(problem), dtype)
    no_frame_step = jnp.zeros(numbers.frame.shape[1], dtype)
    no_pair_step = jnp.zeros(numbers.pair.shape[1], dtype)

    def frame_map(step, frame):
        pose, focal, principal_point = increments.move_camera(step, numbers, *frame)
        inverse = warp.invert_intrinsics(camera.intrinsics_matrix(focal, principal_point - middle))
        rays = rigid.compose(pose[:3, :3], inverse)
        return jnp.concatenate([rays, pose[:3, 3:]], axis=1)

    def pair_map(step, matrix, offset):
        matrix, offset = increments.move_pair(matrix, offset, step, config)
        return jnp.concatenate([matrix, offset[:, None]], axis=1)

    frame, frame_tangent = jax.vmap(lambda c: _with_tangent(frame_map, no_frame_step, c))(cameras)
    pair, pair_tangent = jax.vmap(lambda a, b: _with_tangent(pair_map, no_pair_step, a, b))(
        geometry.pair_matrix, geometry.pair_offset
    )
    factor = jnp.ones_like(geometry.pair_scale)
    if config.residual_over_scale:
        factor = 1 / geometry.pair_scale
    fields = problem.flow
    if fields is None:
        return Maps(frame, frame_tangent, pair, pair_tangent, factor, None, None)

    def field_map(step, source, target):
        halves = jnp.split(step, 2)
        pose1, focal1, centre1 = increments.move_camera(halves[0], numbers, *source)
        pose2, focal2, centre2 = increments.move_camera(halves[1], numbers, *target)
        homography, epipole = warp.transfer(
            camera.intrinsics_matrix(focal1, centre1),
            camera.intrinsics_matrix(focal2, centre2),
            pose1,
            pose2,
        )
        return jnp.concatenate([homography, epipole[:, None]], axis=1)

    source, target = fields.source.reshape(-1), fields.target.reshape(-1)
    no_step = jnp.concatenate([no_frame_step, no_frame_step])
    field, field_tangent = jax.vmap(lambda a, b: _with_tangent(field_map, no_step, a, b))(
        tuple(part[source] for part in cameras), tuple(part[target] for part in cameras)
    )
    return Maps(frame, frame_tangent, pair, pair_tangent, factor, field, field_tangent)


def _with_tangent(function, at, *rest) -> tuple[Array, Array]:
    """Returns f(at), (3, 4), and its derivatives, (n, 3, 4)."""
    value = function(at, *rest)
    tangent = jax.jacfwd(function)(at, *rest)
    return value, jnp.moveaxis(tangent, -1, 0)
