"""The flow term: where nothing moves by itself, camera and depth must explain the optical flow.

One *field* is the optical flow from one frame to another. A field may serve several pairs (pair
(i, j) and its reverse share both directions), so it is evaluated once and counted often.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.alignment.terms import gradient_rule, pointmap
from align3r_jax.alignment.variables import Geometry
from align3r_jax.geometry import warp
from align3r_jax.structs import OpticalFlow, PairGraph

Array = jax.Array

SMALLEST_DEPTH = 1e-12  # that divides, unit of the scene


@struct.dataclass
class FlowData:
    """Fields in chunks: flow (N, C, 2, L), trust (N, C, L) in [0, 1], source and target (N, C).

    count: (R, N, C), how often a field stands as i -> j (row 0) and as j -> i (row 1). If every
    field stands as often in both roles, R = 1: the two sums of the loss are then the same.
    static: (T, L), 1 where nothing moves by itself; the only part that changes during alignment.
    """

    flow: Array
    trust: Array
    source: Array
    target: Array
    count: Array
    static: Array


def prepare(
    flow: OpticalFlow,
    index12: Array | np.ndarray,
    index21: Array | np.ndarray,
    static: Array,
    use_weight: bool,
    equal_roles: bool = False,
    *,
    axis: str | None = None,
) -> FlowData | None:
    """Returns the fields that serve a pair; None if there is none.

    index12, index21: (P,) the field i -> j and the field j -> i of every pair, -1 if it has none.
    NumPy: only the fields that serve a pair are kept. Traced: all are, the others count 0 times,
    and `equal_roles` says whether every field surely stands as often in both roles.
    static: (T, H, W) bool. use_weight: weight residuals by `flow.weight` (parity: False).
    axis: name of the mesh axis over which the fields are spread: `flow` holds those of this device,
    the (traced) indices count those of all.
    """
    fields, height, width = flow.flow.shape[:3]
    pairs = flow.pairs
    count: Any  # these two: traced or NumPy, as the indices
    used: Any
    if isinstance(index12, jax.Array):
        rows = jnp.stack([index12, index21])
        if axis is not None:
            rows = rows - fields * jax.lax.axis_index(axis)
        count = jnp.sum(rows[:, :, None] == jnp.arange(fields), axis=1, dtype=jnp.float32)
        count = count[:1] if equal_roles else count
        used = jnp.arange(fields)
    else:
        count = np.zeros((2, fields), np.float32)
        for role, index in enumerate((index12, index21)):
            np.add.at(count[role], index[index >= 0], 1)
        used = np.flatnonzero(count.sum(axis=0))
        if len(used) == 0:
            return None
        count = count[:1] if np.array_equal(count[0], count[1]) else count
        pairs = np.asarray(pairs)
    order, valid = pointmap.sort_and_pad(pairs[used, 0], height * width)
    order = used[order].astype(np.int32)
    source, target = (jnp.asarray(pairs[order, side], jnp.int32) for side in (0, 1))
    values, trust = _component_wise(
        flow.flow,
        flow.weight if use_weight else None,
        order.reshape(-1),
        valid.reshape(-1),
    )
    return FlowData(
        flow=values.reshape(*order.shape, 2, -1),
        trust=trust.reshape(*order.shape, -1),
        source=source,
        target=target,
        count=jnp.asarray(count[:, order] * valid),
        static=static_weight(static),
    )


@jax.jit
def _component_wise(flow, weight, order, valid):
    """Returns fields (K, 2, L) and their trust (K, L) in the given order, one row at a time."""

    def load(inputs):
        row, is_valid = inputs
        values = pointmap.at_least_float32(flow[row]).reshape(-1, 2).T
        trust = jnp.ones_like(values[0])
        if weight is not None:
            trust = weight[row].astype(values.dtype).reshape(-1)
        usable = is_valid & jnp.all(jnp.isfinite(values), axis=0) & jnp.isfinite(trust)
        return jnp.where(usable, values, 0), jnp.where(usable, trust, 0)

    return jax.lax.map(load, (order, valid))


def static_weight(static: Array) -> Array:
    """Returns (T, L) float32 from a mask (T, H, W)."""
    return jnp.asarray(static).reshape(static.shape[0], -1).astype(jnp.float32)


def field_indices(
    flow: OpticalFlow, graph: PairGraph, axis: str | None = None
) -> tuple[Array, Array] | tuple[np.ndarray, np.ndarray]:
    """Returns (index12, index21), (P,) each: the fields of every pair, -1 where there is none.

    A flow that lists one field for every pair and then one for every pair reversed, in the order of
    the graph, is taken as it stands: pairs (i, j) and (j, i) may have estimates of their own.
    Traceable in both lists of pairs. axis: name of the mesh axis over which both lists are spread;
    P then counts the pairs of all devices, and so do the indices.
    """
    count = graph.num_pairs
    if isinstance(flow.pairs, jax.Array) or isinstance(graph.pairs, jax.Array):
        lists = jnp.asarray(flow.pairs), jnp.asarray(graph.pairs)
        if axis is not None:
            lists = jax.lax.all_gather(lists, axis, tiled=True)
        return _traced_field_indices(*lists)
    if np.array_equal(flow.pairs, np.concatenate([graph.pairs, graph.pairs[:, ::-1]])):
        return np.arange(count, dtype=np.int32), np.arange(count, 2 * count, dtype=np.int32)
    position = {tuple(pair): k for k, pair in enumerate(np.asarray(flow.pairs).tolist())}
    pairs = graph.pairs.tolist()
    index12 = [position.get((i, j), -1) for i, j in pairs]
    index21 = [position.get((j, i), -1) for i, j in pairs]
    return np.array(index12, np.int32), np.array(index21, np.int32)


def _traced_field_indices(fields: Array, pairs: Array) -> tuple[Array, Array]:
    count, last = pairs.shape[0], fields.shape[0] - 1
    directed = jnp.concatenate([pairs, pairs[:, ::-1]])
    equal = jnp.all(directed[:, None] == fields[None], axis=-1)
    # The last of several fields of one direction counts, as on the host.
    index = jnp.where(jnp.any(equal, axis=1), last - jnp.argmax(equal[:, ::-1], axis=1), -1)
    if fields.shape[0] == 2 * count:
        index = jnp.where(jnp.all(directed == fields), jnp.arange(2 * count), index)
    return index[:count], index[count:]


def _field_residual(disparity, homography, epipole, data_chunk, static, pixels):
    """Returns y (three (C, L)), 1 / z, residual x and y, mask, disparity, of one chunk."""
    flow, trust, source = data_chunk
    shift = disparity[source]
    m, b = homography[..., None], epipole[..., None]
    y = [
        m[:, a, 0] * pixels[0] + m[:, a, 1] * pixels[1] + m[:, a, 2] + shift * b[:, a]
        for a in range(3)
    ]
    z = y[2] + warp.PROJECTION_EPSILON
    # So near the camera plane that a derivative would overflow: huge, and cut, either way.
    inverse = 1 / jnp.where(jnp.abs(z) < SMALLEST_DEPTH, warp.PROJECTION_EPSILON, z)
    residual = [y[a] * inverse - pixels[a] - flow[:, a] for a in range(2)]
    return y, inverse, residual, trust * static[source], shift


def _smooth_l1(residual, mask, pixel_cut):
    """Returns (h, m): r^2 / 2 if |r| < 1 else |r| - 1/2, and the mask without h >= pixel_cut."""
    size = jnp.abs(residual)
    cost = jnp.where(size < 1, 0.5 * residual * residual, size - 0.5)
    # parity: no cut at all if pixel_cut <= 0. NaN and inf (points on the camera plane) fail both.
    keep = cost < pixel_cut if pixel_cut > 0 else jnp.isfinite(cost)
    return jnp.where(keep, cost, 0.0), jnp.where(keep, mask, 0.0)


def _kept(costs_and_masks, mask, pixel_cut):
    """Returns (sum of m h, sum of m) per field, (C,) each."""
    cost = sum(jnp.sum(h * m, axis=-1) for h, m in costs_and_masks)
    # parity: components are counted one by one, but pixels if there is no cut.
    masks = [m for _, m in costs_and_masks] if pixel_cut > 0 else [mask]
    return cost, sum(jnp.sum(m, axis=-1) for m in masks)


def _plain(disparity, homography, epipole, data, pixels, pixel_cut):
    """`robust_sums` without its rule: its gradient costs more, but reaches everything."""

    def body(_, chunk):
        *values, m, b = chunk
        _, _, residual, mask, _ = _field_residual(disparity, m, b, values, data.static, pixels)
        kept = [_smooth_l1(r, mask, pixel_cut) for r in residual]
        return None, _kept(kept, mask, pixel_cut)

    body = jax.checkpoint(body, prevent_cse=False)
    chunks = (data.flow, data.trust, data.source, homography, epipole)
    _, (residual, trust) = jax.lax.scan(body, None, chunks)
    return jnp.sum(data.count * residual, axis=(1, 2)), jnp.sum(data.count * trust, axis=(1, 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def robust_sums(
    disparity: Array,
    homography: Array,
    epipole: Array,
    data: FlowData,
    pixels: Array,
    pixel_cut: float,
) -> tuple[Array, Array]:
    """(sum c_f m h, sum c_f m) over fields, pixels and both components, each (R,).

    h = smooth-L1(ego - flow) per component, ego = pi(M (x, 1) + b disparity) - x, m = trust of the
    flow at static pixels with h < pixel_cut, c_f = count of the field. disparity: (T, L).
    homography M (N, C, 3, 3), epipole b (N, C, 3) of every field. The gradient of the first result
    by the scene takes one pass, together with the value; gradients by the data take a pass of their
    own. The cut is a switch: m depends on trust, but not on the scene.
    """
    return _plain(disparity, homography, epipole, data, pixels, pixel_cut)


def _forward(disparity, homography, epipole, data, pixels, pixel_cut):
    inputs = disparity, homography, epipole, data, pixels
    by_data = gradient_rule.is_perturbed((data, pixels))
    disparity, homography, epipole, data, pixels = inputs = gradient_rule.values_of(inputs)
    roles = data.count.shape[0]

    def body(disparity_gradient, chunk):
        *values, count, m, b = chunk
        y, inverse, residual, mask, shift = _field_residual(
            disparity, m, b, values, data.static, pixels
        )
        kept = [_smooth_l1(r, mask, pixel_cut) for r in residual]
        force = [
            keep * jnp.clip(r, min=-1, max=1) * inverse
            for r, (_, keep) in zip(residual, kept, strict=True)
        ]
        force = [jnp.where(keep > 0, f, 0.0) for f, (_, keep) in zip(force, kept, strict=True)]
        pull = (force[0] * y[0] + force[1] * y[1]) * inverse
        force.append(-jnp.where(jnp.isfinite(pull), pull, 0.0))
        towards = sum(force[a] * b[:, a, None] for a in range(3))
        stacked = jnp.stack(force, axis=1)
        basis = jnp.stack([*jnp.broadcast_to(pixels[:, None], (2, *shift.shape)), shift], axis=1)
        moment = jnp.einsum("cal,cbl->cab", stacked, basis, precision="highest")
        total = jnp.sum(stacked, axis=-1)
        # Columns x, y, 1 of the homography; the disparity column belongs to the epipole.
        by_matrix = jnp.concatenate([moment[..., :2], total[..., None]], axis=-1)
        for role in range(roles):
            disparity_gradient = disparity_gradient.at[role, values[2]].add(
                count[role][:, None] * towards
            )
        return disparity_gradient, (_kept(kept, mask, pixel_cut), by_matrix, moment[..., 2])

    body = jax.checkpoint(body, prevent_cse=False)  # for gradients of gradients
    start = jnp.zeros((roles, *disparity.shape), disparity.dtype)
    count = jnp.moveaxis(data.count, 0, 1)
    chunks = (data.flow, data.trust, data.source, count, homography, epipole)
    disparity_gradient, (sums, by_matrix, by_epipole) = jax.lax.scan(body, start, chunks)
    value = tuple(jnp.sum(data.count * part, axis=(1, 2)) for part in sums)
    gradient = disparity_gradient, by_matrix, by_epipole
    return value, gradient_rule.Saved(gradient, inputs, by_data)


def _backward(pixel_cut, saved, cotangent):
    if saved.by_data:
        plain = functools.partial(_plain, pixel_cut=pixel_cut)
        return gradient_rule.pull_back(plain, saved, cotangent)
    disparity_gradient, by_matrix, by_epipole = saved.gradient
    roles = gradient_rule.instantiated(cotangent[0])
    per_field = jnp.tensordot(roles, saved.inputs[3].count, axes=1)
    return (
        jnp.tensordot(roles, disparity_gradient, axes=1),
        per_field[..., None, None] * by_matrix,
        per_field[..., None] * by_epipole,
        None,
        None,
    )


robust_sums.defvjp(_forward, _backward, symbolic_zeros=True)


def flow_terms(
    geometry: Geometry, pixels: Array, data: FlowData, pixel_cut: float
) -> tuple[Array, Array]:
    """L_12 = sum m h / sum m over all pairs with ego i -> j against flow i -> j; L_21 the reverse.

    One pooled mean over pairs, components and pixels (MonST3R, eq. 5); 0 if no pixel is kept.
    geometry: decoded variables, depth (T, ...) at `pixels` (2, L). Returns (L_12, L_21).
    """
    return flow_shares(geometry, pixels, data, pixel_cut)[1]


def own_sums(
    geometry: Geometry, pixels: Array, data: FlowData, pixel_cut: float
) -> tuple[Array, Array]:
    """Returns `robust_sums` of the fields that are here, at a scene."""
    depth = geometry.depth.reshape(geometry.depth.shape[0], -1)
    homography, epipole = warp.transfer(
        geometry.intrinsics[data.source],
        geometry.intrinsics[data.target],
        geometry.world_from_cam[data.source],
        geometry.world_from_cam[data.target],
    )
    disparity = 1 / (depth + warp.DISPARITY_EPSILON)
    return robust_sums(disparity, homography, epipole, data, pixels, pixel_cut)


def mean_of(cost: Array, count: Array) -> tuple[Array, Array]:
    """Returns (L_12, L_21) of both results of `robust_sums`, (R,) each; 0 where none is kept."""
    mean = jnp.where(count > 0, cost / jnp.where(count > 0, count, 1.0), 0.0)
    return mean[0], mean[-1]


def flow_shares(
    geometry: Geometry, pixels: Array, data: FlowData, pixel_cut: float, axis: str | None = None
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Returns what this device's fields add to `flow_terms`, and the terms over all devices.

    axis: name of the mesh axis over which the fields are spread. Gradients pass through the shares
    alone (without an axis both are the same).
    """
    cost, count = own_sums(geometry, pixels, data, pixel_cut)
    whole = cost
    if axis is not None:
        whole, count = jax.lax.psum(jax.lax.stop_gradient((cost, count)), axis)
    return mean_of(cost, count), mean_of(whole, count)
