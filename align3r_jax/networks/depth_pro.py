"""Depth Pro: one image -> canonical inverse depth at full resolution, and its field of view.

Bochkovskii et al., "Depth Pro: Sharp Monocular Metric Depth in Less Than a Second", 2024. One
encoder sees 35 windows of an image pyramid, another the whole image at a quarter of its size;
their maps, tiled back together, are fused by a convolutional decoder.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from align3r_jax.errors import UserError
from align3r_jax.networks import depth_pro_decoder as decoder
from align3r_jax.networks import depth_pro_fov, dinov2, initial
from align3r_jax.networks import depth_pro_windows as windows_lib
from align3r_jax.networks.layers import attention, dpt
from align3r_jax.networks.layers.attention import Dtype


@dataclasses.dataclass(frozen=True)
class DepthProConfig:
    """Defaults: the released model. The three encoders have the same settings."""

    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: int = 4
    patch_size: int = 16
    window: int = 384  # pixels along a side of what an encoder sees, a quarter of the input
    latent_blocks: tuple[int, int] = (5, 11)  # blocks (from 0) whose raw outputs are decoded too
    dims: tuple[int, int, int, int] = (256, 512, 1024, 1024)  # of the four coarser maps
    decoder_dim: int = 256
    last_dim: int = 32

    def __post_init__(self) -> None:
        if self.window <= 0 or self.window % (8 * self.patch_size):
            raise UserError(
                f"window={self.window}: expected a multiple of {8 * self.patch_size}, eight "
                "patches, so that the overlaps of the windows are whole tokens."
            )
        if len(self.latent_blocks) != 2 or not all(
            0 <= block < self.depth for block in self.latent_blocks
        ):
            raise UserError(
                f"latent_blocks={self.latent_blocks}: expected two numbers from 0 to "
                f"{self.depth - 1}, for {self.depth} blocks."
            )
        if self.num_heads < 1 or self.embed_dim % self.num_heads:
            raise UserError(
                f"embed_dim={self.embed_dim} does not divide into num_heads={self.num_heads}; "
                "change one of the two."
            )

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return 4 * self.window

    @property
    def grid(self) -> int:
        """Tokens along a side of a window."""
        return self.window // self.patch_size

    @property
    def merge_padding(self) -> int:
        """Tokens cut from interior sides of the finest windows; the middle ones lose twice that.

        The only value with which neighbours meet without gap or overlap.
        """
        return self.grid // 8

    @property
    def encoder(self) -> dinov2.DinoV2Config:
        """Settings of each of the three image encoders."""
        return dinov2.DinoV2Config(
            embed_dim=self.embed_dim,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            patch_size=self.patch_size,
            grid=self.grid,
        )


DEPTH_PRO_PRESETS: dict[str, DepthProConfig] = {
    "depth_pro": DepthProConfig(),
    # All paths of the released model, in miniature.
    "tiny_depth_pro": DepthProConfig(
        embed_dim=64, depth=4, num_heads=4, window=128, latent_blocks=(0, 1),
        dims=(32, 24, 40, 48), decoder_dim=32,
    ),
}  # fmt: skip


class DepthProOutput(NamedTuple):
    """inverse_depth: (B, S, S) >= 0, canonical: times width / focal it is in 1 / metres.

    fov: (B,) horizontal field of view in degrees, None if not asked for. intermediates: by name,
    or None.
    """

    inverse_depth: jax.Array
    fov: jax.Array | None
    intermediates: dict[str, jax.Array] | None


class DepthPro(nn.Module):
    """The network; images come as `priors.depth_pro` prepares them.

    dtype: what encoders and decoder compute in (norms, residual streams, the last layers and the
    field of view are float32). precision: of matrix products, "highest" for parity. window_chunk:
    how many windows of each image the patch encoder takes at a time; None: all 35.
    """

    config: DepthProConfig
    dtype: Dtype = jnp.float32
    precision: str | None = None
    window_chunk: int | None = None

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        estimate_fov: bool = True,
        return_intermediates: bool = False,
    ) -> DepthProOutput:
        """images: (B, S, S, 3) in [-1, 1], S = config.image_size."""
        side = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise UserError(
                f"Images of shape {images.shape}: Depth Pro expected (B, {side}, {side}, 3); "
                "priors.depth_pro resizes any image to that."
            )
        with attention.precision_context(self.precision):
            maps, named = self._encode(images)
            fused, more = decoder.Decoder(self.config.decoder_dim, name="decoder")(maps)
            named |= more
            logits, more = decoder.Head(self.config.last_dim, name="head")(fused)
            named |= more
            fov = None
            if estimate_fov:
                fov, more = depth_pro_fov.FieldOfView(
                    self.config.encoder,
                    self.config.decoder_dim,
                    self.dtype,
                    self.precision,
                    name="fov",
                )(windows_lib.shrink(images, 4), named["decoder_conv4"])
                named |= more
        return DepthProOutput(jax.nn.relu(logits), fov, named if return_intermediates else None)

    def _encode(self, images: jax.Array) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        """Five maps, finest first, each twice the size of the next; intermediates by name."""
        config = self.config
        vit = functools.partial(dinov2.DinoV2, config.encoder, self.dtype, self.precision)
        cut = windows_lib.pyramid_windows(images)
        embedded, tokens, latents = self._encode_windows(vit(name="patch_encoder"), cut)
        seen = vit(name="image_encoder")(windows_lib.shrink(images, 4)).tokens

        fine, middle = windows_lib.FINE**2, windows_lib.MIDDLE**2
        padding = config.merge_padding
        final = self._as_maps(tokens)
        latent0, latent1 = (
            windows_lib.merge(self._as_maps(latent[:, :fine]), padding) for latent in latents
        )
        merged0 = windows_lib.merge(final[:, :fine], padding)
        merged1 = windows_lib.merge(final[:, fine : fine + middle], 2 * padding)

        dims, dim = config.dims, config.decoder_dim
        ups = {
            name: decoder.Upsample(features, out_features, steps, name=name)(maps)
            for name, maps, features, out_features, steps in (
                ("upsample_latent0", latent0, dims[0], dim, 3),
                ("upsample_latent1", latent1, dims[0], dims[0], 2),
                ("upsample0", merged0, dims[1], dims[1], 1),
                ("upsample1", merged1, dims[2], dims[2], 1),
                ("upsample2", final[:, -1], dims[3], dims[3], 1),
            )
        }
        low = dpt.Enlarge(2, dims[3], name="upsample_lowres")(self._as_maps(seen))
        both = jnp.concatenate([ups["upsample2"], low], axis=-1)
        fused = dpt.Conv(dims[3], name="fuse_lowres")(both)
        named = {
            "windows": cut,
            "patch_tokens": embedded,
            "patch_encoder": tokens,
            "hook0": latents[0],
            "hook1": latents[1],
            "image_encoder": seen,
            "merge_latent0": latent0,
            "merge_latent1": latent1,
            "merge0": merged0,
            "merge1": merged1,
            "upsample_lowres": low,
            "fuse_lowres": fused,
            **ups,
        }
        maps = [ups[f"upsample{k}"] for k in ("_latent0", "_latent1", "0", "1")]
        return [*maps, fused], named

    def _encode_windows(
        self, encoder: nn.Module, cut: jax.Array
    ) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
        """(B, K, w, w, 3) -> tokens (B, K, 1 + N, C): embedded, final, of the two latent blocks."""
        batch, count = cut.shape[:2]
        chunk = min(self.window_chunk or count, count)
        steps = -(-count // chunk)
        padded = jnp.pad(cut, [(0, 0), (0, steps * chunk - count)] + [(0, 0)] * 3)
        parts = padded.reshape(batch, steps, chunk, *cut.shape[2:]).swapaxes(0, 1)

        def encode(module: nn.Module, carry: tuple, part: jax.Array) -> tuple[tuple, Any]:
            out = module(part.reshape(batch * chunk, *part.shape[2:]), self.config.latent_blocks)
            return carry, jax.tree.map(
                lambda x: x.reshape(batch, chunk, *x.shape[1:]),
                (out.embedded, out.tokens, out.hooks),
            )

        if steps == 1:
            return encode(encoder, (), parts[0])[1]
        scan = nn.scan(encode, variable_broadcast="params", split_rngs={"params": False})
        stacked = scan(encoder, (), parts)[1]
        return jax.tree.map(
            lambda x: x.swapaxes(0, 1).reshape(batch, steps * chunk, *x.shape[3:])[:, :count],
            stacked,
        )

    def _as_maps(self, tokens: jax.Array) -> jax.Array:
        """(..., 1 + N, C) -> (..., h, w, C) in the compute type, without the class token."""
        grid = self.config.grid
        shape = (*tokens.shape[:-2], grid, grid, tokens.shape[-1])
        return tokens[..., 1:, :].reshape(shape).astype(self.dtype)


@functools.lru_cache(maxsize=16)
def _flat_shapes(config: DepthProConfig) -> Any:
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return jax.eval_shape(DepthPro(config).init, jax.random.key(0), image)["params"]


def abstract_params(config: DepthProConfig) -> dict[str, Any]:
    """The parameter tree as shapes and types, without memory."""
    return jax.tree.map(lambda leaf: leaf, _flat_shapes(config))


def init_params(config: DepthProConfig, key: jax.Array) -> dict[str, Any]:
    """Parameters to train from scratch: `networks.initial` for what is a DINOv2, and convolutions
    uniform within 1 / sqrt(fan in).
    """
    rules = (
        *initial.encoder_rules(r"(patch_encoder|image_encoder|fov/encoder)"),
        (r".*", "fan_in"),
    )
    return initial.draw(_flat_shapes(config), rules, key)


def parameter_count(config: DepthProConfig) -> int:
    """How many numbers the network holds, the unused ones of the deepest fusion among them."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
