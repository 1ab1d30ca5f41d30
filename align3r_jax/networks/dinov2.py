"""DINOv2's image encoder: a ViT with a class token, layer scale and added positions.

Depth Anything V2 uses it as published (patch 14, positions on a 37 x 37 grid); Depth Pro on a
grid of 24 x 24 patches of 16 pixels. Parameters and the residual stream are float32.

Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, 2023.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.errors import UserError
from align3r_jax.networks.layers import attention, blocks, patch_embed, resize
from align3r_jax.networks.layers.attention import Dtype

# What the original code adds to the grid's size before it divides, against rounding down.
_POSITION_OFFSET = 0.1


@dataclasses.dataclass(frozen=True)
class DinoV2Config:
    """Widths of the ViT, and the square grid on which its positions were learnt.

    pos_embed_mode: source coordinate of a resized position, (i + 0.5) r - 0.5 with
    r = grid / (n + 0.1) ("offset": the original code, transformers up to 4.44) or r = grid / n
    ("size": transformers from 4.45).
    """

    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: int = 4
    patch_size: int = 14
    grid: int = 37
    pos_embed_mode: Literal["offset", "size"] = "offset"


@struct.dataclass
class DinoV2Output:
    """tokens: (B, 1 + N, C) after the final LayerNorm, class token first, then row by row.

    embedded: what enters the first block. hooks: outputs of the blocks asked for; normed_hooks:
    the same after the final LayerNorm. All of the same shape, float32. grid: (h, w), N = h w.
    """

    tokens: jax.Array
    embedded: jax.Array
    hooks: tuple[jax.Array, ...]
    normed_hooks: tuple[jax.Array, ...]
    grid: tuple[int, int] = struct.field(pytree_node=False)


def resize_positions(
    positions: jax.Array, grid: tuple[int, int], mode: Literal["offset", "size"]
) -> jax.Array:
    """Returns the positions of a (h, w) grid of tokens, (1, h, w, C) float32.

    positions: (1, g, g, C). Bicubic, see `DinoV2Config.pos_embed_mode`; unchanged if the grid is
    the learnt one. In mode "offset" an axis of g is resampled all the same if the other differs.
    """
    if mode not in ("offset", "size"):
        raise UserError(f'pos_embed_mode={mode!r}; expected "offset" or "size".')
    if tuple(grid) == positions.shape[1:3]:
        return positions
    offset = _POSITION_OFFSET if mode == "offset" else 0.0
    return resize.bicubic(positions.astype(jnp.float32), grid, offset=offset)


class Block(nn.Module):
    """x += g1 * attention(norm(x)); x += g2 * mlp(norm(x)); g1, g2 a factor per channel."""

    num_heads: int
    mlp_ratio: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """tokens: (B, N, C) float32. Returns the same shape, float32."""
        ones, width = nn.initializers.ones_init(), tokens.shape[-1]
        normed = blocks.layer_norm(self.dtype, "norm_attention")(tokens)
        mixed = attention.SelfAttention(self.num_heads, self.dtype, name="attention")(normed)
        tokens = tokens + self.param("scale_attention", ones, (width,)) * mixed
        normed = blocks.layer_norm(self.dtype, "norm_mlp")(tokens)
        changed = blocks.Mlp(self.mlp_ratio, self.dtype, name="mlp")(normed)
        return tokens + self.param("scale_mlp", ones, (width,)) * changed


class DinoV2(nn.Module):
    """The encoder of `config`.

    dtype: what the matrix products compute in. precision: of float32 products on accelerators
    ("highest" for parity), None = the default in force.
    """

    config: DinoV2Config
    dtype: Dtype = jnp.float32
    precision: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, hooks: tuple[int, ...] = ()) -> DinoV2Output:
        """images: (B, H, W, 3) float, normalised as the weights expect; hooks: blocks, from 0.

        Raises UserError if a side is no positive multiple of the patch size.
        """
        config = self.config
        batch, height, width, _ = images.shape
        patch, side = config.patch_size, config.grid
        if height % patch or width % patch or not min(height, width):
            raise UserError(
                f"Images of {height} x {width} pixels: expected both sides to be multiples of "
                f"{patch}; resize or crop them first."
            )
        if not all(0 <= hook < config.depth for hook in hooks):
            raise ValueError(f"hooks={hooks}: the encoder has blocks 0 to {config.depth - 1}.")
        grid = (height // patch, width // patch)
        zeros = nn.initializers.zeros_init()
        class_token = self.param("class_token", zeros, (1, 1, config.embed_dim))
        positions = self.param("positions", zeros, (1, 1 + side * side, config.embed_dim))

        with attention.precision_context(self.precision):
            patches = patch_embed.PatchEmbed(
                config.embed_dim, patch, self.dtype, name="patch_embed"
            )(images)
            learnt = positions[:, 1:].reshape(1, side, side, config.embed_dim)
            placed = resize_positions(learnt, grid, config.pos_embed_mode)
            placed = placed.reshape(1, grid[0] * grid[1], config.embed_dim)
            first = jnp.broadcast_to(class_token + positions[:, :1], (batch, 1, config.embed_dim))
            embedded = tokens = jnp.concatenate(
                [first, patches.astype(jnp.float32) + placed], axis=1
            )
            outputs = []
            for index in range(config.depth):
                block = Block(
                    config.num_heads, config.mlp_ratio, self.dtype, name=f"block_{index:02d}"
                )
                tokens = block(tokens)
                outputs.append(tokens)
        norm = blocks.layer_norm(jnp.float32, "norm")
        taken = tuple(outputs[hook] for hook in hooks)
        return DinoV2Output(norm(tokens), embedded, taken, tuple(map(norm, taken)), grid)
