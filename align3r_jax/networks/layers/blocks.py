"""The two transformer blocks of CroCo v2. The residual stream stays float32."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from align3r_jax.networks.layers import attention, rope2d
from align3r_jax.networks.layers.attention import Dtype

NORM_EPSILON = 1e-6


def layer_norm(dtype: Dtype, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm over channels; its statistics are float32 whatever `dtype` it returns."""
    return nn.LayerNorm(epsilon=NORM_EPSILON, dtype=dtype, name=name)


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))) with the exact GELU."""

    ratio: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        channels = tokens.shape[-1]
        hidden = attention.dense(self.ratio * channels, self.dtype, "fc1")(tokens)
        hidden = jax.nn.gelu(hidden, approximate=False)
        return attention.dense(channels, self.dtype, "fc2")(hidden)


class EncoderBlock(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)). Encoder and prior branch."""

    num_heads: int
    mlp_ratio: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, by: rope2d.Rotation) -> jax.Array:
        """tokens: (B, N, C) float32. Returns the same shape, float32."""
        normed = layer_norm(self.dtype, "norm_attention")(tokens)
        tokens = tokens + attention.SelfAttention(self.num_heads, self.dtype, name="attention")(
            normed, by
        )
        normed = layer_norm(self.dtype, "norm_mlp")(tokens)
        return tokens + Mlp(self.mlp_ratio, self.dtype, name="mlp")(normed)


class DecoderBlock(nn.Module):
    """x += attention(norm(x)); x += cross(norm(x), norm(y)); x += mlp(norm(x)).

    y are the other view's tokens as they were before their own block of the same depth.
    """

    num_heads: int
    mlp_ratio: int
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.norm_attention = layer_norm(self.dtype)
        self.attention = attention.SelfAttention(self.num_heads, self.dtype)
        self.norm_cross = layer_norm(self.dtype)
        self.norm_other = layer_norm(self.dtype)
        self.cross_attention = attention.CrossAttention(self.num_heads, self.dtype)
        self.norm_mlp = layer_norm(self.dtype)
        self.mlp = Mlp(self.mlp_ratio, self.dtype)

    def __call__(
        self, tokens: jax.Array, other: jax.Array, by: rope2d.Rotation, by_other: rope2d.Rotation
    ) -> jax.Array:
        """tokens: (B, N, C), other: (B, M, C), float32. Returns (B, N, C) float32."""
        return self.finish(self.begin(tokens, by), other, by, by_other)

    def begin(self, tokens: jax.Array, by: rope2d.Rotation) -> jax.Array:
        """The self-attention, which the other view has no part in."""
        return tokens + self.attention(self.norm_attention(tokens), by)

    def finish(
        self, begun: jax.Array, other: jax.Array, by: rope2d.Rotation, by_other: rope2d.Rotation
    ) -> jax.Array:
        """The rest of the block, from what `begin` gave."""
        normed, other = self.norm_cross(begun), self.norm_other(other)
        tokens = begun + self.cross_attention(normed, other, by, by_other)
        return tokens + self.mlp(self.norm_mlp(tokens))
