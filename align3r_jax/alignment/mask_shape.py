"""The shape of motion masks: votes snap to depth edges, spots are removed, holes are closed.

Traceable, on all frames at once, so that masks can be renewed inside a compiled alignment.
"""

from __future__ import annotations

import cv2
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_SNAP_RADIUS = 1 / 32  # of the long side; boundaries move to depth edges this near
_SNAP_EPSILON = 5e-4  # variance of ln depth that counts as an edge
_MIN_AREA = 2e-3  # of the image: smaller spots are noise


def snap(votes: Array, trust: Array, depth: Array) -> Array:
    """Smooths votes (T, H, W) except across edges of ln depth: guided filter (He et al. 2013).

    In every window the votes are fitted by a ln depth + b, each pixel weighing its trust, and
    each pixel gets the mean of the fits of all windows over it. Untrusted pixels are filled in.
    """
    log_depth = jnp.log(jnp.maximum(depth, 1e-6))
    guide = log_depth - jnp.median(log_depth, axis=(1, 2), keepdims=True)
    weight = jnp.minimum(trust, 4) + 1e-3
    radius = max(1, round(_SNAP_RADIUS * max(votes.shape[1:])))
    rows, columns = (_band(size, radius) for size in votes.shape[1:])

    def window_sum(values):
        values = jnp.einsum("hg,tgw->thw", rows, values, precision="highest")
        return jnp.einsum("thw,wv->thv", values, columns, precision="highest")

    total = window_sum(weight)
    mean_guide = window_sum(weight * guide) / total
    mean_votes = window_sum(weight * votes) / total
    covariance = window_sum(weight * guide * votes) / total - mean_guide * mean_votes
    variance = window_sum(weight * guide * guide) / total - mean_guide**2
    slope = covariance / (jnp.maximum(variance, 0) + _SNAP_EPSILON)
    offset = mean_votes - slope * mean_guide
    return (window_sum(total * slope) * guide + window_sum(total * offset)) / window_sum(total)


def clean(masks: Array) -> Array:
    """Returns masks (T, H, W) bool without thin lines and spots, gaps and holes closed."""
    height, width = masks.shape[1:]
    radius = max(1, round(max(height, width) / 200))
    masks = _dilate(_erode(masks, radius), radius)
    for grow in (_dilate, _dilate, _erode, _erode):
        masks = grow(masks, radius)
    min_area = max(4, _MIN_AREA * height * width)
    masks = without_small(masks, min_area)
    # A hole is a small component of what is left.
    return ~without_small(~masks, 4 * min_area)


def without_small(masks: Array, min_area: float) -> Array:
    """Returns masks (T, H, W) bool without the 4-connected components below `min_area` pixels.

    Components by hooking and shortcutting of parent pointers (Zhang, Azad and Hu 2020, FastSV):
    a number of rounds logarithmic in the length of the longest component.
    """
    labels = jnp.arange(masks.size, dtype=jnp.int32).reshape(masks.shape)

    def largest_neighbour(values):
        padded = jnp.pad(jnp.where(masks, values, -1), ((0, 0), (1, 1), (1, 1)), constant_values=-1)
        sides = (
            padded[:, :-2, 1:-1],
            padded[:, 2:, 1:-1],
            padded[:, 1:-1, :-2],
            padded[:, 1:-1, 2:],
        )
        return jnp.where(masks, jnp.maximum(values, jnp.stack(sides).max(axis=0)), values)

    def round_of(state):
        parent, _ = state
        best = largest_neighbour(parent.reshape(-1)[parent])
        hooked = parent.reshape(-1).at[parent.reshape(-1)].max(best.reshape(-1))
        hooked = jnp.maximum(hooked, best.reshape(-1))
        shortcut = hooked[hooked].reshape(parent.shape)
        return shortcut, jnp.any(shortcut != parent)

    parent, _ = jax.lax.while_loop(lambda state: state[1], round_of, (labels, jnp.array(True)))
    area = jnp.zeros(masks.size, jnp.int32).at[parent.reshape(-1)].add(1)
    return masks & (area[parent] >= min_area)


def _band(size: int, radius: int) -> np.ndarray:
    """Returns the 0/1 matrix (size, size) that sums over windows of 2 radius + 1."""
    position = np.arange(size)
    return (np.abs(position[:, None] - position) <= radius).astype(np.float32)


def _dilate(masks: Array, radius: int) -> Array:
    """Returns where any pixel of a disc is set; beyond the border nothing is."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    height, width = masks.shape[1:]
    padded = jnp.pad(masks, ((0, 0), (radius, radius), (radius, radius)))
    grown = masks
    for top, left in np.argwhere(disc):
        grown = grown | padded[:, top : top + height, left : left + width]
    return grown


def _erode(masks: Array, radius: int) -> Array:
    """Returns where all pixels of a disc are set; beyond the border all are."""
    return ~_dilate(~masks, radius)
