"""The alignment term: every pair's points, mapped by its similarity, should lie on the scene.

One *observation* is one side of one pair: the points of frame n as pair e predicts them. The data
are kept component-wise, (K, 3, L), sorted by frame and cut into chunks, so that one scan over the
chunks gives the value and the whole gradient in a single pass over memory.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.alignment.terms import gradient_rule
from align3r_jax.alignment.variables import Geometry
from align3r_jax.structs import PairGraph, PairPredictions

Array = jax.Array

# Elements of one coordinate that a chunk holds: small enough for the caches of a CPU, and a
# bounded amount of temporary memory anywhere.
CHUNK_ELEMENTS = {"cpu": 300_000, "default": 8_000_000}
# The smallest norm of a residual that divides: below it the gradient is zero.
TINY = 1e-20


@struct.dataclass
class PointmapData:
    """Observations in chunks: points (N, C, 3, L), weight (N, C, L), frame and row (N, C) int32.

    N * C >= 2 P observations, L pixels. row = side * P + pair: side 0 is the first frame of the
    pair. Observations that fill the last chunk have weight 0.
    """

    points: Array
    weight: Array
    frame: Array
    row: Array
    num_pairs: int = struct.field(pytree_node=False)


def confidence_weight(confidence: Array, kind: Literal["log", "sqrt", "m1", "id"]) -> Array:
    """Returns ln c, sqrt c, c - 1 or c: the weight of a point of confidence c."""
    if kind == "log":
        return jnp.log(confidence)
    if kind == "sqrt":
        return jnp.sqrt(confidence)
    if kind == "m1":
        return confidence - 1
    if kind == "id":
        return confidence
    raise ValueError(f"Unknown confidence weight {kind!r}; known are log, sqrt, m1, id.")


def at_least_float32(values: Array) -> Array:
    """Returns half-precision values as float32, others as they are."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def chunk_length(count: int, pixels: int) -> int:
    """Returns how many of `count` rows of `pixels` elements to treat at once (at least 2)."""
    backend = jax.default_backend()
    elements = CHUNK_ELEMENTS.get(backend, CHUNK_ELEMENTS["default"])
    return max(2, min(count, elements // pixels))


def sort_and_pad(keys: Array | np.ndarray, pixels: int) -> tuple[Array | np.ndarray, np.ndarray]:
    """Returns (order, valid), both (N, C): rows sorted by key, the last chunk filled with row 0.

    keys: (n,), NumPy or traced.
    """
    length = chunk_length(len(keys), pixels)
    missing = -len(keys) % length
    valid = np.arange(len(keys) + missing) < len(keys)
    order: Array | np.ndarray
    if isinstance(keys, jax.Array):
        order = jnp.pad(jnp.argsort(keys, stable=True), (0, missing)).astype(jnp.int32)
    else:
        order = np.pad(np.argsort(keys, kind="stable"), (0, missing)).astype(np.int32)
    return order.reshape(-1, length), valid.reshape(-1, length)


def prepare(
    predictions: PairPredictions,
    graph: PairGraph,
    kind: Literal["log", "sqrt", "m1", "id"],
    pair_valid: Array | None = None,
    *,
    storage: jnp.dtype | str | None = None,
    axis: str | None = None,
) -> PointmapData:
    """Returns the observations of all pairs; `kind` turns confidences into weights.

    Points or confidences that are not finite get weight 0, and so do negative weights and all
    pairs with pair_valid (P,) 0. Traceable, also in `graph.pairs`.

    storage: type in which points and weights are kept (sums are float32 or better); None: float32.
    axis: name of the mesh axis over which the pairs are spread: predictions and graph hold the
    pairs of this device, pair_valid and the rows count those of all.
    """
    pairs, height, width = predictions.confidence1.shape
    frame = graph.pairs.T.reshape(-1)
    order, valid = sort_and_pad(frame, height * width)
    row, num_pairs = order, pairs
    if axis is not None:
        num_pairs = pairs * jax.lax.axis_size(axis)
        first = pairs * jax.lax.axis_index(axis)
        row = (order // pairs) * num_pairs + first + order % pairs
    usable = jnp.asarray(valid)
    if pair_valid is not None:
        usable &= (jnp.asarray(pair_valid) > 0)[row % num_pairs]
    points, weight = _component_wise(
        predictions, order.reshape(-1), usable.reshape(-1), kind, storage
    )
    return PointmapData(
        points=points.reshape(*order.shape, 3, -1),
        weight=weight.reshape(*order.shape, -1),
        frame=jnp.asarray(frame[order], jnp.int32),
        row=jnp.asarray(row, jnp.int32),
        num_pairs=num_pairs,
    )


@functools.partial(jax.jit, static_argnames=("kind", "storage"))
def _component_wise(predictions, order, valid, kind, storage):
    """Returns points (K, 3, L) and weights (K, L) in the given order, one row at a time."""
    pairs = predictions.confidence1.shape[0]

    def load(inputs):
        row, is_valid = inputs
        pair = row % pairs

        def side(first, second):
            return jax.lax.cond(row < pairs, lambda: first[pair], lambda: second[pair])

        points = at_least_float32(side(predictions.pointmap1, predictions.pointmap2))
        confidence = at_least_float32(side(predictions.confidence1, predictions.confidence2))
        points, confidence = points.reshape(-1, 3).T, confidence.reshape(-1)
        usable = is_valid & jnp.all(jnp.isfinite(points), axis=0)
        usable &= jnp.isfinite(confidence) & (confidence > 0)
        # Masked before the logarithm: what is not finite must not reach a gradient either.
        weight = confidence_weight(jnp.where(usable, confidence, 1), kind)
        points = jnp.where(usable, points, 0)
        weight = jnp.where(usable, jnp.maximum(weight, 0), 0)
        if storage is None:
            return points, weight
        # What a narrow type cannot hold says nothing.
        points, weight = points.astype(storage), weight.astype(storage)
        usable = jnp.all(jnp.isfinite(points), axis=0) & jnp.isfinite(weight)
        return jnp.where(usable, points, 0), jnp.where(usable, weight, 0)

    return jax.lax.map(load, (order, valid))


def world_points(geometry: Geometry, pixels: Array) -> Array:
    """X_n(p) = R_n D_n(p) ((u - cx) / f, (v - cy) / f, 1) + T_n; returns (T, 3, L), world frame.

    pixels: (2, L), the (x, y) of every pixel.
    """
    frames = geometry.depth.shape[0]
    depth = geometry.depth.reshape(frames, -1)
    inverse_focal = 1 / geometry.focal[:, None]
    x = (pixels[0] - geometry.principal_point[:, :1]) * inverse_focal
    y = (pixels[1] - geometry.principal_point[:, 1:]) * inverse_focal
    rows = geometry.world_from_cam[:, :3, :, None]
    coordinates = [
        (rows[:, a, 0] * x + rows[:, a, 1] * y + rows[:, a, 2]) * depth + rows[:, a, 3]
        for a in range(3)
    ]
    return jnp.stack(coordinates, axis=1)


def _chunk_residual(points, matrix, offset, chunk, num_pairs):
    """Residuals of one chunk, three (C, L) components, and their squared norm."""
    observed, _, frame, row = chunk
    pair = row % num_pairs
    world, matrix, offset = points[frame], matrix[pair][..., None], offset[pair][..., None]
    residual = [
        world[:, a]
        - (
            matrix[:, a, 0] * observed[:, 0]
            + matrix[:, a, 1] * observed[:, 1]
            + matrix[:, a, 2] * observed[:, 2]
            + offset[:, a]
        )
        for a in range(3)
    ]
    return residual, residual[0] ** 2 + residual[1] ** 2 + residual[2] ** 2


def _chunks(data: PointmapData):
    return data.points, data.weight, data.frame, data.row


def _by_row(chunk_sums: Array, data: PointmapData) -> Array:
    """Returns (2, P, ...) from sums per observation, (N, C, ...)."""
    shape = chunk_sums.shape[2:]
    rows = jnp.zeros((2 * data.num_pairs, *shape), chunk_sums.dtype)
    rows = rows.at[data.row.reshape(-1)].add(chunk_sums.reshape(-1, *shape))
    return rows.reshape(2, data.num_pairs, *shape)


def _distance(square: Array, distance: Literal["l1", "l2"], floor: float) -> tuple[Array, Array]:
    """Returns rho and s, d rho / d r = r / s, from |r|^2. Differentiable, also at 0."""
    if distance == "l2":
        return square, jnp.full_like(square, 0.5)
    if floor > 0:
        root = jnp.sqrt(square + floor**2)
        return square / (root + floor), root
    apart = square > 0
    rho = jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)
    return rho, jnp.maximum(rho, TINY)


def _plain(points, matrix, offset, pair_weight, data, distance, floor):
    """`weighted_residual` without its rule: its gradient costs more, but reaches everything."""

    def body(_, chunk):
        _, square = _chunk_residual(points, matrix, offset, chunk, data.num_pairs)
        rho, _ = _distance(square, distance, floor)
        return None, jnp.sum(chunk[1] * rho, axis=-1)

    body = jax.checkpoint(body, prevent_cse=False)
    sums = _by_row(jax.lax.scan(body, None, _chunks(data))[1], data)
    return jnp.sum(pair_weight * sums), sums


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def weighted_residual(
    points: Array,
    matrix: Array,
    offset: Array,
    pair_weight: Array,
    data: PointmapData,
    distance: Literal["l1", "l2"],
    floor: float = 0.0,
) -> tuple[Array, Array]:
    """sum_e v_e sum_p w_e(p) rho(X_n(p) - A_e x_e(p) - b_e), rho(r) = |r| ("l1") or |r|^2 ("l2").

    points X: (T, 3, L) world. matrix A: (P, 3, 3), offset b: (P, 3), pair_weight v: (P,).
    floor f > 0 rounds the tip of |r| off: rho(r) = sqrt(|r|^2 + f^2) - f.
    Returns the sum and its parts before v, (2, P): side 0, side 1 of every pair. The gradient of
    the sum by all but the data takes one pass, together with the value; gradients by the data,
    and of the parts, take a pass of their own. The gradient of |r| at 0 is 0.
    """
    return _plain(points, matrix, offset, pair_weight, data, distance, floor)


def _forward(points, matrix, offset, pair_weight, data, distance, floor):
    inputs = points, matrix, offset, pair_weight, data
    by_data = gradient_rule.is_perturbed(data)
    points, matrix, offset, pair_weight, data = inputs = gradient_rule.values_of(inputs)

    def body(points_gradient, chunk):
        observed, weight, frame, row = chunk
        residual, square = _chunk_residual(points, matrix, offset, chunk, data.num_pairs)
        rho, divisor = _distance(square, distance, floor)
        slope = weight / divisor
        slope = slope * pair_weight[row % data.num_pairs][:, None]
        force = jnp.stack([slope * component for component in residual], axis=1)
        moment = jnp.einsum("cal,cbl->cab", force, observed, precision="highest")
        sums = jnp.sum(weight * rho, axis=-1), moment, jnp.sum(force, axis=-1)
        return points_gradient.at[frame].add(force), sums

    body = jax.checkpoint(body, prevent_cse=False)  # for gradients of gradients
    points_gradient, sums = jax.lax.scan(body, jnp.zeros_like(points), _chunks(data))
    parts, moment, force = (_by_row(value, data) for value in sums)
    by_matrix, by_offset = -jnp.sum(moment, axis=0), -jnp.sum(force, axis=0)
    gradient = (points_gradient, by_matrix, by_offset, jnp.sum(parts, axis=0))
    return (jnp.sum(pair_weight * parts), parts), gradient_rule.Saved(gradient, inputs, by_data)


def _backward(distance, floor, saved, cotangent):
    of_sum, of_parts = cotangent
    if saved.by_data or gradient_rule.counts(of_parts):
        plain = functools.partial(_plain, distance=distance, floor=floor)
        return gradient_rule.pull_back(plain, saved, cotangent)
    scaled = tuple(gradient_rule.instantiated(of_sum) * value for value in saved.gradient)
    return *scaled, None


weighted_residual.defvjp(_forward, _backward, symbolic_zeros=True)


def alignment(
    geometry: Geometry,
    pixels: Array,
    data: PointmapData,
    distance: Literal["l1", "l2"],
    residual_over_scale: bool = False,
    pair_valid: Array | None = None,
    floor: float = 0.0,
) -> tuple[Array, Array]:
    """L = sum_e sum_p w rho(X_i - sigma_e (R_e (a_e x_i,e) + T_e)) / (P L) + the same for frame j.

    residual_over_scale: the residual is divided by sigma_e first, so that with known poses the
    loss does not fall by shrinking everything. pair_valid: (P,) 0 or 1, the pairs counted by P;
    the observations of the others have weight 0 (`prepare`). floor: of `weighted_residual`, before
    any division. Returns L and its parts per pair, (2, P): the mean over the pixels of each side.
    alignment terms of DUSt3R, eq. 5.
    """
    points = world_points(geometry, pixels)
    pair_weight = jnp.ones_like(geometry.pair_scale)
    if residual_over_scale:
        pair_weight = geometry.pair_scale ** (-1 if distance == "l1" else -2)
    total, parts = weighted_residual(
        points, geometry.pair_matrix, geometry.pair_offset, pair_weight, data, distance, floor
    )
    parts = parts * pair_weight / pixels.shape[1]
    count = data.num_pairs if pair_valid is None else jnp.maximum(jnp.sum(pair_valid), 1)
    return total / (count * pixels.shape[1]), parts
