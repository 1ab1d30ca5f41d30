"""Depth Anything V2: one image -> relative inverse depth, or (metric models) depth in metres.

A DINOv2 encoder, four of whose blocks feed a DPT head. Yang et al., "Depth Anything V2", 2024;
Ranftl et al., "Vision Transformers for Dense Prediction", 2021.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.errors import UserError
from align3r_jax.networks import dinov2, initial
from align3r_jax.networks.layers import attention, dpt, resize
from align3r_jax.networks.layers.attention import Dtype


@dataclasses.dataclass(frozen=True)
class DepthAnythingConfig:
    """Encoder, head and meaning of the output; the defaults are Small, relative.

    hooks: blocks (from 0) whose outputs the head reads. layer_dims, feature_dim, last_dim: widths
    of the four reassembled maps, of the fusion, and before the last layer. max_depth: metres that
    the metric models' sigmoid reaches (20 indoor, 80 outdoor); None: relative inverse depth.
    pos_embed_mode: see `dinov2.DinoV2Config`; Align3R's priors were made with "offset".
    """

    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: int = 4
    patch_size: int = 14
    grid: int = 37
    pos_embed_mode: Literal["offset", "size"] = "offset"
    hooks: tuple[int, int, int, int] = (2, 5, 8, 11)
    layer_dims: tuple[int, int, int, int] = (48, 96, 192, 384)
    feature_dim: int = 64
    last_dim: int = 32
    max_depth: float | None = None

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.embed_dim % self.num_heads:
            raise UserError(
                f"embed_dim={self.embed_dim} does not divide into num_heads={self.num_heads}; "
                "change one of the two."
            )
        if len(self.hooks) != 4 or not all(0 <= hook < self.depth for hook in self.hooks):
            raise UserError(
                f"hooks={self.hooks}: expected four blocks from 0 to {self.depth - 1}, for "
                f"{self.depth} blocks."
            )
        if self.max_depth is not None and not 0 < self.max_depth < float("inf"):
            raise UserError(f"max_depth={self.max_depth}: expected a positive number of metres.")

    @property
    def encoder(self) -> dinov2.DinoV2Config:
        """Settings of the image encoder."""
        return dinov2.DinoV2Config(
            embed_dim=self.embed_dim,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            patch_size=self.patch_size,
            grid=self.grid,
            pos_embed_mode=self.pos_embed_mode,
        )


_SIZES: dict[str, DepthAnythingConfig] = {
    "small": DepthAnythingConfig(),
    "base": DepthAnythingConfig(
        embed_dim=768, num_heads=12, layer_dims=(96, 192, 384, 768), feature_dim=128
    ),
    "large": DepthAnythingConfig(
        embed_dim=1024, depth=24, num_heads=16, hooks=(4, 11, 17, 23),
        layer_dims=(256, 512, 1024, 1024), feature_dim=256,
    ),
}  # fmt: skip

INDOOR_DEPTH, OUTDOOR_DEPTH = 20.0, 80.0  # metres: trained on Hypersim, on Virtual KITTI

DEPTH_ANYTHING_PRESETS: dict[str, DepthAnythingConfig] = {
    f"depth_anything_v2_{domain}{size}": dataclasses.replace(config, max_depth=max_depth)
    for domain, max_depth in (
        ("", None),
        ("metric_indoor_", INDOOR_DEPTH),
        ("metric_outdoor_", OUTDOOR_DEPTH),
    )
    for size, config in _SIZES.items()
}


@struct.dataclass
class DepthAnythingOutput:
    """depth: (B, H, W) float32: inverse depth >= 0 up to scale and shift, or metres.

    logits: (B, H, W) float32, before the last activation. intermediates: by name, if asked for:
    embedded, block_i, norm_i (tokens with the class token, i the number of the block), and maps
    reassemble_k, layer_k, path_k (k = 1 the finest), output_1.
    """

    depth: jax.Array
    logits: jax.Array
    intermediates: dict[str, jax.Array] | None = None


class DepthAnythingHead(nn.Module):
    """The DPT head: tokens of four blocks, without the class token -> a map of every pixel."""

    config: DepthAnythingConfig

    @nn.compact
    def __call__(
        self, tokens: list[jax.Array], grid: tuple[int, int]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """tokens: four of (B, h w, C); grid: (h, w).

        Returns logits (B, patch h, patch w) and the intermediates.
        """
        config = self.config
        named: dict[str, jax.Array] = {}
        maps = []
        for level, (features, dim) in enumerate(zip(tokens, config.layer_dims)):
            features = features.reshape(features.shape[0], *grid, features.shape[-1])
            features = dpt.Conv(dim, name=f"project_{level + 1}")(features)
            if level < 2:
                features = dpt.Enlarge(4 >> level, name=f"resize_{level + 1}")(features)
            elif level == 3:
                features = dpt.Conv(dim, 3, stride=2, name="resize_4")(features)
            named[f"reassemble_{level + 1}"] = features
            layer = dpt.Conv(config.feature_dim, 3, use_bias=False, name=f"layer_{level + 1}")
            maps.append(layer(features))
            named[f"layer_{level + 1}"] = maps[-1]

        rows, columns = maps[0].shape[1:3]
        targets = [(2 * rows, 2 * columns)]
        targets += [(features.shape[1], features.shape[2]) for features in maps[:3]]
        fused = dpt.Fusion(name="fusion_4")(maps[3], shape=targets[3])
        named["path_4"] = fused
        for level in (2, 1, 0):
            fusion = dpt.Fusion(name=f"fusion_{level + 1}")
            fused = fusion(fused, maps[level], targets[level])
            named[f"path_{level + 1}"] = fused

        out = dpt.Conv(config.feature_dim // 2, 3, name="output_1")(fused)
        named["output_1"] = out
        shape = (config.patch_size * grid[0], config.patch_size * grid[1])
        out = resize.bilinear(out, shape, align_corners=True)
        out = jax.nn.relu(dpt.Conv(config.last_dim, 3, name="output_2")(out))
        return dpt.Conv(1, name="output_3")(out)[..., 0].astype(jnp.float32), named


class DepthAnything(nn.Module):
    """The network of `config`.

    dtype: what the matrix products of the encoder compute in. head_dtype: of the head, None = the
    same; with bfloat16 in both the error is three times that of the encoder alone. precision: of
    float32 products on accelerators ("highest" for parity), None = the default in force.
    """

    config: DepthAnythingConfig
    dtype: Dtype = jnp.float32
    head_dtype: Dtype | None = jnp.float32
    precision: str | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, *, return_intermediates: bool = False
    ) -> DepthAnythingOutput:
        """images: (B, H, W, 3) float, normalised by `priors.depth_anything`; sides multiples of 14.

        Raises UserError if the sides are no multiples of the patch size.
        """
        config = self.config
        # parity: a token of DINOv2's training that nothing reads, kept for round trips.
        self.param("mask_token", nn.initializers.zeros_init(), (1, config.embed_dim))
        encoder = dinov2.DinoV2(config.encoder, self.dtype, self.precision, name="encoder")
        encoded = encoder(images, config.hooks)
        tokens = [
            hook[:, 1:].astype(self.head_dtype or self.dtype) for hook in encoded.normed_hooks
        ]
        with attention.precision_context(self.precision):
            logits, named = DepthAnythingHead(config, name="head")(tokens, encoded.grid)
        if config.max_depth is None:
            depth = jax.nn.relu(logits)
        else:
            depth = jax.nn.sigmoid(logits) * config.max_depth
        named["embedded"] = encoded.embedded
        for block, raw, normed in zip(config.hooks, encoded.hooks, encoded.normed_hooks):
            named |= {f"block_{block}": raw, f"norm_{block}": normed}
        return DepthAnythingOutput(depth, logits, named if return_intermediates else None)


@functools.lru_cache(maxsize=16)
def _shapes(config: DepthAnythingConfig) -> Any:
    side = 2 * config.patch_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(DepthAnything(config).init, jax.random.key(0), image)["params"]


def abstract_params(config: DepthAnythingConfig) -> dict[str, Any]:
    """The parameter tree as shapes and types, without memory."""
    return jax.tree.map(lambda leaf: leaf, _shapes(config))


def init_params(config: DepthAnythingConfig, key: jax.Array) -> dict[str, Any]:
    """Parameters to train from scratch, by the rules of `networks.initial`."""
    rules = (
        (r"mask_token", "0"),
        *initial.encoder_rules("encoder"),
        (r".*", "fan_in"),
    )
    return initial.draw(_shapes(config), rules, key)


def parameter_count(config: DepthAnythingConfig) -> int:
    """How many numbers the network holds, the mask token and an idle unit of the head included."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
