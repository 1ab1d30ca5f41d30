"""The dense prediction transformer head (DPT): tokens of four depths -> a map of every pixel.

Everything here is float32 and channels last; convolution kernels are (rows, columns, in, out).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align3r_jax.networks.layers import doubled_conv, resample, resize

Weights = tuple[jax.Array, jax.Array]  # of a convolution: kernel and bias


class Conv(nn.Module):
    """A convolution, padded so that stride 1 keeps the size."""

    features: int | None = None  # None keeps the channels
    kernel: int = 1
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def weights(self, channels: int) -> tuple[jax.Array, jax.Array | None]:
        """Returns kernel (rows, columns, channels, out) and bias (out,) or None."""
        out = channels if self.features is None else self.features
        zeros = nn.initializers.zeros_init()
        kernel = self.param("kernel", zeros, (self.kernel, self.kernel, channels, out))
        return kernel, self.param("bias", zeros, (out,)) if self.use_bias else None

    def __call__(self, features: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, features)."""
        kernel, bias = self.weights(features.shape[-1])
        return _convolve(features, kernel, bias, self.stride)


def _convolve(
    features: jax.Array, kernel: jax.Array, bias: jax.Array | None, stride: int = 1
) -> jax.Array:
    out = jax.lax.conv_general_dilated(
        features,
        kernel.astype(features.dtype),
        window_strides=(stride, stride),
        padding=[(kernel.shape[0] // 2, kernel.shape[0] // 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out if bias is None else out + bias.astype(out.dtype)


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

    def setup(self) -> None:
        self.skip_unit = ResidualUnit()
        self.unit = ResidualUnit()
        self.out = Conv()

    def __call__(
        self,
        features: jax.Array,
        skip: jax.Array | None = None,
        shape: tuple[int, int] | None = None,
    ) -> jax.Array:
        if skip is None and self.is_initializing():
            # parity: the deepest fusion owns a unit it never uses; kept so that weights make the
            # round trip through their original names unchanged.
            self.skip_unit(features)
        small = self.before_upsampling(features, None if skip is None else self.skip_unit(skip))
        if shape is None:
            return resample.upsample2(small)
        return resize.bilinear(small, shape, align_corners=True)

    def before_upsampling(self, features: jax.Array, added: jax.Array | None) -> jax.Array:
        """conv1x1(R(x + added)); added: R_skip(skip)."""
        return self.out(self.unit(features if added is None else features + added))


class Dpt(nn.Module):
    """Four token maps (encoder, two intermediate depths, last) -> (B, 16h, 16w, out_channels).

    layer_dims: widths of the four reassembled maps, feature_dim: width of the fusion,
    last_dim: width before the last layer. form: of the last two 3x3 convolutions, each behind a
    doubling: "direct", "cheap" (`layers.doubled_conv`), or "auto", cheap on CPUs. The same numbers
    up to rounding.
    """

    layer_dims: tuple[int, int, int, int]
    feature_dim: int
    last_dim: int
    out_channels: int
    form: str = "auto"

    def setup(self) -> None:
        for level, dim in enumerate(self.layer_dims, 1):
            setattr(self, f"project_{level}", Conv(dim))
            setattr(self, f"layer_{level}", Conv(self.feature_dim, 3, use_bias=False))
            setattr(self, f"fusion_{level}", Fusion())
        self.resize_1, self.resize_2 = Enlarge(4), Enlarge(2)
        self.resize_4 = Conv(None, 3, stride=2)
        self.output_1 = Conv(self.feature_dim // 2, 3)
        self.output_2 = Conv(self.last_dim, 3)
        self.output_3 = Conv(self.out_channels)

    def __call__(
        self, tokens: list[jax.Array], grid: tuple[int, int], shallow: jax.Array | None = None
    ) -> jax.Array:
        """tokens: four of (B, h * w, C); grid: (h, w). Returns (B, 16h, 16w, out_channels).

        shallow: of `shallow(tokens[0], grid)`, if it is there already.
        """
        rows, columns = grid
        maps = [self._reassemble(level, tokens[level - 1], grid) for level in (2, 3, 4)]
        fused = self.fusion_4(maps[2])[:, :rows, :columns]  # odd grids: one too many
        fused = self.fusion_2(self.fusion_3(fused, maps[1]), maps[0])
        shallow = self.shallow(tokens[0], grid) if shallow is None else shallow
        return self._output(self.fusion_1.before_upsampling(fused, shallow))

    def shallow(self, tokens: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """What the head makes of the encoder's tokens before any others join: (B, 4h, 4w, F)."""
        return self.fusion_1.skip_unit(self._reassemble(1, tokens, grid))

    def _reassemble(self, level: int, tokens: jax.Array, grid: tuple[int, int]) -> jax.Array:
        features = tokens.astype(jnp.float32)
        features = features.reshape(features.shape[0], *grid, features.shape[-1])
        features = getattr(self, f"project_{level}")(features)
        if level != 3:
            features = getattr(self, f"resize_{level}")(features)
        return getattr(self, f"layer_{level}")(features)

    def _output(self, small: jax.Array) -> jax.Array:
        """conv1x1(relu(conv(up(conv(up(small)))))); no activation stands before the second up."""
        first: Any = self.output_1.weights(self.feature_dim)
        second: Any = self.output_2.weights(self.feature_dim // 2)
        last: Any = self.output_3.weights(self.last_dim)
        forms = {"direct": _output_direct, "cheap": _output_cheap}
        if self.form in forms:
            return forms[self.form](small, first, second, last)
        return jax.lax.platform_dependent(
            small, first, second, last, cpu=_output_cheap, default=_output_direct
        )


def _output_direct(small: jax.Array, first: Weights, second: Weights, last: Weights) -> jax.Array:
    half = _convolve(resample.upsample2(small), *first)
    return _convolve(jax.nn.relu(_convolve(resample.upsample2(half), *second)), *last)


def _output_cheap(small: jax.Array, first: Weights, second: Weights, last: Weights) -> jax.Array:
    half = doubled_conv.conv(small, *first)
    kernel, bias = last
    return doubled_conv.conv_in_strips(
        half, *second, then=lambda full: jax.nn.relu(full) @ kernel[0, 0] + bias
    )
