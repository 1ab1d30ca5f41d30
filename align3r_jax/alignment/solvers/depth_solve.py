"""The depth of every pixel with cameras and pairs fixed: many small problems of one unknown.

    minimise over D   sum_e w |D d - y_e| + flow and depth terms,

d = R_n K_n^-1 (x, 1) the pixel's ray, y_e the point of pair e minus the camera's centre. Each round
is reweighted least squares, D = sum (w / |r|) d.y / sum (w / |r|) d.d, with the flow and the terms
on ln depth linearised at the last depth. The first round weighs all distances alike and needs no
start. Only two sums per pixel of every frame are kept, so the pairs can come in parts, one pass
over them per round (`begin`, `add`, `finish`); `solve` does it for pairs in memory.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.objective import Problem
from align3r_jax.alignment.solvers import depth_terms, flow_weights
from align3r_jax.alignment.terms import flow, pointmap
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import warp
from align3r_jax.structs import AlignmentVariables

Array = jax.Array

SMALLEST_DISTANCE = 1e-4  # of the depth; smaller distances count as this
LARGEST_STEP = 1.0  # of ln depth in one round, but for the first
# Steps are this much longer than the reweighted optimum, which is always too short; the loss falls
# for any factor below 2 (the reweighted squares lie above it).
RELAXATION = 1.6
FREE_ROUNDS = 2  # rounds by the point maps alone, before flow and depth terms are linearised


@struct.dataclass
class Sums:
    """(T, L): towards = sum slope d.y, stiffness = sum slope |d|^2 (per unit of depth squared)."""

    towards: Array
    stiffness: Array


def begin(depth: Array) -> Sums:
    """Returns empty sums for depths (T, L)."""
    return Sums(jnp.zeros_like(depth), jnp.zeros_like(depth))


def add(
    sums: Sums,
    depth: Array,
    geometry: variables_lib.Geometry,
    data: pointmap.PointmapData,
    pixels: Array,
    config: AlignmentConfig,
    *,
    first: Array | bool,
) -> Sums:
    """Adds the observations of some pairs.

    depth: (T, L), where distances are taken. geometry: all cameras, and the similarities of the
    pairs that `data` numbers. first: weigh all distances alike.
    """
    origin = geometry.world_from_cam[:, :3, 3]
    rows = geometry.world_from_cam[:, :3, :3]
    factor = jnp.ones_like(geometry.pair_scale)
    if config.residual_over_scale:
        factor = 1 / geometry.pair_scale
    alike = jnp.asarray(first) | (config.distance == "l2")

    def body(sums, chunk):
        points, weight, frame, row = chunk
        points, weight = pointmap.at_least_float32(points), pointmap.at_least_float32(weight)
        pair = row % data.num_pairs
        focal = geometry.focal[frame][:, None]
        x = (pixels[0] - geometry.principal_point[frame, :1]) / focal
        y = (pixels[1] - geometry.principal_point[frame, 1:]) / focal
        turn, matrix = rows[frame][..., None], geometry.pair_matrix[pair][..., None]
        offset = (geometry.pair_offset[pair] - origin[frame])[..., None]
        scale, current = factor[pair][:, None], depth[frame]
        square = along = length = 0.0
        for a in range(3):
            ray = turn[:, a, 0] * x + turn[:, a, 1] * y + turn[:, a, 2]
            target = offset[:, a] + sum(matrix[:, a, b] * points[:, b] for b in range(3))
            square += (current * ray - target) ** 2
            along += ray * target
            length += ray * ray
        distance = jnp.maximum(jnp.sqrt(square), SMALLEST_DISTANCE * current)
        # |r / sigma| weighs w / (sigma |r|), its square 2 w / sigma^2.
        slope = jnp.where(
            alike,
            weight * scale**2 * (2.0 if config.distance == "l2" else 1.0),
            weight * scale / distance,
        )
        towards = sums.towards.at[frame].add(slope * along)
        return Sums(towards, sums.stiffness.at[frame].add(slope * length)), None

    chunks = (data.points, data.weight, data.frame, data.row)
    return jax.lax.scan(body, sums, chunks)[0]


def finish(
    sums: Sums, depth: Array, config: AlignmentConfig, *, first: Array | bool = False
) -> Array:
    """Returns the new depths (T, L); where nothing is known they stay."""
    known = sums.stiffness > 0
    new = sums.towards / jnp.where(known, sums.stiffness, 1)
    if config.distance == "l1":
        new = jnp.where(first, new, depth + RELAXATION * (new - depth))
    largest = jnp.exp(LARGEST_STEP)
    bounded = jnp.clip(new, min=depth / largest, max=depth * largest)
    # The first round goes anywhere in front of the camera.
    new = jnp.where(jnp.asarray(first) & (new > 0), new, bounded)
    return jnp.where(known & jnp.isfinite(new), new, depth)


def solve(
    variables: AlignmentVariables, problem: Problem, config: AlignmentConfig, flow_counts: Array
) -> AlignmentVariables:
    """Returns the variables with the depth of every pixel solved, `config.depth_rounds` rounds.

    Pure. flow_counts: (), whether the flow term counts (start and gate of the objective).
    """
    clean = variables_lib.without_invalid(variables, problem.frame_valid, problem.pair_valid)
    geometry = variables_lib.decode(clean, config, problem.image_size, problem.pair_valid)
    depth = geometry.depth.reshape(problem.dynamic.shape)
    pairs = jnp.asarray(problem.pointmaps.num_pairs, depth.dtype)
    if problem.pair_valid is not None:
        pairs = jnp.maximum(jnp.sum(problem.pair_valid), 1)
    share = pairs * problem.pixels.shape[1]

    def by_points(depth, first):
        return add(
            begin(depth), depth, geometry, problem.pointmaps, problem.pixels, config, first=first
        )

    def free_round(depth, k):
        sums = _over_devices(by_points(depth, k == 0), problem.axis)
        return finish(sums, depth, config, first=k == 0), None

    has_more = problem.flow is not None or depth_terms.are_present(problem, config)
    free_rounds = min(FREE_ROUNDS, config.depth_rounds) if has_more else config.depth_rounds
    depth, _ = jax.lax.scan(free_round, depth, jnp.arange(free_rounds))
    if has_more and config.depth_rounds > free_rounds:
        fields = problem.flow
        matrices = weight = None
        if fields is not None:
            matrices, weight = _flow_weight(geometry, depth, problem, config, flow_counts)

        def full_round(depth, _):
            sums = by_points(depth, False)
            sums = Sums(sums.towards / share, sums.stiffness / share)
            if fields is not None:
                by_flow = _flow_sums(depth, matrices, weight, fields, problem.pixels, config)
                sums = jax.tree.map(jnp.add, sums, by_flow)
            sums = _over_devices(sums, problem.axis)
            if depth_terms.are_present(problem, config):
                stiffness, force = depth_terms.forces(jnp.log(depth), problem, config)
                sums = Sums(
                    sums.towards + (stiffness - force) / depth,
                    sums.stiffness + stiffness / depth**2,
                )
            return finish(sums, depth, config), None

        depth, _ = jax.lax.scan(full_round, depth, None, length=config.depth_rounds - free_rounds)
    log_depth = jnp.log(depth).reshape(variables.log_depth.shape)
    if problem.frame_valid is not None:
        valid = problem.frame_valid.reshape(-1, *[1] * (log_depth.ndim - 1)) > 0
        log_depth = jnp.where(valid, log_depth, variables.log_depth)
    return dataclasses.replace(variables, log_depth=log_depth)


def _over_devices(sums: Sums, axis: str | None) -> Sums:
    if axis is None:
        return sums
    both = jax.lax.psum(jnp.stack([sums.towards, sums.stiffness]), axis)
    return Sums(both[0], both[1])


def _flow_weight(geometry, depth, problem, config, flow_counts):
    """Returns (M, b) of every field and what its residuals count, (N, C)."""
    fields = problem.flow
    homography, epipole = warp.transfer(
        geometry.intrinsics[fields.source],
        geometry.intrinsics[fields.target],
        geometry.world_from_cam[fields.source],
        geometry.world_from_cam[fields.target],
    )
    disparity = 1 / (depth + warp.DISPARITY_EPSILON)
    _, count = flow.robust_sums(
        disparity, homography, epipole, fields, problem.pixels, config.flow_pixel_cut
    )
    if problem.axis is not None:
        count = jax.lax.psum(count, problem.axis)
    return (homography, epipole), flow_weights.per_field(fields, count, config, flow_counts)


def _flow_sums(depth, matrices, weight, data, pixels, config):
    def body(sums, chunk):
        values, trust, source, homography, epipole, weight = chunk
        current = depth[source]
        near = current + warp.DISPARITY_EPSILON
        m, b = homography[..., None], epipole[..., None]
        y = [m[:, a, 0] * pixels[0] + m[:, a, 1] * pixels[1] + m[:, a, 2] for a in range(3)]
        y = [y[a] + b[:, a] / near for a in range(3)]
        z = y[2] + warp.PROJECTION_EPSILON
        inverse = 1 / jnp.where(z == 0, warp.PROJECTION_EPSILON, z)
        towards = stiffness = jnp.zeros_like(current)
        for a in range(2):
            residual, slope = flow_weights.reweighted(
                y[a] * inverse - pixels[a] - values[:, a],
                trust * data.static[source],
                weight[:, None],
                config.flow_pixel_cut,
            )
            change = -inverse * (b[:, a] - y[a] * inverse * b[:, 2]) / near**2
            change = jnp.where(slope > 0, change, 0)
            stiffness += slope * change**2
            towards += slope * change * (change * current - residual)
        added = sums.towards.at[source].add(towards)
        return Sums(added, sums.stiffness.at[source].add(stiffness)), None

    chunks = (data.flow, data.trust, data.source, *matrices, weight)
    return jax.lax.scan(body, begin(depth), chunks)[0]
