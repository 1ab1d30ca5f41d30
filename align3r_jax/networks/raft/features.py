"""The residual encoder of both flow networks, its two norms, and the padding of images."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.networks.raft.config import DOWNSCALE

Array = jax.Array
Dtype = Any

_EPSILON = 1e-5  # of both norms


@struct.dataclass
class FrameFeatures:
    """What a flow network keeps of B frames; arrays lead with B.

    matching: (B, h, w, C) float32 features that are correlated. context: what else the updates
    need of a frame: of RAFT features (B, h, w, C) float32, of SEA-RAFT, whose context sees both
    frames, the padded image (B, 8h, 8w, 3) itself. size: (H, W) before padding.
    """

    matching: Array
    context: Array
    size: tuple[int, int] = struct.field(pytree_node=False)
    intermediates: dict[str, Array] | None = None

    def take(self, indices: Any) -> FrameFeatures:
        """Returns the features of the chosen frames."""
        return jax.tree.map(lambda x: x[indices], self)


def normalise(images: Array) -> Array:
    """Returns 2 I / 255 - 1 in float32 for images I in [0, 255] (any type)."""
    return 2 * (jnp.asarray(images).astype(jnp.float32) / 255) - 1


def margins(length: int) -> tuple[int, int]:
    """Pixels added before and behind an axis so that the grid divides it."""
    added = -length % DOWNSCALE
    return added // 2, added - added // 2


def pad(images: Array) -> Array:
    """(B, H, W, C) -> (B, 8h, 8w, C): border pixels repeated, as evenly as possible."""
    rows, columns = margins(images.shape[1]), margins(images.shape[2])
    return jnp.pad(images, ((0, 0), rows, columns, (0, 0)), mode="edge")


def crop(padded: Array, size: tuple[int, int]) -> Array:
    """(..., 8h, 8w, C) -> (..., H, W, C), undoing `pad`."""
    height, width = size
    top, left = margins(height)[0], margins(width)[0]
    return padded[..., top : top + height, left : left + width, :]


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + 1e-5) scale + bias with stored statistics (inference form).

    mean and var are leaves of the parameter tree, though nothing here trains them.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, var = self.param("mean", zeros, shape), self.param("var", ones, shape)
        factor = scale * jax.lax.rsqrt(var + _EPSILON)
        return ((x.astype(jnp.float32) - mean) * factor + bias).astype(x.dtype)


class InstanceNorm(nn.Module):
    """(x - mean) / sqrt(var + 1e-5) over the pixels of each image and channel; no parameters."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        exact = x.astype(jnp.float32)
        centred = exact - exact.mean((1, 2), keepdims=True)
        var = jnp.square(centred).mean((1, 2), keepdims=True)
        return (centred * jax.lax.rsqrt(var + _EPSILON)).astype(x.dtype)


def conv(
    features: int,
    size: int | tuple[int, int],
    dtype: Dtype,
    name: str | None = None,
    strides: int = 1,
) -> nn.Conv:
    """A convolution with bias, zero padding size // 2 on all sides."""
    kernel = (size, size) if isinstance(size, int) else size
    return nn.Conv(
        features,
        kernel,
        strides,
        padding=[(k // 2, k // 2) for k in kernel],
        dtype=dtype,
        kernel_init=nn.initializers.zeros_init(),  # `build.init_params` gives the values
        name=name,
    )


class Residual(nn.Module):
    """relu(x' + relu(norm2(conv2(relu(norm1(conv1 x)))))), x' = norm(conv 1x1 x) where needed."""

    width: int
    strides: int
    norm: type[nn.Module]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = conv(self.width, 3, self.dtype, "conv1", self.strides)(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = conv(self.width, 3, self.dtype, "conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        if self.strides != 1 or x.shape[-1] != self.width:
            x = conv(self.width, 1, self.dtype, "shortcut", self.strides)(x)
            x = self.norm(name="shortcut_norm")(x)
        return nn.relu(x + y)


class Encoder(nn.Module):
    """Images (B, 8h, 8w, C) -> features (B, h, w, out_dim) float32.

    A 7x7 stem to half resolution, then three stages of residual blocks at 1/2, 1/4 and 1/8.
    """

    widths: tuple[int, int, int]
    blocks: tuple[int, int, int]
    out_dim: int
    norm: Literal["instance", "batch"]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, dict[str, Array]]:
        """Returns the features and, by name, what each stage gave."""
        norm = InstanceNorm if self.norm == "instance" else BatchNorm
        named = {}
        x = named["stem"] = conv(self.widths[0], 7, self.dtype, "stem", 2)(images)
        x = named["stem_norm"] = norm(name="stem_norm")(x)
        x = nn.relu(x)
        for stage, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True), 1):
            for index in range(count):
                strides = 2 if stage > 1 and index == 0 else 1
                name = f"layer{stage}_{index}"
                x = Residual(width, strides, norm, self.dtype, name=name)(x)
            named[f"layer{stage}"] = x
        # The last product in float32: it costs little, and correlations live on small differences.
        return conv(self.out_dim, 1, jnp.float32, "out")(x), named
