"""The two programs of the pairwise network as pure functions: encode frames, decode pairs.

Made from settings alone, without weights: `NetworkPredictor` compiles them, and they can be lowered
from shapes, exported, or counted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from align3r_jax.config import NetworkConfig
from align3r_jax.networks import align3r
from align3r_jax.networks.frame_features import FrameFeatures, Reuse
from align3r_jax.structs import PairPredictions

EncodeProgram = Callable[[Any, jax.Array, jax.Array | None, jax.Array | None], FrameFeatures]
DecodeProgram = Callable[[Any, FrameFeatures, FrameFeatures], PairPredictions]


def batch_size(pair_batch: int) -> int:
    """Returns how many frames are encoded, and pairs decoded, together; pair_batch: 0 = by device.

    One at a time is a quarter faster on CPUs, whose caches then hold a network's activations.
    """
    return pair_batch or (1 if jax.default_backend() == "cpu" else 4)


@functools.lru_cache(maxsize=16)  # one function for all videos, so that jax.jit knows it again
def encode_program(
    config: NetworkConfig,
    compute_dtype: str = "float32",
    precision: str | None = None,
    reuse: Reuse = "tokens",
) -> EncodeProgram:
    """Returns f(params, images, prior_maps, has_prior) -> features of B frames.

    images: (B, H, W, 3) uint8. prior_maps: (B, H, W, 3) float32 or None, has_prior: (B,) bool or
    None, as `Align3R.encode_frames` reads them. compute_dtype: of the matrix products.
    precision: of float32 products on accelerators, None = the default. reuse: how much is computed
    here rather than in every pair.
    """
    module = align3r.Align3R(config, jnp.dtype(compute_dtype), precision)

    def encode(
        params: Any, images: jax.Array, prior_maps: jax.Array | None, has_prior: jax.Array | None
    ) -> FrameFeatures:
        images = (images.astype(jnp.float32) / 255 - 0.5) / 0.5
        features: Any = module.apply(
            {"params": params}, images, prior_maps, has_prior, reuse=reuse, method="encode_frames"
        )
        return features

    return encode


@functools.lru_cache(maxsize=16)
def decode_program(
    config: NetworkConfig,
    compute_dtype: str = "float32",
    precision: str | None = None,
    head_form: str = "auto",
) -> DecodeProgram:
    """Returns f(params, first, second) -> predictions of B ordered pairs; see `encode_program`.

    first, second: features of the two views, with all that was computed once or `as_view` 1 and 2.
    head_form: see `layers.dpt.Dpt`.
    """
    module = align3r.Align3R(config, jnp.dtype(compute_dtype), precision, head_form=head_form)

    def decode(params: Any, first: FrameFeatures, second: FrameFeatures) -> PairPredictions:
        pair: Any = module.apply({"params": params}, first, second, method="decode_pairs")
        return PairPredictions(pair.pointmap1, pair.pointmap2, pair.confidence1, pair.confidence2)

    return decode


def stored_weights(params: Any, compute_dtype: str) -> Any:
    """Returns the parameters as the device keeps them: matrices in the type they are used in.

    With 16 bits half the memory and the same bits as a cast at every use: encoder, prior branch and
    decoders cast their linear layers anyway. Norms and heads compute in float32 and stay.
    """
    dtype = jnp.dtype(compute_dtype)

    def keep(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        names = [key.key for key in path]
        exact = any("norm" in name for name in names) or names[0].startswith("head")
        return jnp.asarray(leaf) if exact else jnp.asarray(leaf, dtype)

    return jax.tree_util.tree_map_with_path(keep, params)
