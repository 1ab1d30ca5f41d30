"""The encoder and the two decoders of CroCo v2: stacks of blocks, readable parameter paths."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from align3r_jax.networks.layers import blocks, patch_embed, rope2d
from align3r_jax.networks.layers.attention import Dtype


def rematerialised(block: type[nn.Module], remat: bool) -> type[nn.Module]:
    """The block as it is, or computing its activations again in the backward pass."""
    return nn.remat(block) if remat else block


class Encoder(nn.Module):
    """ViT: patches -> blocks -> norm. One image per item, the same weights for both views."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: int
    patch: int
    rope_base: float
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        positions: jax.Array,
        portrait: jax.Array | None = None,
        visible: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """images: (B, H, W, 3) in [-1, 1]; positions: (B, N, 2).

        visible: (B, V) int32, encode these tokens alone (masked pre-training).
        Returns the tokens after the last norm and the patch embedding, both (B, N or V, E) float32.
        """
        embed = patch_embed.PatchEmbed(
            self.embed_dim, self.patch, dtype=self.dtype, name="patch_embed"
        )
        patches = embed(images, portrait).astype(jnp.float32)
        if visible is not None:
            patches = jnp.take_along_axis(patches, visible[..., None], axis=1)
            positions = jnp.take_along_axis(positions, visible[..., None], axis=1)
        by = rope2d.rotation(positions, self.embed_dim // self.num_heads, self.rope_base)
        block = rematerialised(blocks.EncoderBlock, self.remat)
        tokens = patches
        for index in range(self.depth):
            tokens = block(self.num_heads, self.mlp_ratio, self.dtype, name=f"block_{index:02d}")(
                tokens, by
            )
        return blocks.layer_norm(jnp.float32, "norm")(tokens), patches


class DecoderStack(nn.Module):
    """The decoder blocks of one view. The two views advance together, so blocks run one by one."""

    depth: int
    num_heads: int
    mlp_ratio: int
    dtype: Dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        block = rematerialised(blocks.DecoderBlock, self.remat)
        for index in range(self.depth):
            setattr(self, f"block_{index:02d}", block(self.num_heads, self.mlp_ratio, self.dtype))

    def begin(self, tokens: jax.Array, by: rope2d.Rotation) -> jax.Array:
        """What block 0 makes of (B, N, D) tokens before it looks at the other view."""
        first: blocks.DecoderBlock = self.block_00
        return first.begin(tokens, by)

    def __call__(
        self,
        index: int,
        tokens: jax.Array,
        other: jax.Array,
        by: rope2d.Rotation,
        by_other: rope2d.Rotation,
        begun: jax.Array | None = None,
    ) -> jax.Array:
        """Runs block `index` on (B, N, D) tokens, given the other view's (B, M, D).

        begun: of `begin`, if it is there already; then `tokens` are not looked at.
        """
        block = getattr(self, f"block_{index:02d}")
        if begun is not None:
            return block.finish(begun, other, by, by_other)
        return block(tokens, other, by, by_other)
