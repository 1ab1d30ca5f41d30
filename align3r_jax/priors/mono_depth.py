"""The depth prior of every frame: a plane, the user's files, or a monocular network.

A network plugs in as a `DepthModel` under a name; nothing here knows which ones exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import depth_files, preprocess
from align3r_jax.priors import cache
from align3r_jax.structs import Array, DepthPrior, Frames, WorkingSize

# Inverse depth below this fraction of the near end of the clip (its 99th percentile) counts as
# this: a sky at zero becomes far, not infinite.
MIN_INVERSE = 0.01
_NEAR_PERCENTILE = 99.0
_CONSTANT = 1e-5  # relative range of depth below which a prior says nothing
_CACHE_FORMAT = "mono_depth 1"


class DepthMaps(NamedTuple):
    """What a `DepthModel` returns; a plain tuple in this order does as well.

    depth: (T, Hd, Wd) float, any size, the field of view of the images; NaN where missing.
    focal: scalar or (T,) in pixels of `depth`, or None. inverse: larger is nearer.
    metric: in metres (if inverse: 1 / metres).
    """

    depth: Array
    focal: Array | float | None = None
    inverse: bool = False
    metric: bool = False


class DepthModel(Protocol):
    """A monocular network: any callable of this signature.

    If it has an attribute `checksum` (of its weights and settings), results are cached on disk.
    """

    def __call__(self, images: Array) -> DepthMaps | tuple[Array, Array | float | None, bool, bool]:
        """Returns the depth of images (T, H0, W0, 3) uint8 RGB."""
        ...


def estimate_depth(
    frames: Frames,
    originals: Array | None,
    spec: str,
    *,
    cache_dir: str | Path | None = None,
    models: Mapping[str, DepthModel] | None = None,
) -> DepthPrior | None:
    """Returns the depth prior that `spec` names.

    spec: "none" gives None; "plane" depth 1 everywhere; "files:DIR" (or a glob) the user's maps,
    see `io.depth_files`; or a name in `models`. originals: (T, H0, W0, 3) uint8, the frames
    before they were resized; None or `frames.images` feeds a network the working images.
    cache_dir: where results of networks with a `checksum` are kept, by content.
    Raises UserError if the name is unknown, or the depth of a frame is missing altogether or
    that of all frames constant.
    """
    models = models or {}
    if spec == "none":
        return None
    if spec == "plane":
        depth = np.ones(frames.images.shape[:3], np.float32)
        return DepthPrior(depth, depth, None, "plane")
    if spec.startswith("files:"):
        folder = depth_files.read_depth_folder(spec.removeprefix("files:"), frames.names)
        maps = DepthMaps(folder.depth, folder.focal, folder.inverse, folder.metric)
        return _to_prior(maps, frames, "files", f"The depth prior in '{spec[6:]}'")
    if spec not in models:
        known = ", ".join(["none", "plane", "files:DIR", *sorted(models)])
        raise UserError(f"The depth prior '{spec}' is unknown; known are {known}.")
    images = np.asarray(frames.images if originals is None else originals)
    size = frames.size
    if images.shape[0] != frames.num_frames or images.shape[1:3] not in (
        size.original,
        size.working,
    ):
        raise ValueError(
            f"originals are {images.shape}; expected {frames.num_frames} frames of the original "
            f"size {size.original} or the working size {size.working}."
        )
    maps = _run_model(images, spec, models[spec], cache_dir)
    if images.shape[1:3] != size.original:
        maps = _spread_over_original(maps, size)
    return _to_prior(maps, frames, spec, f"The depth prior '{spec}'")


def true_depth(native: np.ndarray, inverse: bool) -> np.ndarray:
    """Returns depth, up to scale, of depth or inverse depth (T, H, W); NaN where it has none.

    inverse: 1 / max(x, MIN_INVERSE * near), near = 99th percentile of x over the clip.
    """
    known = np.isfinite(native)
    if not inverse:
        return np.where(known & (native > 0), native, np.nan).astype(np.float32)
    near = np.percentile(native[known], _NEAR_PERCENTILE) if known.any() else 0.0
    if near <= 0:
        return np.full(native.shape, np.nan, np.float32)
    return (1 / np.where(known, np.maximum(native, MIN_INVERSE * near), np.nan)).astype(np.float32)


def _run_model(
    images: np.ndarray, name: str, model: DepthModel, cache_dir: str | Path | None
) -> DepthMaps:
    def compute() -> dict[str, np.ndarray]:
        maps = DepthMaps(*model(images))
        depth = np.asarray(maps.depth, np.float32)
        if depth.ndim != 3 or len(depth) != len(images):
            raise ValueError(
                f"The depth model '{name}' returned {depth.shape} for {len(images)} images; "
                "expected (T, Hd, Wd)."
            )
        flags = {"inverse": np.array(maps.inverse), "metric": np.array(maps.metric)}
        stored: dict[str, np.ndarray] = {"depth": depth, **flags}
        if maps.focal is not None:
            stored["focal"] = np.broadcast_to(np.asarray(maps.focal, np.float32), (len(images),))
        return stored

    checksum = getattr(model, "checksum", None)
    key = ""
    if cache_dir is None or checksum is None:
        cache_dir = None
    else:
        key = cache.content_key(_CACHE_FORMAT, name, checksum, images)
    stored = cache.get_or_compute(cache_dir, key, compute)
    return DepthMaps(
        stored["depth"], stored.get("focal"), bool(stored["inverse"]), bool(stored["metric"])
    )


def _spread_over_original(maps: DepthMaps, size: WorkingSize) -> DepthMaps:
    """Depth of the working images as depth of the whole frames, NaN outside of the crop."""
    (height, width), (top, left) = size.working, size.crop
    depth = np.full((len(maps.depth), *size.resized), np.nan, np.float32)
    for target, source in zip(depth, np.asarray(maps.depth)):
        resized = cv2.resize(source, (width, height), interpolation=cv2.INTER_LINEAR)
        target[top : top + height, left : left + width] = resized
    focal = maps.focal
    if focal is not None:
        focal = np.asarray(focal) * _mean_ratio(size.working, np.shape(maps.depth)[1:])
    return maps._replace(depth=depth, focal=focal)


def _to_prior(maps: DepthMaps, frames: Frames, name: str, subject: str) -> DepthPrior:
    native = np.asarray(maps.depth, np.float32)
    native = np.where(np.isfinite(native), native, np.float32(np.nan))
    at_working = np.stack([preprocess.depth_to_working(map_, frames.size) for map_ in native])
    depth = true_depth(at_working, maps.inverse)
    missing = ~np.isfinite(depth).any(axis=(1, 2))
    if missing.any():
        raise UserError(
            f"{subject} has no usable depth (positive and finite) for frame "
            f"'{frames.names[int(np.argmax(missing))]}'. Give another prior, or --prior=plane."
        )
    if np.nanmax(depth) - np.nanmin(depth) <= _CONSTANT * np.nanmax(depth):
        raise UserError(
            f"{subject} is constant, {np.nanmax(depth):g} everywhere: it says nothing about the "
            "scene. Give another prior, or --prior=plane if that is meant."
        )
    focal = maps.focal
    if focal is not None:
        ratio = _mean_ratio(frames.size.resized, native.shape[1:])
        focal = np.broadcast_to(np.asarray(focal, np.float32) * ratio, (len(native),))
        focal = focal.astype(np.float32)
        if not (np.isfinite(focal) & (focal > 0)).all():
            raise UserError(f"{subject} has a focal that is not positive: {focal.min():g} pixels.")
    return DepthPrior(native, depth, focal, name, inverse=maps.inverse, metric=maps.metric)


def _mean_ratio(to: tuple[int, ...], source: tuple[int, ...]) -> float:
    """Pixels of `to` per pixel of `source`; the axes differ by rounding at most, usually."""
    return float(np.sqrt(to[0] / source[0] * to[1] / source[1]))
