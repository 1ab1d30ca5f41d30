"""Depth of the working size at the size of the original frames, its edges drawn by the picture."""

from __future__ import annotations

import cv2
import numpy as np

from align3r_jax.io import pointcloud
from align3r_jax.structs import WorkingSize

COLOUR_DEVIATION = 0.05  # of the range weight, colours in [0, 1]
DEPTH_DEVIATION = 0.05  # of inverse depth around the median, a share of it
EDGE = pointcloud.PointFilter.edge  # how sharply inverse depth bends where the picture decides
_FLOOR = 1e-3  # where no neighbour has the colour of the pixel, the nearer ones count
_TOGETHER = 1 << 17  # pixels computed together


def working_coordinates(size: WorkingSize) -> tuple[np.ndarray, np.ndarray]:
    """Returns where original columns (W0,) and rows (H0,) lie in pixels of the working size.

    x = (X + 1/2) resized / original - 1/2 - crop, pixel centres at integers, float64.
    """
    rows, columns = (
        (np.arange(size.original[k]) + 0.5) * size.resized[k] / size.original[k]
        - 0.5
        - size.crop[k]
        for k in (0, 1)
    )
    return columns, rows


def upsample_depth(
    depth: np.ndarray, colours: np.ndarray, image: np.ndarray, size: WorkingSize
) -> np.ndarray:
    """q(X) = sum_k w(k) g(k) q(k) / sum_k w(k) g(k), q = 1 / depth, where

        w(k) = B(x - k) exp(-|I(X) - C(k)|^2 / (2 COLOUR_DEVIATION^2))
        g(k) = exp(-(q(k) / m - 1)^2 / (2 DEPTH_DEVIATION^2)), m = median of q(k) weighted by w(k)

    x: where X lies at working size (`working_coordinates`); k: its 4 x 4 neighbours there; B: cubic
    B-spline; C: colours of the frame; I: the original picture. The weights w are those of joint
    bilateral up-sampling (Kopf et al., SIGGRAPH 2007). Their mean alone would put points between
    two surfaces wherever the colours do not decide; the median with these weights (Ma et al.,
    "Constant Time Weighted Median Filtering for Stereo Matching and Beyond", ICCV 2013) chooses
    one, and the mean of what agrees with it is smooth.

    It is used within reach of depth discontinuities alone (the switch of Chan et al., "A
    Noise-Aware Filter for Real-Time Depth Upsampling", 2008, here by `pointcloud.depth_edges`);
    elsewhere inverse depth, which is affine in the pixel on every plane, is bilinear, so that
    texture leaves no relief on smooth surfaces. Both are weighted means: nothing is nearer or
    farther than what it was made of.

    Args:
        depth: (H, W); values that are not positive numbers are missing.
        colours: (H, W, 3) uint8, the frame at working size.
        image: (H0, W0, 3) uint8, the original frame.
        size: how the one became the other.

    Returns:
        (H0, W0) float32; NaN where less than half of the bilinear support is known, and in what
        the crop cut off.
    """
    if size.resized == size.original:  # only cropped: every pixel is there already
        return nearest(np.where(depth > 0, depth, np.float32(np.nan)), size, outside=np.nan)
    columns, rows = working_coordinates(size)
    height, width = depth.shape
    known = np.isfinite(depth) & (depth > 0)
    inverse = np.where(known, 1 / np.where(known, depth, 1), 0).astype(np.float32)
    grid_x, grid_y = (values.astype(np.float32) for values in (columns, rows))
    total, weight = (_bilinear(field, grid_x, grid_y) for field in (inverse, known))
    result = total / np.maximum(weight, 1e-6)
    edges = pointcloud.depth_edges(depth, EDGE) | _beside_unknown(known)
    reach = cv2.dilate(edges.astype(np.uint8), np.ones((3, 3), np.uint8))
    share = _bilinear(reach, grid_x, grid_y)
    y, x = np.nonzero((share > 0) & (weight > 0))
    for k in range(0, len(y), _TOGETHER):
        v, u = y[k : k + _TOGETHER], x[k : k + _TOGETHER]
        guided = _guided(inverse, known, colours, image[v, u], columns[u], rows[v])
        result[v, u] += share[v, u] * (guided - result[v, u])
    inside = (rows >= -0.5) & (rows < height - 0.5)
    inside = inside[:, None] & ((columns >= -0.5) & (columns < width - 0.5))[None]
    valid = inside & (weight >= 0.5)
    # Rounding must not lead out of the range of the depths either.
    far, near = depth.max(where=known, initial=0), depth.min(where=known, initial=np.inf)
    nearness = np.where(valid, result, 1)
    return np.where(valid, np.clip(1 / nearness, near, far), np.nan).astype(np.float32)


def nearest(values: np.ndarray, size: WorkingSize, outside: float | bool = False) -> np.ndarray:
    """Returns (H0, W0, ...): the value of the working pixel that each original pixel lies in.

    values: (H, W, ...). outside: what the crop cut off becomes.
    """
    columns, rows = working_coordinates(size)
    x, y = np.floor(columns + 0.5).astype(int), np.floor(rows + 0.5).astype(int)
    height, width = values.shape[:2]
    result = values[np.clip(y, 0, height - 1)[:, None], np.clip(x, 0, width - 1)[None]]
    beyond = ((y < 0) | (y >= height))[:, None] | ((x < 0) | (x >= width))[None]
    result[beyond] = outside
    return result


def _beside_unknown(known: np.ndarray) -> np.ndarray:
    """Where pixels are missing the outline of what is known is a discontinuity as well."""
    return ~known if known.all() else cv2.dilate((~known).astype(np.uint8), np.ones((3, 3))) > 0


def _bilinear(values: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns (H0, W0) float32: (H, W) between its pixels, the border ones continued."""
    height, width = values.shape
    x, y = np.clip(columns, 0, width - 1), np.clip(rows, 0, height - 1)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[None], (y - y0)[:, None]
    lines = values.astype(np.float32)[:, x0] * (1 - fx) + values[:, x1] * fx
    return (lines[y0] * (1 - fy) + lines[y1] * fy).astype(np.float32)


def _guided(
    inverse: np.ndarray, known: np.ndarray, colours: np.ndarray, wanted: np.ndarray,
    x: np.ndarray, y: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Returns (N,) float32: q of `upsample_depth` at (x, y), of the colours `wanted` (N, 3)."""
    height, width = inverse.shape
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    across, down = _spline(x - left), _spline(y - top)
    target = wanted.astype(np.float32)
    scale = -0.5 / (255 * COLOUR_DEVIATION) ** 2
    values = np.empty((16, len(x)), np.float32)
    weights = np.empty_like(values)
    for k in range(16):
        row = np.clip(top + k // 4 - 1, 0, height - 1)
        column = np.clip(left + k % 4 - 1, 0, width - 1)
        difference = target - colours[row, column]
        alike = np.exp(scale * np.einsum("nc,nc->n", difference, difference)) + _FLOOR
        weights[k] = across[k % 4] * down[k // 4] * alike * known[row, column]
        values[k] = inverse[row, column]
    order = np.argsort(values, axis=0)
    below = np.cumsum(np.take_along_axis(weights, order, 0), axis=0)
    rank = (below < 0.5 * below[-1]).sum(axis=0)
    median = np.take_along_axis(values, np.take_along_axis(order, rank[None], 0), 0)
    near = (values / np.maximum(median, 1e-20) - 1) / DEPTH_DEVIATION
    weights *= np.exp(-0.5 * near**2)
    return (weights * values).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-20)


def _spline(f: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the cubic B-spline at the distances 1 + f, f, 1 - f and 2 - f."""
    f = f.astype(np.float32)
    return (
        (1 - f) ** 3 / 6,
        (3 * f**3 - 6 * f**2 + 4) / 6,
        (-3 * f**3 + 3 * f**2 + 3 * f + 1) / 6,
        f**3 / 6,
    )
