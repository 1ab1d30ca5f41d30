"""The small monocular network that ships: a U-Net from one frame to relative depth.

Trained on rendered scenes only (`experiments/configs/small_depth.py`); a toy beside Depth Pro or
Depth Anything, used by default only where it beats a constant depth (`weights/shipped`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from align3r_jax.structs import Array


@dataclasses.dataclass(frozen=True)
class SmallDepthConfig:
    """Widths of the U-Net, finest (half resolution) to coarsest (1/16), and its working size."""

    widths: tuple[int, ...] = (24, 48, 96, 160)
    blocks: int = 2  # residual blocks at 1/16
    width: int = 160  # frames are resized to this width, the height follows (multiple of 16)


def _norm(name: str) -> nn.Module:
    return nn.LayerNorm(epsilon=1e-6, name=name)


class _Residual(nn.Module):
    """x + conv(gelu(conv(norm(x))))."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.Conv(self.width, (3, 3), name="conv_1")(_norm("norm")(x))
        y = nn.Conv(self.width, (3, 3), name="conv_2")(nn.gelu(y, approximate=False))
        return x + y


class _GlobalContext(nn.Module):
    """Self-attention over the coarsest grid, so that a pixel sees the whole frame."""

    width: int
    heads: int = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        tokens = _norm("norm")(x).reshape(batch, height * width, channels)
        mixed = nn.MultiHeadDotProductAttention(num_heads=self.heads, name="attention")(tokens)
        return x + mixed.reshape(x.shape)


def _double(x: Array) -> Array:
    batch, height, width, channels = x.shape
    shape = (batch, 2 * height, 2 * width, channels)
    return jax.image.resize(x, shape, "bilinear", antialias=False)


class SmallDepth(nn.Module):
    """Frames (B, H, W, 3) in [-1, 1], sides multiples of 16 -> log depth (B, H, W), relative.

    The output is at full size, float32, defined up to an additive constant (scale of depth).
    """

    config: SmallDepthConfig = SmallDepthConfig()

    @nn.compact
    def __call__(self, images: Array) -> Array:
        widths = self.config.widths
        batch, height, width, _ = images.shape
        rows = jnp.linspace(-1, 1, height, dtype=images.dtype)[None, :, None, None]
        columns = jnp.linspace(-1, 1, width, dtype=images.dtype)[None, None, :, None]
        place = jnp.concatenate(
            [jnp.broadcast_to(rows, (batch, height, width, 1)),
             jnp.broadcast_to(columns, (batch, height, width, 1))], axis=-1
        )  # fmt: skip
        x = jnp.concatenate([images, place], axis=-1)
        skips = []
        for level, channels in enumerate(widths):
            size = (5, 5) if level == 0 else (3, 3)
            x = nn.Conv(channels, size, strides=2, name=f"down_{level}")(x)
            x = _Residual(channels, name=f"encode_{level}")(x)
            skips.append(x)
        for block in range(self.config.blocks):
            x = _GlobalContext(widths[-1], name=f"context_{block}")(x)
            x = _Residual(widths[-1], name=f"middle_{block}")(x)
        for level in reversed(range(len(widths) - 1)):
            x = nn.Conv(widths[level], (1, 1), name=f"up_{level}")(_double(x))
            x = _Residual(widths[level], name=f"decode_{level}")(x + skips[level])
        log_depth = nn.Conv(1, (3, 3), kernel_init=nn.initializers.zeros, name="head")(x)
        return _double(log_depth)[..., 0].astype(jnp.float32)
