"""The two programs of the pairwise network as pure functions: encode frames, decode pairs.

Made from settings alone, without weights: `NetworkPredictor` compiles them, and they can be lowered
from shapes, exported, or counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from align3r_jax.config import NetworkConfig
from align3r_jax.networks import align3r
from align3r_jax.networks.align3r import FrameFeatures
from align3r_jax.structs import PairPredictions

EncodeProgram = Callable[[Any, jax.Array, jax.Array | None, jax.Array | None], FrameFeatures]
DecodeProgram = Callable[[Any, FrameFeatures, FrameFeatures], PairPredictions]


def encode_program(
    config: NetworkConfig, compute_dtype: str = "float32", precision: str | None = None
) -> EncodeProgram:
    """Returns f(params, images, prior_maps, has_prior) -> features of B frames.

    images: (B, H, W, 3) uint8. prior_maps: (B, H, W, 3) float32 or None, has_prior: (B,) bool or
    None, as `Align3R.encode_frames` reads them. compute_dtype: of the matrix products.
    precision: of float32 products on accelerators, None = the default.
    """
    module = align3r.Align3R(config, jnp.dtype(compute_dtype), precision)

    def encode(
        params: Any, images: jax.Array, prior_maps: jax.Array | None, has_prior: jax.Array | None
    ) -> FrameFeatures:
        images = (images.astype(jnp.float32) / 255 - 0.5) / 0.5
        features: Any = module.apply(
            {"params": params}, images, prior_maps, has_prior, method="encode_frames"
        )
        return features

    return encode


def decode_program(
    config: NetworkConfig, compute_dtype: str = "float32", precision: str | None = None
) -> DecodeProgram:
    """Returns f(params, first, second) -> predictions of B ordered pairs; see `encode_program`."""
    module = align3r.Align3R(config, jnp.dtype(compute_dtype), precision)

    def decode(params: Any, first: FrameFeatures, second: FrameFeatures) -> PairPredictions:
        pair: Any = module.apply({"params": params}, first, second, method="decode_pairs")
        return PairPredictions(pair.pointmap1, pair.pointmap2, pair.confidence1, pair.confidence2)

    return decode
