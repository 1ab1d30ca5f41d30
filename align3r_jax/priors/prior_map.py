"""From the depth prior to the point maps that the pairwise network reads."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage

from align3r_jax.config import NetworkConfig
from align3r_jax.geometry import camera
from align3r_jax.io import preprocess
from align3r_jax.structs import DepthPrior, WorkingSize


def prior_maps(prior: DepthPrior, config: NetworkConfig, size: WorkingSize) -> np.ndarray:
    """Returns the network's prior input of every frame, (T, H, W, 3) float32 at working size.

    `config.prior_encoding` "minmax" (Align3R): the native map Z as it is, inverse depth included
    (parity: the published weights were trained so), resized to the original image (bicubic,
    pixel edges aligned), unprojected, scaled to [0, 1] per axis over the whole frame, then
    resized and cropped like the image; zeros where depth is missing. "ray" (small network):
    X = (u - W/2) Z / f, Y = (v - H/2) Z / f, Z in the camera frame from true depth and the
    prior's focal (else 0.85 max(H, W)), one scale for the whole video; NaN where missing.
    """
    if config.prior_encoding == "ray":
        return camera_points(np.asarray(prior.depth, np.float32), prior.focal)
    return np.stack([_minmax(native, size) for native in np.asarray(prior.native, np.float32)])


def camera_points(depth: np.ndarray, focal: np.ndarray | None) -> np.ndarray:
    """Returns (T, H, W, 3) float32 points of depth (T, H, W), focal (T,) pixels or None."""
    count, height, width = depth.shape
    if focal is None:
        focal = np.full(count, camera.DEFAULT_FOCAL * max(height, width), np.float32)
    over_focal = depth / np.asarray(focal, np.float32)[:, None, None]
    x = np.arange(width, dtype=np.float32) - width / 2
    y = np.arange(height, dtype=np.float32)[:, None] - height / 2
    return np.stack([x * over_focal, y * over_focal, depth], axis=-1).astype(np.float32)


def _minmax(native: np.ndarray, size: WorkingSize) -> np.ndarray:
    missing = ~np.isfinite(native)
    if missing.all():
        return np.zeros((*size.working, 3), np.float32)
    if missing.any():
        # filled by the nearest known depth, so that the resizing filters do not ring at holes
        nearest = ndimage.distance_transform_edt(
            missing, return_distances=False, return_indices=True
        )
        native = native[tuple(nearest)]
    if native.shape != size.original:
        native = cv2.resize(native, size.original[::-1], interpolation=cv2.INTER_CUBIC)
    pointmap = preprocess.pointmap_to_working(preprocess.normalised_pointmap(native), size)
    if missing.any():
        share = preprocess.depth_to_working(missing.astype(np.float32), size)
        pointmap[share > 0.5] = 0
    return pointmap
