"""Camera pose from points in the world and where they are seen; traceable, no OpenCV.

`geometry.pnp` is its robust relative on the host. Here a start near the truth is expected, as a
video gives it: the camera of a frame close by.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from align3r_jax.geometry import registration, rigid

Array = jax.Array

_RAY_ROUNDS = 10
_PIXEL_ROUNDS = 15
_NEAREST = 1e-3  # of the typical depth: points closer than that, or behind, do not count
_SOFT_PX = 2.0  # residuals far above it hardly count
_DAMPING = 1e-6


def resect(
    points: Array,
    pixels: Array,
    weight: Array,
    focal: Array,
    principal_point: Array,
    world_from_cam: Array,
    free_focal: Array | bool = False,
) -> tuple[Array, Array]:
    """argmin over camera [and f] of sum_p w_p rho(|f (X, Y) / Z - (pixel_p - c)|), X in the camera.

    rho(r) = ln(1 + r^2 / s^2), s = 2 pixels (Cauchy). First the sum of squared distances of the
    points from their rays, whose minimum is found from far away (orthogonal iteration; Lu, Hager
    and Mjolsness 2000), then reweighted Gauss-Newton on the pixels.

    Args:
        points: (N, 3) in the world. pixels: (N, 2). weight: (N,) >= 0; points with 0 may hold NaN.
        focal: () pixels. principal_point: (2,) pixels.
        world_from_cam: (4, 4) the start.
        free_focal: () bool, whether the focal is estimated too, from `focal`.

    Returns:
        world_from_cam (4, 4) and focal (); the start where nothing finite was found.
    """
    usable = (weight > 0) & jnp.all(jnp.isfinite(points), axis=-1)
    weight = jnp.where(usable, weight, 0)
    weight = weight / jnp.maximum(jnp.sum(weight), 1e-30)
    points = jnp.where(usable[:, None], points, 0)
    centred = pixels - principal_point
    # A unit of length in which the points lie at depth 1 or so, about the start's centre.
    local = rigid.apply(rigid.invert(world_from_cam), points)
    unit = jnp.sum(weight * jnp.linalg.norm(local, axis=-1))
    unit = jnp.where(unit > 0, unit, 1)
    local = local / unit

    rays = jnp.concatenate([centred / focal, jnp.ones_like(centred[:, :1])], axis=-1)
    rays = rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)

    def towards_rays(_, pose):
        seen = rigid.apply(pose, local)
        target = rays * jnp.maximum(jnp.sum(rays * seen, axis=-1, keepdims=True), _NEAREST)
        _, rotation, _ = registration.weighted_procrustes(local, target, weight)
        shift = jnp.sum(weight[:, None] * (target - rigid.rotate(rotation, local)), axis=0)
        return rigid.pose(rotation, shift)

    def towards_pixels(_, state):
        pose, log_focal = state
        x, y, z = jnp.moveaxis(rigid.apply(pose, local), -1, 0)
        front = z > _NEAREST
        inverse = 1 / jnp.where(front, z, 1)
        x, y, scale = x * inverse, y * inverse, jnp.exp(log_focal)
        residual = scale * jnp.stack([x, y], axis=-1) - centred
        zero, one = jnp.zeros_like(x), jnp.ones_like(x)
        # Columns: rotation about and shift along the camera's axes (after the pose), ln f.
        by_x = [-x * y, 1 + x * x, -y, inverse, zero, -x * inverse, x * one]
        by_y = [-1 - y * y, x * y, x, zero, inverse, -y * inverse, y * one]
        jacobian = scale * jnp.stack([jnp.stack(by_x, -1), jnp.stack(by_y, -1)], axis=1)
        length = jnp.linalg.norm(residual, axis=-1)
        robust = jnp.where(front, weight / (1 + (length / _SOFT_PX) ** 2), 0)[:, None, None]
        weighted = (robust * jacobian).reshape(-1, 7)
        normal = jnp.einsum("na,nb->ab", weighted, jacobian.reshape(-1, 7), precision="highest")
        right = jnp.einsum("na,n->a", weighted, residual.reshape(-1), precision="highest")
        held = jnp.zeros(7).at[6].set(jnp.where(free_focal, 0.0, 1e12))
        damping = _DAMPING * jnp.diagonal(normal) + held + 1e-12
        step = -jnp.linalg.solve(normal + jnp.diag(damping), right)
        moved = rigid.compose(rigid.pose(rigid.exp_so3(step[:3]), step[3:6]), pose)
        good = jnp.all(jnp.isfinite(step))
        return jnp.where(good, moved, pose), jnp.where(good, log_focal + step[6], log_focal)

    start = jnp.eye(4, dtype=local.dtype)
    pose = jax.lax.fori_loop(0, _RAY_ROUNDS, towards_rays, start)
    pose = jnp.where(jnp.all(jnp.isfinite(pose)), pose, start)
    state = (pose, jnp.log(focal))
    pose, log_focal = jax.lax.fori_loop(0, _PIXEL_ROUNDS, towards_pixels, state)
    cam_from_start = pose.at[:3, 3].multiply(unit)
    found = rigid.compose(world_from_cam, rigid.invert(cam_from_start))
    good = jnp.all(jnp.isfinite(found)) & jnp.isfinite(log_focal)
    return jnp.where(good, found, world_from_cam), jnp.where(good, jnp.exp(log_focal), focal)
