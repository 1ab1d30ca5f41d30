"""Batches as they arrive, from files or from the renderer, in the one form that losses read.

| key | from files | from the renderer |
|---|---|---|
| images (B, 2, H, W, 3) | uint8 RGB | float32 in [-1, 1] |
| depth (B, 2, H, W), along z, 0 where unknown | yes | yes |
| cam1_from_cam2 (B, 4, 4) | yes | yes |
| intrinsics (B, 2, 3, 3), pixels of the arrays | yes | - |
| focal (B,) pixels, centre (W/2, H/2) | - | yes |
| has_prior (B, 2) or (B,) bool | yes | yes |
| prior_points (B, 2, H, W, 3), min-max of the frame | if configured | - |
| prior_depth (B, 2, H, W), NaN where missing, prior_focal (B,) or (B, 2) | - | yes |
| portrait (B, 2) bool, optional: views stored transposed | yes | - |

A portrait view is stored with rows and columns exchanged, so that all views are landscape; its
intrinsics have their first two rows exchanged. Points keep their axes: x right, y down.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.config import NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.geometry import camera, rigid
from align3r_jax.structs import Array
from align3r_jax.training.losses import PointmapBatch

# Depth from which on truth is not trained on, in the unit of the data (metres).
MAX_DEPTH = {"align3r": 400.0, "monst3r": 80.0, "dust3r": float("inf")}
_NO_DEPTH = 10_000.0  # parity: see `valid_depth`


@struct.dataclass
class Views:
    """2B views of B pairs, a1, b1, a2, b2, ...; V = 2B.

    images: (V, H, W, 3) float32 in [-1, 1]. depth: (V, H, W). intrinsics: (V, 3, 3).
    other: (V, 4, 4) pose of the partner's camera in the frame of this one. prior: (V, H, W, 3) as
    the network reads it, has_prior: (V,) bool; None without. portrait: (V,) bool or None.
    """

    images: Array
    depth: Array
    intrinsics: Array
    other: Array
    prior: Array | None
    has_prior: Array | None
    portrait: Array | None


def images_of(batch: dict[str, Array]) -> Array:
    """Returns the images (B, 2, H, W, 3) float32: uint8 as x / 127.5 - 1, others as they are."""
    images = batch["images"]
    return images / 127.5 - 1.0 if images.dtype == jnp.uint8 else images.astype(jnp.float32)


def read(batch: dict[str, Array], config: NetworkConfig) -> Views:
    """Returns a batch, as the table of this module says, for the network of `config`.

    Raises UserError if the network has a prior branch and the batch no prior that it can read.
    """
    portrait = _flat(batch["portrait"]) if "portrait" in batch else None
    if "intrinsics" in batch:
        intrinsics = _flat(batch["intrinsics"])
    else:
        intrinsics = _centred(batch["focal"], batch["depth"].shape, portrait)
    first_from_second = batch["cam1_from_cam2"]
    other = jnp.stack([first_from_second, rigid.invert(first_from_second)], axis=1)
    prior, has_prior = _prior(batch, config, portrait)
    return Views(
        images=_flat(images_of(batch)),
        depth=_flat(batch["depth"]),
        intrinsics=intrinsics,
        other=_flat(other),
        prior=prior,
        has_prior=has_prior,
        portrait=portrait,
    )


def partner(values: Any) -> Any:
    """Returns every array (V, ...) with the two views of each pair exchanged: b1, a1, b2, a2."""
    # A reversal and not a gather, so that the rows of a device stay there.
    return jax.tree.map(lambda x: _paired(x)[:, ::-1].reshape(x.shape), values)


def first_of_pairs(values: Any) -> Any:
    """Returns every array (V, ...) at the first views only, (B, ...)."""
    return jax.tree.map(lambda x: _paired(x)[:, 0], values)


def valid_depth(depth: Array, max_depth: float, rescue_empty_views: bool = False) -> Array:
    """Returns (..., H, W) bool: 0 < depth < max_depth, finite.

    rescue_empty_views: parity with Align3R: in a view without any such pixel those of the
    smallest depth count, 0 taken as 10000. Of a view without any depth that is every pixel, at
    the camera's centre, which is wrong supervision.
    """
    valid = (depth > 0) & (depth < max_depth) & jnp.isfinite(depth)
    if not rescue_empty_views:
        return valid
    filled = jnp.where(depth == 0, _NO_DEPTH, depth)
    smallest = jnp.min(filled, axis=(-2, -1), keepdims=True)
    empty = ~jnp.any(valid, axis=(-2, -1), keepdims=True)
    return jnp.where(empty, filled == smallest, valid)


def unproject(depth: Array, intrinsics: Array, portrait: Array | None = None) -> Array:
    """Returns the points (V, H, W, 3) of stored depth (V, H, W) in each view's own camera."""
    points = camera.unproject(depth, intrinsics)
    if portrait is None:
        return points
    upright = camera.unproject(depth.swapaxes(1, 2), intrinsics[:, jnp.array([1, 0, 2])])
    return jnp.where(portrait[:, None, None, None], upright.swapaxes(1, 2), points)


def true_points(
    views: Views, max_depth: float = MAX_DEPTH["align3r"], rescue_empty_views: bool = False
) -> PointmapBatch:
    """Returns the truth of all V ordered pairs (view, its partner) in the view's camera."""
    valid = valid_depth(views.depth, max_depth, rescue_empty_views)
    own = unproject(jnp.where(valid, views.depth, 1.0), views.intrinsics, views.portrait)
    others = rigid.apply(views.other[:, None, None], partner(own))
    return PointmapBatch(own, others, valid, partner(valid))


def drop_priors(views: Views, share: float, key: Array) -> Views:
    """Returns the views without the priors of a random share of the pairs, both views at once."""
    if share == 0 or views.has_prior is None:
        return views
    kept = jax.random.uniform(key, (views.has_prior.shape[0] // 2,)) >= share
    return dataclasses.replace(views, has_prior=views.has_prior & jnp.repeat(kept, 2))


def _paired(array: Array) -> Array:
    return array.reshape(array.shape[0] // 2, 2, *array.shape[1:])


def _flat(array: Array) -> Array:
    return array.reshape(2 * array.shape[0], *array.shape[2:])


def _centred(focal: Array, shape: tuple[int, ...], portrait: Array | None) -> Array:
    """Intrinsics (V, 3, 3) of a focal (B,) shared by the views, or (B, 2). shape: (B, 2, H, W)."""
    focal = jnp.broadcast_to(focal if focal.ndim == 2 else focal[:, None], shape[:2])
    matrix = camera.intrinsics_matrix(focal.reshape(-1), camera.image_centre(*shape[2:]))
    if portrait is None:
        return matrix
    # x of a portrait view runs along the stored rows
    return jnp.where(portrait[:, None, None], matrix[:, :, jnp.array([1, 0, 2])], matrix)


def _prior(
    batch: dict[str, Array], config: NetworkConfig, portrait: Array | None
) -> tuple[Array | None, Array | None]:
    """Returns what the prior branch of `config` reads, and (V,) which views have it."""
    if not config.prior_branch:
        return None, None
    minmax = config.prior_encoding == "minmax"
    key = "prior_points" if minmax and "prior_points" in batch else "prior_depth"
    if key not in batch:
        raise UserError(
            "The network has a prior branch, but the data comes without "
            f"{'a prior' if minmax else 'depth priors as depth maps'}; configure data.prior, or "
            "train a network without prior branch."
        )
    has_prior = batch["has_prior"].astype(bool)
    has_prior = has_prior if has_prior.ndim == 2 else jnp.repeat(has_prior[:, None], 2, axis=1)
    has_prior = _flat(has_prior)
    if key == "prior_points":
        return _flat(batch["prior_points"]).astype(jnp.float32), has_prior
    intrinsics = _centred(batch["prior_focal"], batch["depth"].shape, portrait)
    points = unproject(_flat(batch["prior_depth"]), intrinsics, portrait)
    return (_minmax(points) if minmax else points), has_prior


def _minmax(points: Array) -> Array:
    """Returns points (V, H, W, 3) scaled to [0, 1] per axis; 0 where missing (not finite)."""
    known = jnp.all(jnp.isfinite(points), axis=-1, keepdims=True)
    low = jnp.min(jnp.where(known, points, jnp.inf), axis=(1, 2), keepdims=True)
    high = jnp.max(jnp.where(known, points, -jnp.inf), axis=(1, 2), keepdims=True)
    span = jnp.where(high > low, high - low, 1.0)
    return jnp.where(known, (points - low) / span, 0.0)
