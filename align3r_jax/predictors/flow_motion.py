"""What moves by itself: pixels whose flow no static scene explains, whatever their depth."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage

from align3r_jax.predictors import flow_lattice

NOISE_PX = 0.3  # error of trusted flow
_NOISE_SHARE = 0.02  # of the flow's length: drift, lens distortion
_MOVING = 4.0  # score
_CERTAIN = 25.0  # one field alone adds no more
_EDGE_VARIANCE = 1e-3  # of brightness; what varies less is no edge
_BELOW_IMAGE = np.log(1.3)  # how much nearer a thing is whose foot the image cuts off


def motion_score(
    structure: flow_lattice.Structure,
    obs: flow_lattice.Observations,
    variance: np.ndarray | float,
) -> np.ndarray:
    """How surely a pixel moves by itself: (T, P), mean over its fields of the squared distance
    between its flow and that of the static scene, in units of what noise of the flow and the
    uncertainty of its depth (`variance` of log depth) explain; 0 where no flow is trusted."""
    spread = np.broadcast_to(variance, structure.log_rho.shape)
    parts = [_score(structure, obs, spread, part) for part in flow_lattice.blocks(obs)]
    return np.concatenate(parts)


def _score(structure, obs, variance, part):
    rot, shift = (a.astype(np.float32) for a in flow_lattice.relative(structure, obs, part))
    y, q = flow_lattice.project(structure, obs, part)
    weight = obs.weight[part]
    error = q - obs.target[part]
    rho = np.exp(structure.log_rho[part]).astype(np.float32)[:, None, :, None]
    focal = np.float32(structure.focal)
    slope = focal * rho / y[..., 2:] * (shift[:, :, None, :2] - q / focal * shift[:, :, None, 2:])
    motion = flow_lattice.squared_length(obs.target[part] - obs.xy)
    noise = NOISE_PX**2 + _NOISE_SHARE**2 * motion
    spread = variance[part, None].astype(np.float32)
    along = error[..., 0] * slope[..., 0] + error[..., 1] * slope[..., 1]
    squared = flow_lattice.squared_length(error) - spread * along**2 / (
        noise + spread * flow_lattice.squared_length(slope)
    )
    score = np.minimum(squared / noise, _CERTAIN)
    seen = (weight > 0).sum(1)
    return (weight * score).sum(1) / np.maximum(seen, 1)


def still_cells(score: np.ndarray, lattice: tuple[int, int]) -> np.ndarray:
    """(T, P) float32: 0 where something moves by itself, freed of specks and holes; else 1."""
    result = np.empty(score.shape, np.float32)
    for t, frame in enumerate(score):
        smooth = cv2.medianBlur(frame.reshape(lattice).astype(np.float32), 3)
        result[t] = ~ndimage.binary_fill_holes(smooth > _MOVING).ravel()
    return result


def outline(mask: np.ndarray, image: np.ndarray, radius: int) -> np.ndarray:
    """Draws a soft mask towards the edges of its image; flow smears motion over them.

    Guided filter (He, Sun and Tang 2010): within every window of 2 radius + 1 pixels the mask is
    fitted as a m + b of the brightness m. mask: (H, W) float32 in [0, 1]. image: (H, W, 3) uint8.
    Returns (H, W) bool.
    """

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, (2 * radius + 1, 2 * radius + 1))

    guide = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    mask = mask.astype(np.float32)
    middle, share = mean(guide), mean(mask)
    slope = mean(guide * mask) - middle * share
    slope /= mean(guide * guide) - middle * middle + _EDGE_VARIANCE
    return mean(slope) * guide + mean(share - slope * middle) > 0.5


def stand_movers(log_depth: np.ndarray, static: np.ndarray, lattice: tuple[int, int]) -> np.ndarray:
    """Puts what moves where it touches the ground; for use without a prior, (T, P) in and out.

    The flow of a moving thing does not give its depth, and what surrounds it lies mostly behind:
    its depth is that of the static scene along its lower edge, less if it reaches below the image.
    """
    result = log_depth.copy()
    for frame, still in zip(result, static, strict=True):
        grid, moving = frame.reshape(lattice), still.reshape(lattice) == 0
        labels, count = ndimage.label(moving)
        for label in range(1, count + 1):
            part = labels == label
            lowest = np.flatnonzero(part.any(1))[-1]
            height = np.count_nonzero(part.any(1))
            feet = ndimage.binary_dilation(part, iterations=2) & ~moving
            feet[: lowest + 1 - max(1, height // 4)] = False
            if not feet.any():
                continue
            ground = np.quantile(grid[feet], 0.25)
            if lowest == lattice[0] - 1:
                ground -= _BELOW_IMAGE
            grid[part] = np.minimum(grid[part], ground)
    return result
