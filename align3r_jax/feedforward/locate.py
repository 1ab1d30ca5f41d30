"""The camera of a frame whose points another frame's pair predicts: resection that doubts depth.

First robust reprojection of the points as they are, then the same with the depth of every point
free along the ray it was predicted on (`window` of one frame):

    argmin over camera, d of sum_p w_p (c^2 ln(1 + |q_p(d_p) - pixel_p|^2 / c^2)
        + pull (ln d_p - ln d0_p)^2).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.config import FeedForwardConfig
from align3r_jax.feedforward import window
from align3r_jax.geometry import camera, depth_fit, resection, rigid

Array = jax.Array

_REJECT = 3.0  # times the median residual: left out of the second resection
_LEAST_REJECT_PX = 1.0
# Error of pixels, a share of the long side, over the relative error of depth.
_DEPTH_PULL = 0.01
_SCALES_PX = ((2.0, 3), (1.0, 5))  # of the robust loss, with steps
_WORSE, _WORSE_PX = 1.3, 0.1


@struct.dataclass
class Found:
    """pose: (4, 4), the points' frame from the camera. inliers: () share of the weight. spread: ()
    pixels, median residual."""

    pose: Array
    inliers: Array
    spread: Array


def locate(
    points: Array,
    *,
    weight: Array,
    pixels: Array,
    intrinsics: Array,
    start: Array,
    config: FeedForwardConfig,
) -> Found:
    """Resection, and once more without what lies far from the first result, depths set free.

    points: (P, 3) as seen from the origin of their frame. weight: (P,). pixels: (P, 2).
    intrinsics: (3, 3). start: (4, 4), as `Found.pose`.
    """
    size = 2 * jnp.max(intrinsics[:2, 2])  # the long side: the principal point is central
    weight = jnp.where(jnp.all(jnp.isfinite(points), axis=-1), weight, 0)
    known = (points, pixels)
    camera_of = (intrinsics[0, 0], intrinsics[:2, 2])

    def residual(pose):
        local = rigid.apply(rigid.invert(pose), points)
        away = jnp.linalg.norm(camera.project(local, intrinsics) - pixels, axis=-1)
        return jnp.where((local[:, 2] > 0) & (weight > 0), away, jnp.inf)

    pose, _ = resection.resect(*known, weight, *camera_of, start)
    error = residual(pose)
    spread = depth_fit.lower_median(error, weight > 0)
    kept = jnp.where(error <= jnp.maximum(_REJECT * spread, _LEAST_REJECT_PX), weight, 0)
    enough = jnp.sum(kept) > 0.2 * jnp.sum(weight)
    again, _ = resection.resect(*known, jnp.where(enough, kept, weight), *camera_of, pose)
    again = _refine(again, points, jnp.where(enough, kept, weight), pixels, intrinsics)
    error_again = residual(again)
    again_spread = depth_fit.lower_median(error_again, weight > 0)
    # Points believed as they are leave smaller residuals than the truth does, but not by much.
    better = again_spread <= _WORSE * spread + _WORSE_PX
    pose, error = jnp.where(better, again, pose), jnp.where(better, error_again, error)
    spread = jnp.where(better, again_spread, spread)
    agreeing = jnp.sum(jnp.where(error < config.inlier_px * size, weight, 0))
    inliers = agreeing / jnp.maximum(jnp.sum(weight), 1e-9)
    finite = jnp.all(jnp.isfinite(pose))
    return Found(jnp.where(finite, pose, start), jnp.where(finite, inliers, 0.0), spread)


def _refine(pose, points, weight, pixels, intrinsics):
    """The pose when the depth of every point, seen from where the points were predicted, is free.

    Noise of depth is noise of the factor by which a shift moves a pixel, and least squares make
    the shift smaller for it (attenuation, Fuller 1987), the rotation larger, always to one side.
    With depths of their own, drawn to what was predicted, points say what they know.
    """
    known = (weight > 0) & (points[:, 2] > 0)
    weight = jnp.where(known, weight, 0)
    weight = weight / jnp.maximum(jnp.mean(weight), 1e-9)
    points = jnp.where(known[:, None], points, jnp.array([0.0, 0, 1]))
    unit = jnp.where(jnp.any(known), depth_fit.lower_median(points[:, 2], known), 1.0)
    log_rho = -jnp.log(points[:, 2] / unit)
    f, centre = intrinsics[0, 0], intrinsics[:2, 2]
    long_side = 2 * jnp.max(centre)
    start = rigid.invert(pose)
    start = start.at[:3, 3].divide(unit)
    one = jnp.ones((), jnp.int32)
    frames = window.Window((pixels - centre)[None], weight[None], start[None], 0 * one, one)
    pull = jnp.full(len(pixels), (_DEPTH_PULL * long_side) ** 2)
    _, solved, _ = window.solve(
        window.Relief(log_rho, log_rho, pull * weight),
        frames,
        f * points[:, :2] / points[:, 2:],
        jnp.log(f),
        window.FocalPrior(jnp.log(f), jnp.float32(1e12), jnp.log(f)),
        _SCALES_PX,
    )
    found = solved.cam_from_anchor[0]
    found = rigid.invert(found.at[:3, 3].multiply(unit))
    return jnp.where(jnp.all(jnp.isfinite(found)), found, pose)


def between(first: Found, second: Found) -> Array:
    """The mean of a pose and the inverse of another, by their inliers and residuals; (4, 4)."""
    worth = [(f.inliers / jnp.maximum(f.spread, 0.1)) ** 2 for f in (first, second)]
    share = worth[1] / jnp.maximum(worth[0] + worth[1], 1e-12)
    other = rigid.invert(second.pose)
    turn = rigid.compose(jnp.swapaxes(first.pose[:3, :3], 0, 1), other[:3, :3])
    rotation = rigid.compose(first.pose[:3, :3], rigid.exp_so3(share * rigid.log_so3(turn)))
    shift = (1 - share) * first.pose[:3, 3] + share * other[:3, 3]
    return rigid.pose(rotation, shift)
