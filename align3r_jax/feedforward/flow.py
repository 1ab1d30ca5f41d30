"""Real-time mode without weights: cameras and depth from flow that starts in an anchor frame.

Frame t is located by the flow from the anchor: its camera, those of some frames before it, the
anchor's depth and the focal are bundled (`window`). The anchor's depth, the prior's shape where
parallax says little (`relief`), is carried to t along the flow back, and where that is not to be
trusted the prior of t, fitted to the rest, fills in. A frame that takes over as anchor starts from
the depth that was carried to it, so the scale is handed on. State and work per frame are of
constant size.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.alignment import lattice
from align3r_jax.config import FeedForwardConfig
from align3r_jax.feedforward import anchor as anchor_lib
from align3r_jax.feedforward import motion, relief, tracks, window
from align3r_jax.feedforward.anchor import FrameResult
from align3r_jax.feedforward.window import FocalPrior
from align3r_jax.geometry import camera, resection, rigid, warp

Array = jax.Array
Picture = np.ndarray | jax.Array

FOCAL_PRIOR = 0.95  # of the long side, where nothing is known
NOISE_PX = 0.3  # error of trusted flow
_PIXELS = 2048  # of the lattice, about
# Per unit of weight of the flow: squared error of flow that is the same all over the frame (about
# 0.1 pixels) over the variance of ln f of a guess, of a focal that was given, and at best.
_FOCAL_PULL, _KNOWN_FOCAL_PULL, _BEST_FOCAL_PULL = 0.1, 5.0, 10.0
_PRIOR_SPREAD, _PLANE_SPREAD = 0.3, 2.0  # of ln depth, before anything is measured
_CORRELATED = 0.1  # the errors of flow are far more alike than those of the prior
_CARRIED = 10.0  # and so do those carried to a new anchor
_CARRIED_SPREAD = 0.05
_UNKNOWN = 1e6  # variance
_FLAT_GRADIENT = 1.0  # grey levels per pixel; flow of flatter regions is little more than a guess
_LEAST_SEEN = 0.1  # share of the frame with trusted flow
_SURE = 0.1  # deviation of log depth at which confidence is halved


@struct.dataclass
class FlowState:
    """All that is remembered; its size does not depend on how many frames were seen.

    relief, window: see `window`. texture, still, brightness, prior: (P,) of the anchor; detail:
    (H, W) its prior's log depth beside what the lattice shows of it. has_relief: () bool.
    world_from_anchor: (4, 4). anchor: () int32, its number. log_focal: (); focal: what was known of
    it before this anchor, its pull per unit of weight. past_poses: see `motion`. count, lost: ()
    int32, frames seen and frames in a row without camera.
    """

    relief: window.Relief
    window: window.Window
    texture: Array
    still: Array
    brightness: Array
    prior: Array
    detail: Array
    has_relief: Array
    world_from_anchor: Array
    anchor: Array
    log_focal: Array
    focal: FocalPrior
    past_poses: Array
    count: Array
    lost: Array


def init(
    image: Picture, prior: Picture | None, known_focal: Array | float | None = None
) -> tuple[FlowState, FrameResult]:
    """Returns the state after the first frame, and its result: the prior, in the prior's scale.

    image: (H, W, 3) uint8. prior: (H, W) depth, NaN where missing, or None. known_focal: pixels.
    """
    height, width = image.shape[:2]
    prior = jnp.ones((height, width), jnp.float32) if prior is None else prior
    guess = FOCAL_PRIOR * max(height, width)
    focal = jnp.float32(guess if known_focal is None else known_focal)
    pull = _FOCAL_PULL if known_focal is None else _KNOWN_FOCAL_PULL
    return _first(image, prior, focal, jnp.float32(pull))


def step(
    state: FlowState,
    image: Picture,
    prior: Picture | None,
    flow: tracks.Tracks,
    config: FeedForwardConfig,
) -> tuple[FlowState, FrameResult]:
    """Returns the next state and the result of one more frame; traceable.

    flow: between it and the anchor (`tracks.Tracker.advance`). Where the result says `is_anchor`,
    the flow of the frames after it starts there.
    """
    prior = jnp.ones(image.shape[:2], jnp.float32) if prior is None else prior
    fields = (
        flow.from_anchor, flow.from_anchor_weight, flow.to_anchor, flow.to_anchor_weight, flow.past
    )  # fmt: skip
    return _next(state, image, prior, *fields, config)


@struct.dataclass
class _View:
    """What is known of a frame before its flow: as in `FlowState`."""

    texture: Array
    brightness: Array
    prior: Array
    detail: Array
    has_relief: Array


@jax.jit
def _first(image, prior, focal, focal_pull):
    shape = image.shape[:2]
    cells = _cells(*shape)
    view = _look(image, prior)
    log_depth = jnp.where(jnp.isfinite(view.prior), view.prior, jnp.nanmedian(view.prior))
    eye, zero = jnp.eye(4, dtype=jnp.float32), jnp.zeros((), jnp.int32)
    pixels = len(cells.xy)
    state = FlowState(
        relief=_new_relief(log_depth, jnp.full(pixels, _UNKNOWN), view.has_relief),
        window=window.empty(pixels),
        texture=view.texture,
        still=jnp.ones(pixels),
        brightness=view.brightness,
        prior=view.prior,
        detail=view.detail,
        has_relief=view.has_relief,
        world_from_anchor=eye,
        anchor=zero,
        log_focal=jnp.log(focal),
        focal=FocalPrior(jnp.log(focal), focal_pull, jnp.log(focal)),
        past_poses=motion.push(motion.first_poses(), eye),
        count=zero + 1,
        lost=zero,
    )
    depth = jnp.exp(relief.dense(log_depth, cells, *shape) + view.detail)
    result = anchor_lib.first_result(depth, jnp.full(shape, 1.5, jnp.float32), jnp.log(focal))
    return anchor_lib.settled(state), result


@functools.partial(jax.jit, static_argnames="config")
def _next(state, image, prior, there, there_weight, back, back_weight, past, config):
    shape = image.shape[:2]
    cells = _cells(*shape)
    view = _look(image, prior)
    since = state.count - state.anchor

    # The camera: resection against the anchor's depth, then all of the window together.
    target = cells.xy + relief.at(there, cells)
    weight = relief.at(there_weight, cells) * state.texture * state.still
    start = state.window.cam_from_anchor[-1]
    focal = jnp.exp(state.log_focal)
    ray = jnp.concatenate([cells.xy / focal, jnp.ones_like(cells.xy[:, :1])], axis=-1)
    found, _ = resection.resect(
        ray * jnp.exp(-state.relief.log_rho)[:, None], target, weight, focal, jnp.zeros(2),
        rigid.invert(start),
    )  # fmt: skip
    added = window.add(state.window, target, weight, rigid.invert(found), since)
    focal_prior = state.focal.replace(pull=state.focal.pull * jnp.sum(added.weight))
    solved, moved, log_focal = window.solve(
        state.relief, added, cells.xy, state.log_focal, focal_prior
    )
    error = window.residual(solved, moved, cells.xy, log_focal)
    total = jnp.sum(weight)
    agrees = error < config.inlier_px * max(shape)
    inliers = jnp.sum(jnp.where(agrees, weight, 0)) / jnp.maximum(total, 1e-6)
    overlap = jnp.mean(back_weight)
    good = (inliers >= config.lost_inliers) & (overlap >= _LEAST_SEEN)
    solved, moved, log_focal = anchor_lib.choose(
        good, (solved, moved, log_focal), (state.relief, state.window, state.log_focal)
    )
    cam_from_anchor = moved.cam_from_anchor[-1]
    anchor_from_cam = rigid.invert(cam_from_anchor)
    world_from_cam = rigid.compose(state.world_from_anchor, anchor_from_cam)
    intrinsics = anchor_lib.intrinsics(log_focal, shape)

    # The anchor's depth, and what of it is seen in this frame.
    sharp = window.strength(solved, moved, cells.xy, log_focal)
    known = NOISE_PX**2 / jnp.maximum(sharp, 1e-9)
    carried = solved.pull * _CARRIED / NOISE_PX**2
    variance = 1 / (1 / known + carried)
    variance = jnp.where(state.still > 0, variance, _UNKNOWN)
    level = jnp.median(-solved.log_rho)
    anchor_depth = _shape(-solved.log_rho, variance, state, level, cells)
    full = relief.dense(anchor_depth, cells, *shape) + state.detail
    pixel = warp.pixel_grid(*shape) + back
    sampled = warp.sample_bilinear(
        jnp.stack([full, relief.dense(jnp.log(variance), cells, *shape)], axis=-1),
        relief.at(pixel, cells),
        "replicate",
    )
    centred = relief.at(pixel, cells) - camera.image_centre(*shape)
    ray = jnp.concatenate([centred / jnp.exp(log_focal), jnp.ones_like(centred[:, :1])], -1)
    z = rigid.apply(cam_from_anchor, ray * jnp.exp(sampled[:, :1]))[:, 2]
    trusted = (relief.at(back_weight, cells) > 0) & (z > 0) & good
    measured = jnp.where(z > 0, jnp.log(jnp.maximum(z, 1e-9)), 0.0)
    variance = jnp.where(trusted, jnp.exp(sampled[:, 1]), _UNKNOWN)

    log_depth = _shape(measured, variance, view, level, cells)
    depth = jnp.exp(relief.dense(log_depth, cells, *shape) + view.detail)
    moving = jnp.zeros(shape, bool)
    if config.motion_masks:
        moving = good & motion.mask(depth, world_from_cam, intrinsics, state.past_poses, past)
        # Flow carries the depth of what moves wrongly: there the prior says more.
        variance = jnp.where(relief.at(moving, cells), _UNKNOWN, variance)
        log_depth = _shape(measured, variance, view, level, cells)
        depth = jnp.exp(relief.dense(log_depth, cells, *shape) + view.detail)

    learnt = window.focal_information(solved, moved, cells.xy, log_focal)
    due = good & anchor_lib.is_due(
        config, overlap=overlap, inliers=inliers, confidence=1.0, since=since
    )
    lost = jnp.where(good, 0, state.lost + 1)
    start_again = lost >= config.max_lost
    take_over = due | start_again
    kept = state.replace(relief=solved, window=moved, log_focal=log_focal)
    fresh = FlowState(
        relief=_new_relief(log_depth, variance, view.has_relief),
        window=window.empty(len(cells.xy)),
        texture=view.texture,
        still=1.0 - relief.at(moving, cells),
        brightness=view.brightness,
        prior=view.prior,
        detail=view.detail,
        has_relief=view.has_relief,
        world_from_anchor=world_from_cam,
        anchor=state.count,
        log_focal=log_focal,
        focal=state.focal.replace(
            mean=log_focal, pull=jnp.minimum(state.focal.pull + learnt, _BEST_FOCAL_PULL)
        ),
        past_poses=state.past_poses,
        count=state.count,
        lost=state.lost,
    )
    result = FrameResult(
        depth=depth,
        confidence=_confidence(variance, moving, good, cells, shape),
        dynamic_mask=moving,
        world_from_cam=world_from_cam,
        intrinsics=intrinsics,
        good=good,
        inliers=inliers,
        overlap=overlap,
        anchor=state.anchor,
        is_anchor=take_over,
    )
    following = anchor_lib.choose(take_over, fresh, kept).replace(
        past_poses=motion.push(state.past_poses, world_from_cam),
        count=state.count + 1,
        lost=jnp.where(start_again, 0, lost),
    )
    return anchor_lib.settled(following), result


def _cells(height, width):
    return relief.grid(height, width, lattice.stride_for(height, width, pixels=_PIXELS))


def _look(image, prior):
    """What a frame says by itself."""
    shape = image.shape[:2]
    cells = _cells(*shape)
    known = jnp.isfinite(prior) & (prior > 0)
    log_prior = jnp.where(known, jnp.log(jnp.where(known, prior, 1.0)), jnp.nan)
    filled = jnp.where(known, log_prior, jnp.nanmedian(log_prior))
    few = relief.at(log_prior, cells)
    has_relief = jnp.nanmax(log_prior) - jnp.nanmin(log_prior) > 1e-3
    smooth = relief.dense(relief.at(filled, cells), cells, *shape)
    grey = jnp.mean(image.astype(jnp.float32), axis=-1)
    brightness = _box(grey, cells.stride)
    return _View(
        texture=relief.at(_texture(grey, cells.stride), cells),
        brightness=relief.at(brightness, cells) / 255,
        prior=few,
        detail=jnp.where(known & has_relief, filled - smooth, 0.0),
        has_relief=has_relief,
    )


def _shape(measured, variance, view, level, cells):
    """Log depth of the lattice from what is measured and the frame's prior."""
    fitted, sigma = relief.fit(measured, variance, view.prior, view.has_relief, level, cells)
    return relief.regularise(measured, variance, fitted, sigma, view.brightness, cells)


def _new_relief(log_depth, variance, has_relief):
    spread = jnp.where(has_relief, _PRIOR_SPREAD, _PLANE_SPREAD)
    pull = NOISE_PX**2 / (spread**2 * _CORRELATED)
    carried = NOISE_PX**2 / (variance + _CARRIED_SPREAD**2) / _CARRIED
    return window.Relief(-log_depth, -log_depth, pull + carried)


def _confidence(variance, moving, good, cells, shape):
    sure = 1 / (1 + jnp.sqrt(variance) / _SURE)
    full = 1 + (2.5 + 6 * relief.dense(sure, cells, *shape)) * jnp.where(moving, 0.2, 1.0)
    return jnp.where(good, full, 1.0)


def _texture(grey, stride):
    """l / (l + g^2) in [0, 1], l the smaller eigenvalue of the structure tensor (Shi and Tomasi
    1994): how well the image around a pixel fixes its flow in both directions."""
    padded = jnp.pad(grey, 1, mode="edge")
    dx = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
    dy = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
    xx, xy, yy = (_box(values, 2 * stride + 1) for values in (dx * dx, dx * dy, dy * dy))
    smaller = (xx + yy) / 2 - jnp.sqrt(jnp.square(xx - yy) / 4 + xy * xy)
    smaller = jnp.maximum(smaller, 0)
    return smaller / (smaller + _FLAT_GRADIENT**2)


def _box(values, size):
    """Mean over windows of `size` pixels, the border repeated."""
    before = size // 2
    padded = jnp.pad(values, (before, size - 1 - before), mode="edge")
    total = jax.lax.reduce_window(padded, 0.0, jax.lax.add, (size, size), (1, 1), "valid")
    return total / size**2
