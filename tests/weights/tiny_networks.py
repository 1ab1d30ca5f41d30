"""Every kind of network in miniature, with deterministic random weights under official names."""

from __future__ import annotations

import collections
import functools
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import numpy as safetensors_numpy

from align3r_jax.networks.depth_anything import DepthAnythingConfig
from align3r_jax.networks.depth_pro import DepthProConfig
from align3r_jax.networks.raft.config import RaftConfig, SeaRaftConfig
from align3r_jax.weights import kinds
from tests.weights import torch_writer

# Heads of 64 channels and known numbers of blocks, so that shapes tell everything.
_FLOW = {"feature_dim": 32, "hidden_dim": 16, "context_dim": 16,
         "motion_dims": (16, 16, 16, 8, 16), "head_dim": 16}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "depth_anything": DepthAnythingConfig(
        embed_dim=64, num_heads=1, mlp_ratio=1, grid=4, layer_dims=(8, 8, 8, 8), feature_dim=8,
        last_dim=4,
    ),
    "depth_pro": DepthProConfig(
        embed_dim=64, depth=4, num_heads=1, mlp_ratio=1, patch_size=8, window=64,
        latent_blocks=(0, 1), dims=(8, 8, 8, 8), decoder_dim=8, last_dim=4,
    ),
    "raft": RaftConfig(widths=(8, 12, 16), **_FLOW),
    "sea_raft": SeaRaftConfig(widths=(8, 12, 16), blocks=(1, 1, 1), **_FLOW),
}  # fmt: skip


@functools.cache
def params(kind: str, seed: int = 0) -> dict[str, Any]:
    """Random parameters; norms near the identity, depth positive and not constant."""
    shapes = traverse_util.flatten_dict(
        kinds.get(kind).network_module.abstract_params(CONFIGS[kind]), sep="/"
    )
    rng = np.random.default_rng(seed)
    flat = {}
    for path, leaf in shapes.items():
        values = rng.normal(0, 0.1, leaf.shape)
        if leaf.ndim >= 2:
            values = rng.normal(0, 1 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape)
        if path.split("/")[-1] in ("scale", "var"):
            values = 1 + 0.1 * np.abs(values)
        flat[path] = values.astype(np.float32)
    for path in flat:
        if kind == "depth_anything" and path == "head/output_3/bias":
            flat[path][:] = 2.0
        if kind == "depth_pro" and path.startswith("head/") and flat[path].shape == (1,):
            flat[path][:] = 2.0
        if kind == "depth_pro" and path.startswith("fov/") and flat[path].shape == (1,):
            flat[path][:] = 60.0  # degrees
    return traverse_util.unflatten_dict(flat, sep="/")


def state(kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The same under official names."""
    return kinds.get(kind).table_module.export_state(params(kind, seed), CONFIGS[kind])


def write_pth(path: Path, kind: str, prefix: str = "") -> Path:
    """A bare state dict as `torch.save` writes it."""
    named = {prefix + name: array for name, array in state(kind).items()}
    return torch_writer.write_zip(path, collections.OrderedDict(named))


def write_safetensors(path: Path, kind: str) -> Path:
    safetensors_numpy.save_file(state(kind), path, metadata={"format": "pt"})
    return path
