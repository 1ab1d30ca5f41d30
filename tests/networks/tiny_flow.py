"""Flow networks small enough for tests, with weights at which flow moves by whole pixels."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from align3r_jax.networks.raft import build
from align3r_jax.networks.raft.config import AnyFlowConfig, RaftConfig, SeaRaftConfig

_SIZES: dict[str, Any] = {
    "widths": (8, 8, 12),
    "blocks": (1, 1, 1),
    "corr_levels": 2,
    "feature_dim": 16,
    "hidden_dim": 8,
    "context_dim": 8,
    "motion_dims": (12, 8, 8, 6, 10),
    "head_dim": 12,
}
CONFIGS: dict[str, AnyFlowConfig] = {
    "raft": RaftConfig(**_SIZES),
    "sea_raft": SeaRaftConfig(**_SIZES, refine_blocks=1, refine_expansion=2),
}


@functools.cache
def params(kind: str) -> dict[str, Any]:
    """Random parameters, norms and gammas included, as NumPy arrays."""
    rng = np.random.default_rng(7)

    def shaken(path: Any, leaf: jax.Array) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return noise * np.float32(1.4 / np.sqrt(np.prod(leaf.shape[:-1])))
        return np.float32(1 if path[-1].key in ("scale", "var") else 0) + np.float32(0.1) * noise

    return jax.tree_util.tree_map_with_path(shaken, build.abstract_params(CONFIGS[kind]))


def images(count: int, height: int, width: int) -> np.ndarray:
    """(count, H, W, 3) uint8, coarse random patterns that differ."""
    rng = np.random.default_rng(count + height)
    coarse = rng.integers(0, 256, (count, -(-height // 4), -(-width // 4), 3))
    return coarse.repeat(4, 1).repeat(4, 2)[:, :height, :width].astype(np.uint8)
