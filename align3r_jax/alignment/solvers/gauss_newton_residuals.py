"""Residuals of a frame's pixels and their derivatives, at one point of linearisation.

Reweighting: a weighted norm w |r| counts as (w / |r|) r^2 / 2, the smooth-L1 of the flow as
r^2 / (2 max(|r|, 1)); both have the gradient of the true loss at the point itself.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.objective import Problem
from align3r_jax.alignment.solvers import depth_terms, flow_weights
from align3r_jax.alignment.solvers import gauss_newton_maps as maps_lib
from align3r_jax.alignment.solvers.gauss_newton_increments import PAIR_SCALE, Unknowns
from align3r_jax.alignment.solvers.gauss_newton_slots import Slots
from align3r_jax.alignment.terms import pointmap
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import warp
from align3r_jax.structs import AlignmentVariables

Array = jax.Array


@struct.dataclass
class Scene:
    """One point of linearisation.

    geometry: depth (T, L). maps: its matrices. field_weight: (K,), what the residuals of each flow
    field count. floor: (), the smallest distance that divides. normaliser: (), of the alignment.
    depth_stiffness, depth_force: (T, L), `depth_terms.forces`; None without such terms.
    """

    geometry: variables_lib.Geometry
    maps: maps_lib.Maps
    slots: Slots
    field_weight: Array | None
    floor: Array
    normaliser: Array
    depth_stiffness: Array | None
    depth_force: Array | None


def linearise(
    variables: AlignmentVariables,
    problem: Problem,
    config: AlignmentConfig,
    numbers: Unknowns,
    slots: Slots,
    field_weight: Array | None,
    floor: Array,
) -> Scene:
    """Returns the point of linearisation; field_weight and floor: of the `Scene`."""
    clean = variables_lib.without_invalid(variables, problem.frame_valid, problem.pair_valid)
    geometry = variables_lib.decode(clean, config, problem.image_size, problem.pair_valid)
    geometry = dataclasses.replace(geometry, depth=geometry.depth.reshape(problem.dynamic.shape))
    maps = maps_lib.derive(geometry, problem, numbers, config)
    stiffness = force = None
    if numbers.mean_depth:
        log_depth = clean.log_depth.reshape(problem.dynamic.shape)
        stiffness, force = depth_terms.forces(log_depth, problem, config)
    pairs = jnp.asarray(problem.pointmaps.num_pairs, geometry.focal.dtype)
    if problem.pair_valid is not None:
        pairs = jnp.maximum(jnp.sum(problem.pair_valid), 1)
    return Scene(
        geometry=geometry,
        maps=maps,
        slots=slots,
        field_weight=field_weight,
        floor=jnp.asarray(floor, geometry.focal.dtype),
        normaliser=1 / jnp.asarray(pairs * problem.pixels.shape[1], geometry.focal.dtype),
        depth_stiffness=stiffness,
        depth_force=force,
    )


class Observed(NamedTuple):
    """S observations of a frame on the basis (D x, D y, D, 1, point, 1) of L pixels.

    matrix (S, 3, 8) gives the residual; frame (S, F, 3, 8) and pair (S, Q, 3, 8) are its
    derivatives; ray (S, 3, L) that by ln depth. basis (S, 8, L), slope (S, L) = w / |r|.
    """

    basis: Array
    slope: Array
    matrix: Array
    frame: Array
    pair: Array
    ray: Array


def observe(n: Array, scene: Scene, problem: Problem, config: AlignmentConfig) -> Observed:
    """Returns what all pairs say of frame n."""
    data, maps = problem.pointmaps, scene.maps
    rows, valid, pair = (
        table[n] for table in (scene.slots.observation, scene.slots.valid, scene.slots.pair)
    )
    length = data.points.shape[-1]
    observed = pointmap.at_least_float32(data.points.reshape(-1, 3, length)[rows])
    weight = pointmap.at_least_float32(data.weight.reshape(-1, length)[rows])
    weight = jnp.where(valid[:, None], weight, 0)
    x0, y0 = maps_lib.centre(problem)
    depth = scene.geometry.depth[n]
    one = jnp.ones_like(depth)
    own = jnp.stack(
        [depth * (problem.pixels[0] - x0), depth * (problem.pixels[1] - y0), depth, one]
    )
    basis = jnp.concatenate(
        [
            jnp.broadcast_to(own, (len(rows), 4, length)),
            observed,
            jnp.broadcast_to(one, (len(rows), 1, length)),
        ],
        axis=1,
    )
    factor = maps.pair_factor[pair][:, None, None]
    matrix = factor * jnp.concatenate(
        [jnp.broadcast_to(maps.frame[n], (len(rows), 3, 4)), -maps.pair[pair]], axis=2
    )
    tangent = maps.frame_tangent[n]
    frame = factor[..., None] * jnp.concatenate([tangent, jnp.zeros_like(tangent)], axis=2)
    tangent = maps.pair_tangent[pair]
    of_pair = factor[..., None] * jnp.concatenate([jnp.zeros_like(tangent), -tangent], axis=3)
    if config.residual_over_scale:
        of_pair = of_pair.at[:, PAIR_SCALE].add(-matrix)
    residual = transform(matrix, basis)
    square = jnp.sum(residual**2, axis=1)
    if config.distance == "l1":
        slope = weight / jnp.maximum(jnp.sqrt(square), scene.floor)
    else:
        slope = 2 * weight
    ray = factor * transform(maps.frame[n][:, :3], own[:3])
    return Observed(basis, scene.normaliser * slope, matrix, frame, of_pair, ray)


class Flowing(NamedTuple):
    """R flow fields out of a frame: residual and slope (R, 2, L), pixels.

    tangent: (R, 2 F, 2, L), derivatives by the frame's camera, then by the target's; ray:
    (R, 2, L), by ln depth. target: (R,) frames. slope = w / max(|r|, 1).
    """

    residual: Array
    slope: Array
    tangent: Array
    ray: Array
    target: Array


def flowing(
    n: Array, scene: Scene, problem: Problem, config: AlignmentConfig, step: Array | None = None
) -> Flowing:
    """Returns the fields of frame n. step: (R, 2 F); then tangent is (R, 1, 2, L), along it."""
    data, maps, pixels = problem.flow, scene.maps, problem.pixels
    assert data is not None and scene.field_weight is not None
    assert maps.field is not None and maps.field_tangent is not None
    rows, valid = scene.slots.field[n], scene.slots.field_valid[n]
    length = pixels.shape[1]
    weight = jnp.where(valid, scene.field_weight[rows], 0)[:, None]
    trust = data.trust.reshape(-1, length)[rows] * data.static[n]
    depth = scene.geometry.depth[n]
    near = depth + warp.DISPARITY_EPSILON
    basis = jnp.stack([pixels[0], pixels[1], jnp.ones_like(depth), 1 / near])
    matrix, tangent = maps.field[rows], maps.field_tangent[rows]
    if step is not None:
        tangent = jnp.einsum("rk,rkab->rab", step, tangent, precision="highest")[:, None]

    projected = transform(matrix, basis)
    z = projected[:, 2] + warp.PROJECTION_EPSILON
    inverse = 1 / jnp.where(z == 0, warp.PROJECTION_EPSILON, z)
    ratio = projected[:, :2] * inverse[:, None]
    residual = ratio - pixels - data.flow.reshape(-1, 2, length)[rows]
    residual, slope = flow_weights.reweighted(
        residual, trust[:, None], weight[..., None], config.flow_pixel_cut
    )
    # Points on the camera plane have no derivative; they do not count either.
    usable = jnp.any(slope > 0, axis=1)
    inverse, ratio = jnp.where(usable, inverse, 0), jnp.where(usable[:, None], ratio, 0)

    def in_image(moved):
        """The motion of (x / z, y / z), (R, n, 2, L), when (x, y, z) move by (R, n, 3, L)."""
        return inverse[:, None, None] * (moved[:, :, :2] - ratio[:, None] * moved[:, :, 2:])

    closer = matrix[:, None, :, 3:] * (-depth / near**2)
    return Flowing(
        residual=residual,
        slope=slope,
        tangent=in_image(transform(tangent, basis)),
        ray=in_image(closer)[:, 0],
        target=scene.slots.target[n],
    )


def transform(matrix: Array, basis: Array) -> Array:
    """Returns matrix (..., 3, m) times basis (m, L), or (R, m, L) with matrix (R, ..., 3, m)."""
    if basis.ndim == 2:
        return jnp.einsum("...am,ml->...al", matrix, basis, precision="highest")
    return jnp.einsum("r...am,rml->r...al", matrix, basis, precision="highest")
