"""From decoder tokens to points and confidence: the two heads and their output activations."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from align3r_jax.config import NetworkConfig
from align3r_jax.geometry import rigid
from align3r_jax.networks.layers import attention, dpt


def out_channels(config: NetworkConfig) -> int:
    """Channels of a head: 3 + confidence; an anchored head has a log scale before them."""
    return 5 if config.output == "anchored" else 4


class LinearHead(nn.Module):
    """One linear map from the last tokens to the 16 x 16 pixels of each patch."""

    patch: int
    out_channels: int

    @nn.compact
    def __call__(self, tokens: list[jax.Array], grid: tuple[int, int]) -> jax.Array:
        """tokens: the last entry is used, (B, h * w, D). Returns (B, 16h, 16w, channels)."""
        last = tokens[-1].astype(jnp.float32)
        # Channel c of pixel (i, j) of the patch is feature c * patch^2 + i * patch + j.
        features = attention.dense(self.out_channels * self.patch**2, jnp.float32, "project")(last)
        rows, columns = grid
        cut = features.reshape(-1, rows, columns, self.out_channels, self.patch, self.patch)
        pixels = cut.transpose(0, 1, 4, 2, 5, 3)
        return pixels.reshape(-1, rows * self.patch, columns * self.patch, self.out_channels)


def make_head(config: NetworkConfig, form: str = "auto") -> nn.Module:
    """The head that `config` names; called with (tokens of the hooks, grid).

    form: of a dense head, see `layers.dpt.Dpt`.
    """
    if config.head == "linear":
        return LinearHead(config.patch_size, out_channels(config))
    return dpt.Dpt(
        config.dpt_layer_dims,
        config.dpt_feature_dim,
        config.dpt_last_dim,
        out_channels(config),
        form,
    )


def _stretch(raw: jax.Array, mode: str) -> jax.Array:
    """raw / |raw| * g(|raw|), g = expm1 or the square; linear: raw.

    The norm's gradient at raw = 0 is taken as 0 instead of NaN.
    """
    if mode == "linear":
        return raw
    norm = rigid.safe_norm(raw)[..., None]
    length = jnp.expm1(norm) if mode == "exp" else norm * norm
    return raw / jnp.maximum(norm, 1e-8) * length


def confidence(raw: jax.Array, config: NetworkConfig) -> jax.Array:
    """exp: min + exp(raw), at most max; sigmoid: min + (max - min) sigmoid(raw)."""
    span = config.conf_max - config.conf_min
    if config.conf_mode == "sigmoid":
        return config.conf_min + span * jax.nn.sigmoid(raw)
    return config.conf_min + jnp.minimum(jnp.exp(raw), span)


def direct(raw: jax.Array, config: NetworkConfig) -> tuple[jax.Array, jax.Array]:
    """raw (B, H, W, 4) -> points (B, H, W, 3), confidence (B, H, W)."""
    return _stretch(raw[..., :3], config.depth_mode), confidence(raw[..., 3], config)


def anchored(
    raw: jax.Array, anchor: jax.Array, config: NetworkConfig
) -> tuple[jax.Array, jax.Array]:
    """points = anchor exp(s) + z_anchor offset, raw = (s, offset x y z, confidence).

    raw: (B, H, W, 5), anchor: (B, H, W, 3). Offsets count in units of the pixel's prior depth.
    """
    scaled = anchor * jnp.exp(raw[..., :1])
    return scaled + anchor[..., 2:] * raw[..., 1:4], confidence(raw[..., 4], config)
