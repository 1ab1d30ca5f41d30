"""The convolutional half of Depth Pro: enlarging the encoders' maps, fusing them, inverse depth.

Channels last; everything computes in the type of the maps it is given.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from align3r_jax.networks.layers import dpt


class Upsample(nn.Module):
    """A 1 x 1 convolution to `features`, then `steps` doublings, the first to `out_features`.

    No biases and no activations.
    """

    features: int
    out_features: int
    steps: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """(B, h, w, C) -> (B, 2^steps h, 2^steps w, out_features)."""
        features = dpt.Conv(self.features, use_bias=False, name="project")(features)
        for step in range(1, self.steps + 1):
            enlarge = dpt.Enlarge(2, self.out_features, use_bias=False, name=f"enlarge_{step}")
            features = enlarge(features)
        return features


class Fusion(nn.Module):
    """conv1x1(double(R(x + R_skip(skip)))); without `doubling` the size stays."""

    doubling: bool

    @nn.compact
    def __call__(self, features: jax.Array, skip: jax.Array | None = None) -> jax.Array:
        skip_unit = dpt.ResidualUnit(name="skip_unit")
        if skip is not None:
            features = features + skip_unit(skip)
        elif self.is_initializing():
            # parity: the deepest fusion owns a unit it never uses; kept so that weights make the
            # round trip through their original names unchanged.
            skip_unit(features)
        features = dpt.ResidualUnit(name="unit")(features)
        if self.doubling:
            features = dpt.Enlarge(2, use_bias=False, name="enlarge")(features)
        return dpt.Conv(features.shape[-1], name="out")(features)


class Decoder(nn.Module):
    """Fuses five maps, coarsest first, each twice the size of the next coarser one."""

    dim: int

    @nn.compact
    def __call__(self, maps: list[jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """maps: finest first; the first has `dim` channels. Returns the fused map at the size of
        the first, and the intermediates by name; `decoder_conv4` is the coarsest projection.
        """
        named: dict[str, jax.Array] = {}
        coarsest = len(maps) - 1
        fused = maps[coarsest]
        for level in range(coarsest, -1, -1):
            skip = maps[level]
            if level:
                skip = dpt.Conv(self.dim, 3, use_bias=False, name=f"conv_{level}")(skip)
                named[f"decoder_conv{level}"] = skip
            fusion = Fusion(doubling=level > 0, name=f"fusion_{level}")
            fused = fusion(skip) if level == coarsest else fusion(fused, skip)
            named[f"fusion{level}"] = fused
        return fused, named


class Head(nn.Module):
    """Fused map -> canonical inverse depth before its last ReLU, at twice the size.

    The last layer is float32 whatever the rest computes in: bfloat16 holds two digits.
    """

    last_dim: int

    @nn.compact
    def __call__(self, fused: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(B, h, w, C) -> (B, 2h, 2w) float32, and the intermediates by name."""
        first = dpt.Conv(fused.shape[-1] // 2, 3, name="conv_0")(fused)
        doubled = dpt.Enlarge(2, name="enlarge")(first)
        last = dpt.Conv(self.last_dim, 3, name="conv_1")(doubled)
        logits = dpt.Conv(1, name="out")(jax.nn.relu(last.astype(jnp.float32)))[..., 0]
        return logits, {"head0": first, "head1": doubled, "head2": last, "logits": logits}
