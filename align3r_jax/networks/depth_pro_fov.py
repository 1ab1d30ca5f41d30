"""The field of view that Depth Pro estimates: its own image encoder beside the decoder's start."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from align3r_jax.networks import dinov2
from align3r_jax.networks.layers import attention, dpt


class _Collapse(nn.Module):
    """One number per image: a convolution whose kernel is the whole map."""

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros_init()
        kernel = self.param("kernel", zeros, (*features.shape[1:], 1))
        bias = self.param("bias", zeros, (1,))
        return jnp.einsum("bhwc,hwco->bo", features, kernel)[:, 0] + bias


class FieldOfView(nn.Module):
    """Horizontal field of view in degrees.

    encoder: settings of the image encoder; dim: channels of the decoder's coarsest projection.
    The convolutions are float32: they are cheap, and their one number scales all depth.
    """

    encoder: dinov2.DinoV2Config
    dim: int
    dtype: attention.Dtype = jnp.float32
    precision: str | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, coarse: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """images: (B, H, W, 3), the input at a quarter of its size; coarse: (B, 2h, 2w, dim) on
        twice the token grid, without gradient. Returns (B,) degrees, intermediates by name.
        """
        vit = dinov2.DinoV2(self.encoder, self.dtype, self.precision, name="encoder")
        tokens = vit(images).tokens.astype(jnp.float32)
        tokens = attention.dense(self.dim // 2, jnp.float32, "project")(tokens)
        coarse = jax.lax.stop_gradient(coarse).astype(jnp.float32)
        below = dpt.Conv(self.dim // 2, 3, stride=2, name="downsample")(coarse)
        seen = jax.nn.relu(below) + tokens[:, 1:].reshape(below.shape)
        first = dpt.Conv(self.dim // 4, 3, stride=2, name="head_0")(seen)
        second = dpt.Conv(self.dim // 8, 3, stride=2, name="head_1")(jax.nn.relu(first))
        degrees = _Collapse(name="head_2")(jax.nn.relu(second))
        named = {
            "fov_tokens": tokens,
            "fov_downsample_pre_relu": below,
            "fov_head0_pre_relu": first,
            "fov_head2_pre_relu": second,
        }
        return degrees, named
