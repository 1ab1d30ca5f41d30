"""What any file of cameras says, whatever its format; `cameras.read_cameras` reads them all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from align3r_jax.errors import UserError

# A shift of the image corners up to here is what a calibration itself is unsure of.
NEGLIGIBLE_SHIFT = 1e-3  # of the long side


@dataclasses.dataclass(frozen=True)
class CameraFile:
    """N cameras in the conventions of this project; NaN where the file says nothing.

    format: the name of the format. names: N names of pictures; times: (N,) seconds; indices: (N,)
    positions in the source; at most one of the three says which frame a camera belongs to. None of
    them: one camera for every frame (`everywhere`), or cameras in the order of the frames.
    intrinsics: (N, 3, 3) pixels of images of `image_sizes`, pixel centres at integers.
    image_sizes: (N, 2) height and width, NaN where the file does not say. world_from_cam:
    (N, 4, 4), x right, y down, z forward. notes: what a reader of the result should know.
    """

    format: str
    names: tuple[str, ...] | None = None
    times: np.ndarray | None = None
    indices: np.ndarray | None = None
    everywhere: bool = False
    intrinsics: np.ndarray | None = None
    image_sizes: np.ndarray | None = None
    world_from_cam: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """N."""
        arrays = (self.intrinsics, self.world_from_cam)
        return next((len(array) for array in arrays if array is not None), 0)


def matrix(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """Returns K (3, 3) from values whose principal point counts from the image's outer corner.

    COLMAP, nerfstudio and OpenGL put the centre of the first pixel at (1/2, 1/2); here it is at
    (0, 0), so c loses half a pixel.
    """
    return np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]], np.float64)


def check_pinhole(intrinsics: np.ndarray, where: str) -> np.ndarray:
    """Returns intrinsics (..., 3, 3). Raises UserError unless they are those of a pinhole."""
    good = np.isfinite(intrinsics).all((-2, -1)) & (intrinsics[..., 0, 0] > 0)
    good &= (intrinsics[..., 1, 1] > 0) & (intrinsics[..., 2, :] == [0, 0, 1]).all(-1)
    good &= (intrinsics[..., 0, 1] == 0) & (intrinsics[..., 1, 0] == 0)
    if not np.all(good):
        raise UserError(
            f"{where}: intrinsics must be [[fx 0 cx] [0 fy cy] [0 0 1]] with positive focals, got "
            f"{np.asarray(intrinsics).reshape(-1, 9)[np.argmin(good)].round(3).tolist()}."
        )
    return intrinsics


def distortion_shift(
    coefficients: Mapping[str, float], fx: float, fy: float, cx: float, cy: float,
    height: float, width: float,
) -> float:  # fmt: skip
    """Returns by how many pixels lens distortion moves the image corner it moves most.

    coefficients: k1, k2, k3 radial and p1, p2 tangential of the model of Brown and Conrady;
    missing ones are 0.
    """
    value = {name: float(coefficients.get(name, 0) or 0) for name in ("k1", "k2", "k3", "p1", "p2")}
    worst = 0.0
    for u, v in ((0, 0), (width, 0), (0, height), (width, height)):
        x, y = (u - cx) / fx, (v - cy) / fy
        square = x * x + y * y
        radial = square * (value["k1"] + square * (value["k2"] + square * value["k3"]))
        dx = x * radial + 2 * value["p1"] * x * y + value["p2"] * (square + 2 * x * x)
        dy = y * radial + value["p1"] * (square + 2 * y * y) + 2 * value["p2"] * x * y
        worst = max(worst, math.hypot(fx * dx, fy * dy))
    return worst


def distortion_note(shift: float, height: float, width: float, camera: str) -> tuple[str, ...]:
    """Returns a sentence if the shift matters, else nothing."""
    if shift <= NEGLIGIBLE_SHIFT * max(height, width):
        return ()
    return (
        f"{camera} has lens distortion that moves the image corners by {shift:.1f} pixels; cameras "
        "here are pinholes, so depth and poses bend towards the corners. Undistort the video.",
    )
