"""What the depth prior gives the network: tokens added to the decoder, and an anchor.

The branch sees one frame's prior point map alone: a patch embedding, a few self-attention
blocks, and after each of them a projection (zero at the start of training) onto the decoder's
tokens. Source: Align3R, section 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from align3r_jax.geometry import camera
from align3r_jax.networks.croco import rematerialised
from align3r_jax.networks.layers import attention, blocks, patch_embed, rope2d
from align3r_jax.networks.layers.attention import Dtype


class PriorBranch(nn.Module):
    """Prior point maps -> what is added to the decoder's tokens around its first blocks."""

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
        self, prior_maps: jax.Array, positions: jax.Array, portrait: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """prior_maps: (B, H, W, 3); positions: (B, N, 2).

        Returns the injections and the branch's own tokens, both (B, depth + 1, N, D) float32;
        entry 0 belongs before decoder block 0, entry k behind block k - 1.
        """
        embed = patch_embed.PatchEmbed(
            self.embed_dim, self.patch, dtype=self.dtype, name="patch_embed"
        )
        tokens = [embed(prior_maps, portrait).astype(jnp.float32)]
        by = rope2d.rotation(positions, self.embed_dim // self.num_heads, self.rope_base)
        block = rematerialised(blocks.EncoderBlock, self.remat)
        for index in range(self.depth):
            run = block(self.num_heads, self.mlp_ratio, self.dtype, name=f"block_{index:02d}")
            tokens.append(run(tokens[-1], by))
        injections = [
            attention.dense(self.embed_dim, self.dtype, f"injection_{index}")(branch_tokens).astype(
                jnp.float32
            )
            for index, branch_tokens in enumerate(tokens)
        ]
        return jnp.stack(injections, axis=1), jnp.stack(tokens, axis=1)


class RayPrior(NamedTuple):
    """A batch of prior point maps made ready for the small network.

    encoding: (B, H, W, 3), (x / z, y / z, ln(z / median)), 0 where the prior is missing.
    anchor: (B, H, W, 3) the point map divided by its median depth, complete everywhere.
    log_median: (B,) ln of the median depth, 0 without a prior. has_prior: (B,) float32, 0 or 1.
    """

    encoding: jax.Array
    anchor: jax.Array
    log_median: jax.Array
    has_prior: jax.Array


def _centred_pixels(height: int, width: int, portrait: jax.Array | None) -> jax.Array:
    """(B or 1, H, W, 2): x, y of every pixel from (W / 2, H / 2) of its upright frame."""

    def upright(rows: int, columns: int) -> jax.Array:
        x = jnp.arange(columns, dtype=jnp.float32) - columns / 2
        y = jnp.arange(rows, dtype=jnp.float32) - rows / 2
        return jnp.stack(jnp.meshgrid(x, y), axis=-1)

    pixels = upright(height, width)[None]
    if portrait is None:
        return pixels
    turned = upright(width, height).swapaxes(0, 1)[None]
    return jnp.where(portrait[:, None, None, None], turned, pixels)


def encode_ray(
    points: jax.Array | None,
    has_prior: jax.Array | None,
    shape: tuple[int, int, int],
    portrait: jax.Array | None = None,
) -> RayPrior:
    """Reads prior point maps (camera frame, any scale); missing ones and pixels are filled.

    points: (B, H, W, 3) x, y, z; a pixel counts as missing unless all three are finite and
    z > 0. has_prior: (B,) bool, False leaves a frame's points unread. shape: (B, H, W).

    Missing pixels are anchored at the median depth, on the rays of the focal that fits the
    frame's other pixels best; a frame without any prior on the plane z = 1 with the focal
    0.85 max(H, W). `log_median` carries the scale that links two frames of one video.
    """
    batch, height, width = shape
    pixels = _centred_pixels(height, width, portrait)
    plane_rays = pixels / (camera.DEFAULT_FOCAL * max(height, width))
    if points is None:
        anchor = jnp.concatenate([plane_rays, jnp.ones_like(plane_rays[..., :1])], axis=-1)
        nothing = jnp.zeros((batch, height, width, 3), jnp.float32)
        zero = jnp.zeros((batch,), jnp.float32)
        return RayPrior(nothing, jnp.broadcast_to(anchor, nothing.shape), zero, zero)

    points = points.astype(jnp.float32)
    valid = jnp.all(jnp.isfinite(points), axis=-1) & (points[..., 2] > 0)
    if has_prior is not None:
        valid = valid & has_prior.astype(bool)[:, None, None]
    any_valid = jnp.any(valid, axis=(1, 2))
    depth = jnp.where(valid, points[..., 2], 1.0)
    rays = jnp.where(valid[..., None], points[..., :2] / depth[..., None], 0.0)

    masked = jnp.where(valid, depth, jnp.nan).reshape(batch, height * width)
    median = jnp.where(any_valid, jnp.nanmedian(masked, axis=1), 1.0)
    relative = depth / median[:, None, None]

    # rays ~ pixels * slope, slope = 1 / focal by least squares over the valid pixels.
    weight = jnp.where(valid[..., None], pixels, 0.0)
    moment = jnp.sum(weight * weight, axis=(1, 2, 3))
    slope = jnp.sum(weight * rays, axis=(1, 2, 3)) / jnp.maximum(moment, 1.0)
    filled_rays = jnp.where(
        any_valid[:, None, None, None], pixels * slope[:, None, None, None], plane_rays
    )

    rays_everywhere = jnp.where(valid[..., None], rays, filled_rays)
    depth_everywhere = jnp.where(valid, relative, 1.0)[..., None]
    anchor = jnp.concatenate([rays_everywhere, jnp.ones_like(depth_everywhere)], axis=-1)
    encoding = jnp.concatenate([rays, jnp.where(valid, jnp.log(relative), 0.0)[..., None]], axis=-1)
    return RayPrior(
        encoding, anchor * depth_everywhere, jnp.log(median), any_valid.astype(jnp.float32)
    )


def with_depth(
    images: jax.Array, prior_maps: jax.Array | None, has_prior: jax.Array | None
) -> jax.Array:
    """Returns images (B, H, W, 4) with the z of encoded priors (B, H, W, 3) as last channel.

    0 where a frame has no prior. has_prior: (B,), None: all have one.
    """
    if prior_maps is None:
        return jnp.pad(images, [(0, 0)] * 3 + [(0, 1)])
    depth = prior_maps[..., 2:]
    if has_prior is not None:
        depth = jnp.where(has_prior.astype(bool)[:, None, None, None], depth, 0.0)
    return jnp.concatenate([images, depth.astype(images.dtype)], axis=-1)
