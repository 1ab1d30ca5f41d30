"""The dense prediction transformer head (DPT): tokens of four depths -> a map of every pixel.

Everything here is float32 and channels last; convolution kernels are (rows, columns, in, out).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from align3r_jax.networks.layers import resample, resize


class Conv(nn.Module):
    """A convolution, padded so that stride 1 keeps the size."""

    features: int
    kernel: int = 1
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        channels = features.shape[-1]
        zeros = nn.initializers.zeros_init()
        kernel = self.param("kernel", zeros, (self.kernel, self.kernel, channels, self.features))
        out = jax.lax.conv_general_dilated(
            features,
            kernel.astype(features.dtype),
            window_strides=(self.stride, self.stride),
            padding=[(self.kernel // 2, self.kernel // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.use_bias:
            out = out + self.param("bias", zeros, (self.features,)).astype(out.dtype)
        return out


class Enlarge(nn.Module):
    """Transposed convolution whose kernel is its stride: every pixel becomes a small patch.

    out[y s + i, x s + j] = bias + kernel[i, j]^T in[y, x].
    """

    stride: int
    features: int | None = None  # None keeps the channels
    use_bias: bool = True

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        batch, height, width, channels = features.shape
        out_channels = channels if self.features is None else self.features
        zeros = nn.initializers.zeros_init()
        kernel = self.param("kernel", zeros, (self.stride, self.stride, channels, out_channels))
        out = jnp.einsum("bhwc,ijcd->bhiwjd", features, kernel.astype(features.dtype))
        out = out.reshape(batch, height * self.stride, width * self.stride, out_channels)
        if self.use_bias:
            out = out + self.param("bias", zeros, (out_channels,)).astype(out.dtype)
        return out


class ResidualUnit(nn.Module):
    """x + conv2(relu(conv1(relu(x))))."""

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        channels = features.shape[-1]
        inner = Conv(channels, 3, name="conv1")(jax.nn.relu(features))
        return features + Conv(channels, 3, name="conv2")(jax.nn.relu(inner))


class Fusion(nn.Module):
    """upsample(conv1x1(R(x + R_skip(skip)))), corners on corners: to `shape`, or doubled.

    The 1x1 convolution stands after the upsampling in the paper's network; the weights of a
    bilinear sample sum to one, so the two commute and the smaller map is the cheaper place.
    """

    @nn.compact
    def __call__(
        self,
        features: jax.Array,
        skip: jax.Array | None = None,
        shape: tuple[int, int] | None = None,
    ) -> jax.Array:
        skip_unit = ResidualUnit(name="skip_unit")
        if skip is not None:
            features = features + skip_unit(skip)
        elif self.is_initializing():
            # parity: the deepest fusion owns a unit it never uses; kept so that weights make the
            # round trip through their original names unchanged.
            skip_unit(features)
        features = ResidualUnit(name="unit")(features)
        features = Conv(features.shape[-1], name="out")(features)
        if shape is None:
            return resample.upsample2(features)
        return resize.bilinear(features, shape, align_corners=True)


class Dpt(nn.Module):
    """Four token maps (encoder, two intermediate depths, last) -> (B, 16h, 16w, out_channels).

    layer_dims: widths of the four reassembled maps, feature_dim: width of the fusion,
    last_dim: width before the last layer.
    """

    layer_dims: tuple[int, int, int, int]
    feature_dim: int
    last_dim: int
    out_channels: int

    @nn.compact
    def __call__(self, tokens: list[jax.Array], grid: tuple[int, int]) -> jax.Array:
        """tokens: four of (B, h * w, C); grid: (h, w). Returns (B, 16h, 16w, out_channels)."""
        rows, columns = grid
        maps = []
        for level, (level_tokens, dim) in enumerate(zip(tokens, self.layer_dims)):
            features = level_tokens.astype(jnp.float32)
            features = features.reshape(features.shape[0], rows, columns, features.shape[-1])
            features = Conv(dim, name=f"project_{level + 1}")(features)
            if level < 2:
                features = Enlarge(4 >> level, name=f"resize_{level + 1}")(features)
            elif level == 3:
                features = Conv(dim, 3, stride=2, name="resize_4")(features)
            layer = Conv(self.feature_dim, 3, use_bias=False, name=f"layer_{level + 1}")
            maps.append(layer(features))

        fused = Fusion(name="fusion_4")(maps[3])[:, :rows, :columns]  # odd grids: one too many
        for level in (3, 2, 1):
            fused = Fusion(name=f"fusion_{level}")(fused, maps[level - 1])

        out = resample.upsample2(Conv(self.feature_dim // 2, 3, name="output_1")(fused))
        out = jax.nn.relu(Conv(self.last_dim, 3, name="output_2")(out))
        return Conv(self.out_channels, name="output_3")(out)
