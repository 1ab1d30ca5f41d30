"""A pair predictor that knows the truth and adds noise: what alignment is tested with."""

from __future__ import annotations

import dataclasses

import numpy as np

from align3r_jax.priors.optical_flow import FlowSource
from align3r_jax.structs import DepthPrior, Frames, PairGraph, PairPredictions
from data.procedural.clip import ProceduralClip


@dataclasses.dataclass(frozen=True)
class OracleNoise:
    """Standard deviations. scale: ln of a pair's own scale. field: of a smooth factor on points.

    pixel: of single points, relative to depth. outliers: share of points 15 % too far.
    """

    scale: float = 0.3
    field: float = 0.01
    pixel: float = 0.005
    outliers: float = 0.01


class OraclePredictor:
    """Fills the `Predictor` protocol from the truth of a procedural clip (all frames of it)."""

    name = "oracle"

    def __init__(self, clip: ProceduralClip, noise: OracleNoise = OracleNoise(), seed: int = 0):
        self._clip, self._noise, self._seed = clip, noise, seed

    def prepare(
        self, frames: Frames, prior: DepthPrior | None, flow: FlowSource | None
    ) -> np.ndarray:
        """Returns the true world points (T, H, W, 3); images, prior and flow are not looked at."""
        del frames, prior, flow
        clip = self._clip
        height, width = clip.depth.shape[1:]
        pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
        points = []
        for depth, intrinsics, pose in zip(clip.depth, clip.intrinsics, clip.world_from_cam):
            focal, centre = intrinsics[0, 0], intrinsics[:2, 2]
            rays = np.concatenate([(pixels - centre) / focal, np.ones((height, width, 1))], -1)
            points.append((rays * depth[..., None]) @ pose[:3, :3].T + pose[:3, 3])
        return np.stack(points)

    def predict(self, state: np.ndarray, graph: PairGraph) -> PairPredictions:
        """Returns both frames' points in camera i, each pair with scale and noise of its own."""
        views: tuple[list, list] = ([], [])
        confidences: tuple[list, list] = ([], [])
        for i, j in graph.pairs.tolist():
            rng = np.random.default_rng([self._seed, i, j])
            scale = np.exp(self._noise.scale * rng.standard_normal())
            pose = self._clip.world_from_cam[i]
            for side, frame in enumerate((i, j)):
                points = (state[frame] - pose[:3, 3]) @ pose[:3, :3]
                noisy, confidence = self._disturb(points, rng)
                views[side].append(scale * noisy)
                confidences[side].append(confidence)
        return PairPredictions(
            *(np.asarray(np.stack(v), np.float32) for v in views),
            *(np.asarray(np.stack(c), np.float32) for c in confidences),
        )

    def limits(self, state: np.ndarray) -> tuple[str, ...]:
        """Returns the one thing a reader must know."""
        del state
        return ("Predictor oracle: the truth plus noise, for tests.",)

    def _disturb(
        self, points: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        height, width = points.shape[:2]
        field = 1 + self._noise.field * smooth(rng, height, width)[..., None]
        jitter = 1 + self._noise.pixel * rng.standard_normal((height, width, 1))
        outlier = rng.uniform(size=(height, width)) < self._noise.outliers
        disturbed = points * field * jitter * np.where(outlier, 1.15, 1.0)[..., None]
        confidence = 1 + np.exp(1.2 + 0.5 * smooth(rng, height, width))
        return disturbed, np.where(outlier, 1.05, confidence)


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns standard normals on a 4 x 5 grid, stretched bilinearly to (H, W)."""
    grid = rng.standard_normal((4, 5))
    rows, columns = np.linspace(0, 3, height), np.linspace(0, 4, width)
    along = np.stack([np.interp(columns, np.arange(5), row) for row in grid])
    return np.stack([np.interp(rows, np.arange(4), column) for column in along.T], axis=1)
