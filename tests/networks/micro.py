"""A network small enough to compile in a second, and frames for it."""

from __future__ import annotations

import functools

import jax
import numpy as np

from align3r_jax.config import NetworkConfig
from align3r_jax.networks import align3r

ALIGN3R = NetworkConfig(
    enc_embed_dim=16, enc_depth=1, enc_num_heads=2, dec_embed_dim=16, dec_depth=6,
    dec_num_heads=2, dpt_layer_dims=(4, 4, 8, 8), dpt_feature_dim=8, dpt_last_dim=4,
    head="linear",
)  # fmt: skip


def noisy(params, seed=0, scale=0.1, only=""):
    """The parameters with noise on those whose path contains `only`: none of them is zero."""
    rng = np.random.default_rng(seed)

    def add(path, leaf):
        if only not in "/".join(key.key for key in path):
            return leaf
        return leaf + scale * rng.standard_normal(leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(add, params)


def parameters(config, seed=0):
    return noisy(align3r.init_params(config, jax.random.key(seed)), seed)


def images(batch=2, height=32, width=48, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (batch, height, width, 3)).astype(np.float32)


def camera_points(batch=2, height=32, width=48, seed=0, scale=1.0):
    """Prior point maps in the camera frame with varied depth."""
    rng = np.random.default_rng(seed)
    depth = scale * rng.uniform(1, 4, (batch, height, width)).astype(np.float32)
    focal = 0.7 * width
    x = (np.arange(width) - width / 2) / focal
    y = (np.arange(height) - height / 2)[:, None] / focal
    return np.stack([x * depth, y * depth, depth], axis=-1).astype(np.float32)


@functools.lru_cache
def _forward(config, landscape_only):
    net = align3r.Align3R(config, precision="highest")

    @jax.jit
    def forward(params, args, options):
        return net.apply({"params": params}, *args, **options, landscape_only=landscape_only)

    return forward


def run(config, params, *args, landscape_only=False, **options):
    """The pair forward pass, compiled once per shapes."""
    return _forward(config, landscape_only)(params, args, options)
