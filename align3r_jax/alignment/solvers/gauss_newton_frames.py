"""Normal equations of everything a frame's pixels touch, with their depth eliminated.

For frame n the local unknowns u are its own camera, the pairs that observe it and the cameras that
its flow fields lead to. With residuals r, Jacobians J (cameras, pairs) and B (ln depth of a pixel),
and reweighting w:

    H = J' w J - sum_p a_p a_p' / h_p,   g = J' w r - sum_p a_p d_p / h_p,
    a_p = J' w B,  h_p = B' w B,  d_p = B' w r,   ln depth moves by -(d_p + a_p' u) / h_p.

Pixels of different frames share no unknown depth, so frames are treated one after the other, or on
different devices. Reweighting: w / |r| for a norm, 1 / max(|r|, 1) for the
smooth-L1 of the flow.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.alignment.objective import Problem
from align3r_jax.alignment.solvers import gauss_newton_residuals as residuals
from align3r_jax.alignment.solvers import gauss_newton_slots as slots_lib
from align3r_jax.alignment.solvers.gauss_newton_increments import Unknowns
from align3r_jax.alignment.solvers.gauss_newton_residuals import Scene
from align3r_jax.config import AlignmentConfig

Array = jax.Array

# Frames treated together: one after the other where caches matter, several where cores do.
FRAMES_AT_ONCE = {"cpu": 1, "default": 8}


@struct.dataclass
class Blocks:
    """Normal equations in pieces: number (n, u), matrix (n, u, u), gradient (n, u).

    magnitude: (n, u), the diagonal before the elimination (what rounding errors are measured by).
    """

    number: Array
    matrix: Array
    gradient: Array
    magnitude: Array


def normal_equations(
    scene: Scene,
    problem: Problem,
    config: AlignmentConfig,
    numbers: Unknowns,
    damping: Array,
    depth_is_free: Array,
) -> Blocks:
    """Returns the blocks of all frames (of all devices), u = F + S Q + R F unknowns each.

    damping: h_p counts (1 + damping) times. depth_is_free: (T,) bool; other frames keep their depth
    and are not eliminated.
    """
    slots = scene.slots
    number = [
        numbers.frame,
        jnp.where(slots.valid[..., None], numbers.pair[slots.pair], numbers.size),
        jnp.where(slots.field_valid[..., None], numbers.frame[slots.target], numbers.size),
    ]
    packed = _over_frames(
        lambda n: _normal_equations(n, scene, problem, config, numbers, damping, depth_is_free[n]),
        problem,
    )
    return Blocks(
        jnp.concatenate([part.reshape(len(part), -1) for part in number], axis=1),
        matrix=packed[:, :-2],
        gradient=packed[:, -2],
        magnitude=packed[:, -1],
    )


def _over_frames(function, problem):
    """Returns function(n) of all frames, (T, ...); every device of the axis treats its own."""
    count = FRAMES_AT_ONCE.get(jax.default_backend(), FRAMES_AT_ONCE["default"])
    batch = count if count > 1 else None
    frames = problem.dynamic.shape[0]
    own = slots_lib.own_frames(problem)
    values = jax.lax.map(function, jnp.minimum(own, frames - 1), batch_size=batch)
    if problem.axis is None:
        return values
    values = jnp.swapaxes(jax.lax.all_gather(values, problem.axis), 0, 1)  # frames k, k + D, ...
    return values.reshape(-1, *values.shape[2:])[:frames]


def _normal_equations(n, scene, problem, config, numbers, damping, depth_is_free):
    """Matrix, gradient and magnitude of one frame, (u + 2, u)."""
    seen = residuals.observe(n, scene, problem, config)
    pair = scene.slots.pair[n]

    slots, unknowns = seen.pair.shape[:2]
    moment = _sum("sal,sbl->sab", seen.slope[:, None] * seen.basis, seen.basis)
    by_moment = _sum("skam,smn->skan", seen.frame, moment)
    frame_frame = _sum("skam,slam->kl", by_moment, seen.frame)
    frame_pair = _sum("skam,slam->ksl", by_moment, seen.pair).reshape(-1, slots * unknowns)
    pair_pair = _sum("skam,smn,slan->skl", seen.pair, moment, seen.pair)
    # From the residuals themselves: moments would lose their digits.
    force = seen.slope[:, None] * residuals.transform(seen.matrix, seen.basis)
    moment = _sum("sal,sml->sam", force, seen.basis)
    gradient = [_sum("skam,sam->k", seen.frame, moment)]
    gradient += [_sum("skam,sam->sk", seen.pair, moment).reshape(-1)]

    pull = seen.slope[:, None] * seen.ray
    stiffness = jnp.sum(pull * seen.ray, axis=(0, 1))
    towards = jnp.sum(force * seen.ray, axis=(0, 1))
    # All observations see the frame's points by the same derivative, up to their factor.
    along = residuals.transform(scene.maps.frame_tangent[n], seen.basis[0, :4])
    factor = scene.maps.pair_factor[pair][:, None, None]
    coupling = [jnp.sum(along * jnp.sum(factor * pull, axis=0), axis=1)]
    along = residuals.transform(seen.pair, seen.basis)
    coupling += [jnp.sum(along * pull[:, None], axis=2).reshape(slots * unknowns, -1)]
    diagonal = [frame_frame, _block_diagonal(pair_pair)]

    source_target = None
    if scene.slots.field.shape[1]:
        flow = residuals.flowing(n, scene, problem, config)
        fields, cameras = flow.tangent.shape[0], numbers.frame.shape[1]
        weighted = flow.slope[:, None] * flow.tangent
        matrix = _sum("rkcl,rmcl->rkm", weighted, flow.tangent)
        slope = _sum("rkcl,rcl->rk", weighted, flow.residual)
        diagonal[0] = frame_frame + jnp.sum(matrix[:, :cameras, :cameras], axis=0)
        diagonal.append(_block_diagonal(matrix[:, cameras:, cameras:]))
        source_target = jnp.moveaxis(matrix[:, :cameras, cameras:], 0, 1)
        source_target = source_target.reshape(cameras, fields * cameras)
        gradient[0] += jnp.sum(slope[:, :cameras], axis=0)
        gradient.append(slope[:, cameras:].reshape(-1))
        stiffness += jnp.sum(flow.slope * flow.ray**2, axis=(0, 1))
        towards += jnp.sum(flow.slope * flow.ray * flow.residual, axis=(0, 1))
        tied = jnp.sum(weighted * flow.ray[:, None], axis=2)
        coupling[0] += jnp.sum(tied[:, :cameras], axis=0)
        coupling.append(tied[:, cameras:].reshape(fields * cameras, -1))

    if scene.depth_stiffness is not None and scene.depth_force is not None:
        weight, force = scene.depth_stiffness[n], scene.depth_force[n]
        stiffness, towards = stiffness + weight, towards + force
        coupling[0] = coupling[0].at[-1].add(-weight)
        diagonal[0] = diagonal[0].at[-1, -1].add(jnp.sum(weight))

    sizes = [len(part) for part in gradient]
    rows = [[jnp.zeros((a, b), diagonal[0].dtype) for b in sizes] for a in sizes]
    for k, block in enumerate(diagonal):
        rows[k][k] = block
    rows[0][1], rows[1][0] = frame_pair, frame_pair.T
    if source_target is not None:
        rows[0][2], rows[2][0] = source_target, source_target.T
    matrix = jnp.block(rows)
    tied_depth, slopes = jnp.concatenate(coupling), jnp.concatenate(gradient)
    compliance = _compliance(stiffness, damping, depth_is_free)
    magnitude = jnp.diagonal(matrix)
    matrix = matrix - _sum("ul,vl->uv", tied_depth * compliance, tied_depth)
    slopes = slopes - _sum("ul,l->u", tied_depth, compliance * towards)
    return jnp.concatenate([matrix, slopes[None], magnitude[None]])


def depth_steps(
    step: Array,
    scene: Scene,
    problem: Problem,
    config: AlignmentConfig,
    numbers: Unknowns,
    damping: Array,
    depth_is_free: Array,
) -> Array:
    """Returns (T, L), how ln depth moves when the other unknowns move by `step` (size + 1,)."""

    def one(n):
        seen = residuals.observe(n, scene, problem, config)
        pair = scene.slots.pair[n]
        own = step[numbers.frame[n]]
        moved = seen.matrix + _sum("k,skam->sam", own, seen.frame)
        moved = moved + _sum("sk,skam->sam", step[numbers.pair[pair]], seen.pair)
        pull = seen.slope[:, None] * seen.ray
        stiffness = jnp.sum(pull * seen.ray, axis=(0, 1))
        towards = jnp.sum(residuals.transform(moved, seen.basis) * pull, axis=(0, 1))
        if problem.flow is not None and scene.slots.field.shape[1]:
            target = scene.slots.target[n]
            both = jnp.concatenate(
                [jnp.broadcast_to(own, (len(target), len(own))), step[numbers.frame[target]]],
                axis=1,
            )
            flow = residuals.flowing(n, scene, problem, config, both)
            stiffness += jnp.sum(flow.slope * flow.ray**2, axis=(0, 1))
            residual = flow.residual + flow.tangent[:, 0]
            towards += jnp.sum(flow.slope * flow.ray * residual, axis=(0, 1))
        if scene.depth_stiffness is not None and scene.depth_force is not None:
            weight, force = scene.depth_stiffness[n], scene.depth_force[n]
            stiffness, towards = stiffness + weight, towards + force - weight * own[-1]
        return -towards * _compliance(stiffness, damping, depth_is_free[n])

    return _over_frames(one, problem)


def _compliance(stiffness, damping, is_free):
    """1 / h, 0 where nothing holds the depth of a pixel (or it is given)."""
    usable = (stiffness > 0) & is_free
    return jnp.where(usable, 1 / jnp.where(usable, stiffness * (1 + damping), 1), 0)


def _block_diagonal(blocks):
    """(n, k, k) -> (n k, n k)."""
    count, size = blocks.shape[:2]
    same = jnp.eye(count, dtype=blocks.dtype)
    spread = same[:, None, :, None] * blocks[:, :, None, :]
    return spread.reshape(count * size, count * size)


def _sum(*arguments):
    return jnp.einsum(*arguments, precision="highest")
