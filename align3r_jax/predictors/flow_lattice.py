"""What the flow bundle knows and looks for: observations on a lattice, cameras, inverse depth.

A pixel p of frame i lands in frame j at q_ijp = f (y_x, y_y) / y_z with
y = R_j^T (R_i k_p + rho_ip (T_i - T_j)), the ray k_p = (x_p / f, y_p / f, 1), the inverse depth
rho and poses (R, T) world_from_cam. All in NumPy: a clip is solved once, on the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import cv2
import numpy as np

from align3r_jax.priors.optical_flow import FlowSource
from align3r_jax.structs import Frames

OFFSETS = (1, 2, 4, 8, 16)  # frame distances of the flow fields
_CELLS = 64  # along the longer side
_FLAT_GRADIENT = 1.0  # grey levels per pixel; flow of flatter regions is little more than a guess
_BLOCK = 1_000_000  # observations linearised together: bounds the memory of long videos
_FLOW_FRAMES = 32  # frames whose flow fields exist at once
MIN_Z = 1e-3  # of the unit ray; points at or behind the camera count as just before it


@dataclasses.dataclass(frozen=True)
class Observations:
    """Where the lattice pixels of every frame land in other frames.

    neighbour: (T, K) int, the other frame (the frame itself where weight is 0 throughout).
    xy: (P, 2) lattice pixels; target: (T, K, P, 2); both relative to the principal point.
    weight: (T, K, P) >= 0. lattice: (rows, columns) with rows * columns = P.
    """

    neighbour: np.ndarray
    xy: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    lattice: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Structure:
    """Poses, inverse depth and focal length of a clip.

    rotation: (T, 3, 3) and translation: (T, 3), world_from_cam. log_rho: (T, P) log inverse
    depth on the lattice. focal: pixels.
    """

    rotation: np.ndarray
    translation: np.ndarray
    log_rho: np.ndarray
    focal: float


def squared_length(vector: np.ndarray) -> np.ndarray:
    """(..., 2) -> (...); many times faster than a sum over so short an axis."""
    return np.square(vector[..., 0]) + np.square(vector[..., 1])


def hat(vector: np.ndarray) -> np.ndarray:
    """(..., 3) -> (..., 3, 3) with hat(a) b = a x b."""
    x, y, z = np.moveaxis(vector, -1, 0)
    o = np.zeros_like(x)
    return np.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(*vector.shape[:-1], 3, 3)


def exp_rotation(vector: np.ndarray) -> np.ndarray:
    """Rodrigues: (..., 3) rotation vectors -> (..., 3, 3)."""
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    k = hat(vector)
    safe = np.maximum(angle, 1e-12)
    return np.eye(3) + np.sin(safe) / safe * k + (1 - np.cos(safe)) / safe**2 * (k @ k)


def blocks(obs: Observations) -> Iterator[slice]:
    """Yields runs of frames that together hold a bounded number of observations."""
    frames = len(obs.neighbour)
    length = max(1, _BLOCK // max(obs.weight[0].size, 1))
    for first in range(0, frames, length):
        yield slice(first, min(first + length, frames))


def relative(
    structure: Structure, obs: Observations, frames: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Returns Q = R_j^T R_i (T, K, 3, 3) and s = R_j^T (T_i - T_j) (T, K, 3) of every slot.

    frames: the T frames i that are wanted.
    """
    rotation, translation, j = structure.rotation, structure.translation, obs.neighbour[frames]
    back = np.swapaxes(rotation[j], -1, -2)
    shift = (back @ (translation[frames, None] - translation[j])[..., None])[..., 0]
    return back @ rotation[frames, None], shift


def project(
    structure: Structure, obs: Observations, frames: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Returns y (T, K, P, 3), points in camera j times rho, and q (T, K, P, 2), their pixels.

    frames: the T frames i that are wanted.
    """
    q, s = (a.astype(np.float32) for a in relative(structure, obs, frames))
    ray = np.concatenate([obs.xy / structure.focal, np.ones((len(obs.xy), 1))], 1)
    y = ray.astype(np.float32) @ np.swapaxes(q, -1, -2)
    y += np.exp(structure.log_rho[frames]).astype(np.float32)[:, None, :, None] * s[:, :, None]
    y[..., 2] = np.maximum(y[..., 2], MIN_Z)
    return y, np.float32(structure.focal) * y[..., :2] / y[..., 2:]


def residual_norm(structure: Structure, obs: Observations) -> np.ndarray:
    """Returns (T, K, P): pixels between where a point lands and where the flow says."""
    parts = [
        np.sqrt(squared_length(project(structure, obs, part)[1] - obs.target[part]))
        for part in blocks(obs)
    ]
    return np.concatenate(parts)


def sample_flow(frames: Frames, flow: FlowSource) -> tuple[Observations, int]:
    """Flow over several frame distances on a lattice of pixels, and the lattice's stride.

    A run of frames at a time, so that few whole fields exist at once. Weights are those of the
    flow times the texture around the pixel.
    """
    num, height, width = frames.images.shape[:3]
    stride = _stride(height, width)
    rows, columns = np.mgrid[stride // 2 : height : stride, stride // 2 : width : stride]
    xy = np.stack([columns, rows], -1).reshape(-1, 2)
    centred = (xy - np.array([width / 2, height / 2])).astype(np.float32)
    offsets = [offset for offset in OFFSETS if offset < num]
    steps = np.array([step * offset for offset in offsets for step in (1, -1)])
    own = np.arange(num)[:, None]
    inside = (own + steps >= 0) & (own + steps < num)
    neighbour = np.where(inside, own + steps, own)
    weight = np.zeros((*neighbour.shape, len(xy)), np.float32)
    target = np.broadcast_to(centred, (*weight.shape, 2)).copy()
    for first in range(0, num, _FLOW_FRAMES):
        wanted = inside[first : first + _FLOW_FRAMES]
        sources, slots = np.argwhere(wanted).T
        sources = sources + first
        for slot in range(0, len(steps), 2):  # one distance, both directions
            chosen = np.flatnonzero(slots // 2 == slot // 2)
            if not len(chosen):
                continue
            i, k = sources[chosen], slots[chosen]
            fields = flow.directed(frames, np.stack([i, neighbour[i, k]], 1))
            sampled = np.asarray(fields.flow)[:, xy[:, 1], xy[:, 0]]
            target[i, k] += sampled
            weight[i, k] = np.asarray(fields.weight)[:, xy[:, 1], xy[:, 0]]
    for image, own_weight in zip(frames.images, weight):
        own_weight *= _texture(image, stride)[xy[:, 1], xy[:, 0]]
    return Observations(neighbour, centred, target, weight, rows.shape), stride


def _stride(height: int, width: int) -> int:
    return max(2, round(max(height, width) / _CELLS))


def num_cells(height: int, width: int) -> int:
    """Returns how many pixels of a frame the lattice has."""
    stride = _stride(height, width)
    first = stride // 2
    return len(range(first, height, stride)) * len(range(first, width, stride))


def _texture(image: np.ndarray, stride: int) -> np.ndarray:
    """l / (l + g^2) in [0, 1], l the smaller eigenvalue of the structure tensor (Shi and Tomasi
    1994): how well the image around a pixel fixes its flow in both directions. Returns (H, W)."""
    grey = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY).astype(np.float32)
    dx = cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8)
    xx, xy, yy = (cv2.GaussianBlur(a, (0, 0), stride) for a in (dx * dx, dx * dy, dy * dy))
    smaller = (xx + yy) / 2 - np.sqrt(np.square(xx - yy) / 4 + xy * xy)
    return np.maximum(smaller, 0) / (np.maximum(smaller, 0) + _FLAT_GRADIENT**2)


def upsample(
    values: np.ndarray, lattice: tuple[int, int], shape: tuple[int, int], stride: int
) -> np.ndarray:
    """Values of lattice cells -> (H, W), bilinear between the pixels that they were taken from."""
    height, width = shape
    x = (np.arange(width, dtype=np.float32) - stride // 2) / stride
    y = (np.arange(height, dtype=np.float32) - stride // 2) / stride
    grid = np.asarray(values, np.float32).reshape(lattice)
    x, y = np.meshgrid(x, y)
    return cv2.remap(grid, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
