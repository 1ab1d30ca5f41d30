"""Attention within one view and from one view to the other, with or without rotary positions."""

from __future__ import annotations

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align3r_jax.networks.layers import rope2d

Dtype = Any


def precision_context(precision: str | None) -> contextlib.AbstractContextManager:
    """A context in which float32 products have this precision; None keeps the one in force."""
    return (
        contextlib.nullcontext() if precision is None else jax.default_matmul_precision(precision)
    )


def dense(features: int, dtype: Dtype, name: str | None = None) -> nn.Dense:
    """A linear layer. Layers declare zeros; `networks.initial` gives the values to start from."""
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.zeros_init(), name=name)


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(query key^T / sqrt(d)) value, all (B, heads, N, d); the softmax is float32.

    cuDNN's fused kernel where `has_fused_kernel` says so. Else two products: heads stand before
    tokens because XLA then needs no transposition inside them (1.7 times faster on CPUs than
    `jax.nn.dot_product_attention`, same bits).
    """
    if has_fused_kernel(query.dtype, query.shape[-1], jax.local_devices()[0]):
        moved = (part.swapaxes(1, 2) for part in (query, key, value))
        return jax.nn.dot_product_attention(*moved, implementation="cudnn").swapaxes(1, 2)
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1)
    return jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value)


def has_fused_kernel(dtype: Dtype, head_dim: int, device: jax.Device) -> bool:
    """Whether cuDNN fuses attention: 16 bits, d a multiple of 8 up to 128, an Ampere GPU or later.

    The device is that of the trace: a program exported from a CPU keeps the two products.
    """
    if device.platform != "gpu" or jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return False
    # ROCm devices name an architecture ("gfx90a") instead of a number.
    capability = str(getattr(device, "compute_capability", ""))
    recent = capability.replace(".", "", 1).isdigit() and float(capability) >= 8.0
    return recent and head_dim % 8 == 0 and head_dim <= 128


def _split_heads(tokens: jax.Array, heads: int) -> jax.Array:
    """(B, N, C) -> (B, heads, N, C / heads); head j owns channels [j d, (j + 1) d)."""
    batch, num_tokens, channels = tokens.shape
    return tokens.reshape(batch, num_tokens, heads, channels // heads).swapaxes(1, 2)


def _join_heads(tokens: jax.Array) -> jax.Array:
    batch, heads, num_tokens, dim = tokens.shape
    return tokens.swapaxes(1, 2).reshape(batch, num_tokens, heads * dim)


class SelfAttention(nn.Module):
    """Attention among the tokens of one view; one matrix makes queries, keys and values."""

    num_heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, by: rope2d.Rotation | None = None) -> jax.Array:
        """tokens: (B, N, C). by: None if they know where they are. Returns (B, N, C)."""
        channels = tokens.shape[-1]
        joint = dense(3 * channels, self.dtype, "qkv")(tokens)
        cut = _split_heads(joint, 3 * self.num_heads)
        both, value = cut[:, : 2 * self.num_heads], cut[:, 2 * self.num_heads :]
        if by is not None:
            both = rope2d.rotate(both, by)
        query, key = jnp.split(both, 2, axis=1)
        return dense(channels, self.dtype, "out")(_join_heads(attend(query, key, value)))


class CrossAttention(nn.Module):
    """Attention from the tokens of one view to those of the other."""

    num_heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: jax.Array, other: jax.Array, by: rope2d.Rotation, by_other: rope2d.Rotation
    ) -> jax.Array:
        """tokens: (B, N, C) ask; other: (B, M, C) answer. Returns (B, N, C)."""
        channels = tokens.shape[-1]
        query = _split_heads(dense(channels, self.dtype, "query")(tokens), self.num_heads)
        key = _split_heads(dense(channels, self.dtype, "key")(other), self.num_heads)
        value = _split_heads(dense(channels, self.dtype, "value")(other), self.num_heads)
        mixed = attend(rope2d.rotate(query, by), rope2d.rotate(key, by_other), value)
        return dense(channels, self.dtype, "out")(_join_heads(mixed))
