"""Cutting images into patches, embedding them, and where each token sits on its grid."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from align3r_jax.networks.layers.attention import Dtype


def patchify(images: jax.Array, patch: int) -> jax.Array:
    """(B, H, W, C) -> (B, N, patch * patch * C), patches row by row."""
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    cut = images.reshape(batch, rows, patch, columns, patch, channels)
    return cut.swapaxes(2, 3).reshape(batch, rows * columns, patch * patch * channels)


def grid_positions(grid: tuple[int, int]) -> jax.Array:
    """(N, 2) int32 (row, column) of the tokens, row by row."""
    rows, columns = grid
    row, column = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
    return jnp.stack([row, column], axis=-1).reshape(rows * columns, 2).astype(jnp.int32)


def positions(batch: int, grid: tuple[int, int], portrait: jax.Array | None) -> jax.Array:
    """(B, N, 2) int32; those of portrait items count on the grid of the upright frame."""
    upright = jnp.broadcast_to(grid_positions(grid), (batch, grid[0] * grid[1], 2))
    if portrait is None:
        return upright
    turned = grid_positions((grid[1], grid[0]))
    return jnp.where(portrait[:, None, None], turned, upright)


class PatchEmbed(nn.Module):
    """A linear map of every patch, i.e. a convolution whose stride is its kernel.

    kernel: (patch, patch, C, features).
    """

    features: int
    patch: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, portrait: jax.Array | None = None) -> jax.Array:
        """images: (B, H, W, C). Returns tokens (B, N, features).

        portrait: (B,) bool, True where an upright frame is stored transposed; its tokens are
        those of the upright frame, row by row on its (w, h) grid.
        """
        zeros = nn.initializers.zeros_init()
        shape = (self.patch, self.patch, images.shape[-1], self.features)
        kernel, bias = self.param("kernel", zeros, shape), self.param("bias", zeros, shape[-1:])
        patches = patchify(images, self.patch)
        if portrait is not None:
            turned = patchify(images.swapaxes(1, 2), self.patch)
            patches = jnp.where(portrait[:, None, None], turned, patches)
        patches, kernel, bias = nn.dtypes.promote_dtype(patches, kernel, bias, dtype=self.dtype)
        return patches @ kernel.reshape(-1, self.features) + bias
