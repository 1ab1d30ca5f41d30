"""Cameras of a few frames, the anchor's depth and the focal from flow that starts in the anchor.

A lattice pixel p of the anchor lands in frame k at q = f (y_x, y_y) / y_z with

    y = R_k (p / f, 1) + rho_p T_k,        (R_k, T_k) camera k from the anchor's camera.

The window holds some frames spread over the time since the anchor, and the current one. Minimised
over all of them, by Levenberg-Marquardt steps:

    sum_kp w_kp c^2 ln(1 + |q_kp - target_kp|^2 / c^2) + sum_p pull_p (ln rho_p - prior_p)^2
        + focal_pull (ln f - ln f0)^2.

The depths are eliminated pixel by pixel; what is left to solve is as small as the window. c falls
in steps: a blunt loss finds the valley, a sharp one is not moved by what moves slowly by itself.
f stays within bounds about the first guess. How much the window itself says of f is what is left of
its equation when all else is eliminated (`focal_information`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.geometry import rigid

Array = jax.Array

SLOTS = 8  # frames of a window, the current one included
SCALES_PX = ((1.0, 5), (0.3, 6))  # c and steps: residuals far above c hardly count
_SHARP_PX = SCALES_PX[-1][0]
FOCAL_BOUNDS = (0.5, 2.6)  # of the guess, as `predictors.flow_normal`
_MIN_Z = 1e-3
_MAX_LOG_STEP = 0.5


@struct.dataclass
class Window:
    """The frames bundled; the last slot is the current one's.

    targets: (SLOTS, P, 2) pixels from the principal point. weight: (SLOTS, P), 0 in empty slots.
    cam_from_anchor: (SLOTS, 4, 4). kept: () int32, other slots in use. every: () int32, one of so
    many frames is kept.
    """

    targets: Array
    weight: Array
    cam_from_anchor: Array
    kept: Array
    every: Array


@struct.dataclass
class Relief:
    """The anchor's lattice. log_rho: (P,) log inverse depth. prior: (P,) and pull: (P,), see the
    head of this file."""

    log_rho: Array
    prior: Array
    pull: Array


def empty(pixels: int) -> Window:
    """Returns the window of a new anchor with a lattice of so many pixels."""
    return Window(
        targets=jnp.zeros((SLOTS, pixels, 2), jnp.float32),
        weight=jnp.zeros((SLOTS, pixels), jnp.float32),
        cam_from_anchor=jnp.tile(jnp.eye(4, dtype=jnp.float32), (SLOTS, 1, 1)),
        kept=jnp.zeros((), jnp.int32),
        every=jnp.ones((), jnp.int32),
    )


def add(window: Window, target: Array, weight: Array, pose: Array, since: Array) -> Window:
    """Returns the window with a new current frame.

    target: (P, 2). weight: (P,). pose: (4, 4) start, camera from anchor. since: () int32, frames
    since the anchor (1 for the first). The frame that was the current one stays in the window if
    its number is a multiple of `every`; when all slots are taken, every second is given up first.
    """
    stays = (since > 1) & ((since - 1) % window.every == 0)
    full = window.kept == SLOTS - 1
    thin = stays & full
    half = (SLOTS - 1) // 2
    order = jnp.arange(SLOTS)
    thinned = jnp.where(order < half, 2 * order + 1, SLOTS - 1)
    order = jnp.where(thin, thinned, order)
    arrays = (window.targets, window.weight, window.cam_from_anchor)
    kept = jnp.where(thin, half, window.kept)
    moved = [values[order] for values in arrays]
    place = jnp.where(stays, kept, SLOTS - 1)
    moved = [values.at[place].set(old[-1]) for values, old in zip(moved, arrays)]
    kept = kept + stays
    moved[1] = jnp.where((jnp.arange(SLOTS) < kept)[:, None], moved[1], 0)
    new = (target, weight, pose)
    targets, weights, poses = (v.at[SLOTS - 1].set(n) for v, n in zip(moved, new))
    return Window(targets, weights, poses, kept, jnp.where(thin, 2 * window.every, window.every))


@struct.dataclass
class FocalPrior:
    """What was known of the focal before this window. mean: () log pixels; pull: (), see the head
    of this file; guess: () log pixels, about which it is bounded."""

    mean: Array
    pull: Array
    guess: Array


def solve(
    relief: Relief,
    window: Window,
    xy: Array,
    log_focal: Array,
    known: FocalPrior,
    scales: tuple[tuple[float, int], ...] = SCALES_PX,
) -> tuple[Relief, Window, Array]:
    """Returns relief, window and log focal () after some Levenberg-Marquardt steps.

    xy: (P, 2) lattice pixels from the principal point. log_focal: () the start.
    scales: c and steps, one after the other.
    """
    fixed = (relief, window, xy, known)

    def rounds(values, scale, steps):
        def improve(_, carry):
            values, cost, damping = carry
            candidate = _step(values, damping, scale, *fixed)
            new_cost = _cost(candidate, scale, *fixed)
            better = new_cost < cost
            values = jax.tree.map(lambda new, old: jnp.where(better, new, old), candidate, values)
            damping = jnp.clip(jnp.where(better, 0.3 * damping, 8 * damping), min=1e-6, max=1e3)
            return values, jnp.where(better, new_cost, cost), damping

        carry = (values, _cost(values, scale, *fixed), jnp.float32(1e-3))
        values, _, _ = jax.lax.fori_loop(0, steps, improve, carry)
        return values

    values = (relief.log_rho, window.cam_from_anchor, log_focal)
    for scale, steps in scales:
        values = rounds(values, scale, steps)
    log_rho, poses, log_focal = values
    moved = dataclasses.replace(window, cam_from_anchor=poses)
    return dataclasses.replace(relief, log_rho=log_rho), moved, log_focal


def focal_information(relief: Relief, window: Window, xy: Array, log_focal: Array) -> Array:
    """Returns () px^2 per unit of weight: d^2 of the cost by ln f^2, all else eliminated.

    Squared noise of the flow over it is the variance of ln f.
    """
    values = (relief.log_rho, window.cam_from_anchor, log_focal)
    system = _system(values, 0.0, _SHARP_PX, relief, window, xy)
    matrix = system.reduced
    through = jnp.linalg.solve(matrix[:-1, :-1], matrix[:-1, -1])
    own = matrix[-1, -1] - jnp.dot(matrix[-1, :-1], through, precision="highest")
    return jnp.maximum(own, 0) / jnp.maximum(jnp.sum(window.weight), 1e-6)


def strength(relief: Relief, window: Window, xy: Array, log_focal: Array) -> Array:
    """Returns (P,) px^2, max_k w |dq / d ln rho|^2: how well the best flow fixes a pixel's depth.

    Squared noise of the flow over it is the variance of log depth.
    """
    values = (relief.log_rho, window.cam_from_anchor, log_focal)
    error, _, _, along = _linearise(values, xy)
    weight = window.weight / (1 + _squared(error - window.targets) / _SHARP_PX**2)
    return jnp.max(weight * _squared(along), axis=0)


def residual(relief: Relief, window: Window, xy: Array, log_focal: Array) -> Array:
    """Returns (P,) pixels between where the lattice lands in the current frame and its flow."""
    rho, pose = jnp.exp(relief.log_rho), window.cam_from_anchor[-1]
    landed, _ = _project(rho, pose[None], xy, jnp.exp(log_focal))
    return jnp.sqrt(_squared(landed[0] - window.targets[-1]))


def _project(rho, poses, xy, focal):
    ray = jnp.concatenate([xy / focal, jnp.ones_like(xy[:, :1])], axis=-1)
    y = jnp.einsum("kab,pb->kpa", poses[:, :3, :3], ray, precision="highest")
    y = y + rho[:, None] * poses[:, None, :3, 3]
    z = jnp.maximum(y[..., 2], _MIN_Z)
    return focal * y[..., :2] / z[..., None], y.at[..., 2].set(z)


def _cost(values, scale, relief, window, xy, known):
    log_rho, poses, log_focal = values
    landed, _ = _project(jnp.exp(log_rho), poses, xy, jnp.exp(log_focal))
    squared = _squared(landed - window.targets) / scale**2
    data = jnp.sum(window.weight * scale**2 * jnp.log1p(squared))
    pulled = jnp.sum(relief.pull * (log_rho - relief.prior) ** 2)
    cost = data + pulled + known.pull * (log_focal - known.mean) ** 2
    return jnp.where(jnp.isfinite(cost), cost, jnp.inf)


def _linearise(values, xy):
    """Returns q (K, P, 2) and its derivatives by the pose (K, P, 2, 6: turn, shift), ln f and
    ln rho (K, P, 2 each)."""
    log_rho, poses, log_focal = values
    rho, focal = jnp.exp(log_rho), jnp.exp(log_focal)
    q, y = _project(rho, poses, xy, focal)
    over_z = focal / y[..., 2]
    a, b = q[..., 0] / focal, q[..., 1] / focal
    zero, near = jnp.zeros_like(a), rho * over_z
    by_x = [-over_z * a * y[..., 1], over_z * (y[..., 2] + a * y[..., 0]), -over_z * y[..., 1],
            near, zero, -near * a]  # fmt: skip
    by_y = [-over_z * (y[..., 2] + b * y[..., 1]), over_z * b * y[..., 0], over_z * y[..., 0],
            zero, near, -near * b]  # fmt: skip
    by_pose = jnp.stack([jnp.stack(by_x, -1), jnp.stack(by_y, -1)], axis=-2)
    flat = jnp.concatenate([-xy / focal, jnp.zeros_like(xy[:, :1])], axis=-1)
    turned = jnp.einsum("kab,pb->kpa", poses[:, :3, :3], flat, precision="highest")
    slope = jnp.stack([a, b], axis=-1)

    def through(dy):
        return over_z[..., None] * (dy[..., :2] - slope * dy[..., 2:])

    return q, by_pose, q + through(turned), through(rho[:, None] * poses[:, None, :3, 3])


@struct.dataclass
class _System:
    """Normal equations of poses and ln f without the depths, and what leads back to those."""

    reduced: Array
    target: Array
    columns: Array
    own: Array
    right: Array


def _system(values, damping, scale, relief, window, xy, known=None):
    log_rho, _, log_focal = values
    q, by_pose, by_focal, by_depth = _linearise(values, xy)
    error = q - window.targets
    weight = window.weight / (1 + _squared(error) / scale**2)
    slots, pixels = weight.shape
    # Columns of one frame: turn, shift, ln f; its depth column apart.
    jacobian = jnp.concatenate([by_pose, by_focal[..., None]], axis=-1)
    weighted = weight[..., None, None] * jacobian
    both = jnp.einsum("kpia,kpib->kab", weighted, jacobian, precision="highest")
    gradient = jnp.einsum("kpia,kpi->ka", weighted, error, precision="highest")
    cross = jnp.einsum("kpia,kpi->kpa", weighted, by_depth, precision="highest")
    own = jnp.sum(weight * _squared(by_depth), axis=0) + relief.pull
    own = own * (1 + damping) + 1e-6
    right = jnp.sum(weight * jnp.sum(by_depth * error, axis=-1), axis=0)
    right = right + relief.pull * (log_rho - relief.prior)

    size = 6 * slots + 1
    place = jnp.concatenate(
        [jnp.arange(6 * slots).reshape(slots, 6), jnp.full((slots, 1), size - 1)], axis=1
    )
    normal = jnp.zeros((size, size)).at[place[:, :, None], place[:, None, :]].add(both)
    slope = jnp.zeros(size).at[place].add(gradient)
    by_slot = jnp.moveaxis(cross[..., :6], 0, 1).reshape(pixels, 6 * slots)
    columns = jnp.concatenate([by_slot, cross[..., 6].sum(0)[:, None]], axis=1)
    if known is not None:
        normal = normal.at[-1, -1].add(known.pull)
        slope = slope.at[-1].add(known.pull * (log_focal - known.mean))
    normal = normal + jnp.diag(damping * jnp.diagonal(normal) + 1e-4)
    share = columns / own[:, None]
    reduced = normal - jnp.matmul(share.T, columns, precision="highest")
    target = slope - jnp.matmul(share.T, right, precision="highest")
    return _System(reduced, target, columns, own, right)


def _step(values, damping, scale, relief, window, xy, known):
    log_rho, poses, log_focal = values
    system = _system(values, damping, scale, relief, window, xy, known)
    move = -jnp.linalg.solve(system.reduced, system.target)
    along = jnp.matmul(system.columns, move, precision="highest")
    deeper = -(system.right + along) / system.own
    slots = len(poses)
    turn, shift = jnp.moveaxis(move[:-1].reshape(slots, 2, 3), 1, 0)
    poses = rigid.compose(rigid.pose(rigid.exp_so3(turn), shift), poses)
    log_rho = log_rho + jnp.clip(deeper, min=-_MAX_LOG_STEP, max=_MAX_LOG_STEP)
    log_focal = log_focal + jnp.clip(move[-1], min=-0.2, max=0.2)
    low, high = (known.guess + float(np.log(bound)) for bound in FOCAL_BOUNDS)
    return log_rho, poses, jnp.clip(log_focal, min=low, max=high)


def _squared(vectors):
    return jnp.sum(vectors * vectors, axis=-1)
