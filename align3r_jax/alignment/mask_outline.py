"""Motion masks drawn to the edges of their images, on the host.

Optical flow is smooth: what moves drags the flow of its surroundings along, so that masks found
from flow are blobs around the moving things. The image knows where a thing ends.
"""

from __future__ import annotations

import cv2
import numpy as np

_BAND = 1 / 32  # of the long side; masks grow by this much at most
_ITERATIONS = 1  # more changed nothing on rendered clips
_LEAST_PIXELS = 20  # of either colour model
_LEAST_KEPT = 0.2  # of the mask; a cut that leaves less has found no edge to hold on to


def to_image_edges(
    masks: np.ndarray, images: np.ndarray, given: np.ndarray | None = None
) -> np.ndarray:
    """Moves the outline of each mask to the edges of its image (GrabCut, Rother et al. 2004).

    Colours of inside and outside are modelled by two mixtures of Gaussians; a minimum cut labels
    the mask and a band around it anew, so that neighbours of like colour agree. Pixels beyond
    the band stay static. Masks that the cut nearly empties stay as they were.

    Args:
        masks: (T, H, W) bool, True where something moves.
        images: (T, H, W, 3) uint8 RGB.
        given: (T, H, W) float, masks of the user, which are kept; NaN where there are none.

    Returns:
        (T, H, W) bool.
    """
    masks = np.asarray(masks, bool)
    found = np.stack([_cut(mask, image) for mask, image in zip(masks, images, strict=True)])
    if given is None:
        return found
    return np.where(np.isnan(given), found, masks)


def _cut(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    near = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3) < _band(mask.shape)
    inside = np.count_nonzero(mask)
    if inside < _LEAST_PIXELS or mask.size - inside < _LEAST_PIXELS:
        return mask
    labels = np.where(near, cv2.GC_PR_BGD, cv2.GC_BGD).astype(np.uint8)
    labels[mask] = cv2.GC_PR_FGD
    inner, outer = np.zeros((2, 1, 65))
    rectangle = (0, 0, 0, 0)  # the labels take its place
    cv2.setRNGSeed(0)  # the mixtures start from random clusters
    cv2.grabCut(np.ascontiguousarray(image), labels, rectangle, inner, outer, _ITERATIONS,
                cv2.GC_INIT_WITH_MASK)  # fmt: skip
    cut = (labels == cv2.GC_PR_FGD) | (labels == cv2.GC_FGD)
    return cut if np.count_nonzero(cut) >= _LEAST_KEPT * inside else mask


def _band(shape: tuple[int, ...]) -> float:
    return max(2.0, _BAND * max(shape))
