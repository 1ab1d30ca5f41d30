"""CroCo's network of masked pre-training: one view is completed with the help of another.

Encoder and decoder are those of `networks.croco`, under the paths that `networks.align3r` gives
them, so that what was learnt here starts a pairwise network (`training.initialise`). Source:
CroCo (Weinzaepfel et al. 2022) and CroCo v2 (2023).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align3r_jax.config import NetworkConfig
from align3r_jax.networks import croco, initial
from align3r_jax.networks.layers import attention, blocks, patch_embed, rope2d
from align3r_jax.networks.layers.attention import Dtype


class CroCo(nn.Module):
    """Visible patches of view 1 and all of view 2 -> the pixels of every patch of view 1.

    Of `config` only encoder, decoder and patch size count. dtype and remat as in
    `align3r.Align3R`; residual stream and prediction head are float32.
    """

    config: NetworkConfig
    dtype: Dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        config = self.config
        common: dict[str, Any] = {
            "mlp_ratio": config.mlp_ratio,
            "dtype": self.dtype,
            "remat": self.remat,
        }
        self.encoder = croco.Encoder(
            config.enc_embed_dim,
            config.enc_depth,
            config.enc_num_heads,
            patch=config.patch_size,
            rope_base=config.rope_base,
            **common,
        )
        self.decoder_embed = attention.dense(config.dec_embed_dim, self.dtype)
        self.decoder1 = croco.DecoderStack(config.dec_depth, config.dec_num_heads, **common)
        self.decoder_norm = blocks.layer_norm(jnp.float32)
        self.prediction_head = attention.dense(3 * config.patch_size**2, jnp.float32)
        self.mask_token = self.param(
            "mask_token", nn.initializers.normal(0.02), (1, 1, config.dec_embed_dim)
        )

    def __call__(self, images1: jax.Array, images2: jax.Array, visible: jax.Array) -> jax.Array:
        """images1, images2: (B, H, W, 3); visible: (B, V) int32, the patches of view 1 to encode.

        Returns (B, N, patch * patch * 3) float32, pixels as `patch_embed.patchify` orders them.
        """
        config = self.config
        batch, height, width, _ = images1.shape
        grid = (height // config.patch_size, width // config.patch_size)
        positions = patch_embed.positions(batch, grid, None)
        seen, _ = self.encoder(images1, positions, visible=visible)
        other, _ = self.encoder(images2, positions)
        seen, other = (self.decoder_embed(x).astype(jnp.float32) for x in (seen, other))

        masked = jnp.broadcast_to(self.mask_token, (batch, grid[0] * grid[1], seen.shape[-1]))
        tokens = jax.vmap(lambda row, index, known: row.at[index].set(known))(masked, visible, seen)
        by = rope2d.rotation(
            positions, config.dec_embed_dim // config.dec_num_heads, config.rope_base
        )
        for index in range(config.dec_depth):
            tokens = self.decoder1(index, tokens, other, by, by)
        return self.prediction_head(self.decoder_norm(tokens))


def abstract_params(config: NetworkConfig) -> dict[str, Any]:
    """The parameter tree as shapes and types, without memory."""
    image = jax.ShapeDtypeStruct((1, config.patch_size, config.patch_size, 3), jnp.float32)
    visible = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    init = CroCo(config).init
    return jax.eval_shape(init, jax.random.key(0), image, image, visible)["params"]


def init_params(config: NetworkConfig, key: jax.Array) -> dict[str, Any]:
    """Parameters to train from scratch, by the rules of `networks.initial`."""
    return initial.fill(abstract_params(config), config, key)
