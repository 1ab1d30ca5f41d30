"""Depth from the disparity of rendered stereo sets: z = fx * baseline / disparity."""

from __future__ import annotations

import numpy as np

SPRING_BASELINE = 0.065  # metres
_FAR_DISPARITY = 1e-3  # pixels; what the reference implementations put where there is none


def sceneflow_depth(disparity: np.ndarray, fx: float, *, far: bool = False) -> np.ndarray:
    """z = fx / disparity, (H, W) float32 Blender units (the baseline is 1), 0 where unknown.

    disparity: pixels; NaN, infinite or not positive is unknown. far: unknown becomes
    1000 fx instead, which the processed folders hold.
    """
    values = np.asarray(disparity, np.float32)
    with np.errstate(invalid="ignore"):
        known = np.isfinite(values) & (values > 0)
    filled = np.where(known, values, np.float32(_FAR_DISPARITY))
    depth = np.float32(fx) / filled
    return depth if far else np.where(known, depth, np.float32(0))


def spring_depth(
    disparity: np.ndarray, fx: float, *, missing: float = 0.0, reference: bool = False
) -> np.ndarray:
    """z = 0.065 fx / disparity[::2, ::2], (H, W) float32 metres, `missing` at the sky.

    disparity: (2 H, 2 W) in pixels of the (H, W) image, NaN at the sky. reference: without the
    baseline and 1000 fx at the sky.
    # parity: Align3R's preparation forgets the baseline, so its depth is 15.4 times too large.
    """
    values = np.asarray(disparity, np.float32)[::2, ::2]
    if reference:
        return sceneflow_depth(values, fx, far=True)
    depth = sceneflow_depth(values, fx * SPRING_BASELINE)
    return np.where(depth > 0, depth, np.float32(missing))
