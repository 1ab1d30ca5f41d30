"""One update of the flow: motion encoder, recurrent state (RAFT) or refinement (SEA-RAFT), heads.

The state stays float32; `dtype` is that of the convolutions.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align3r_jax.networks.raft.features import conv

Array = jax.Array
Dtype = Any


class MotionEncoder(nn.Module):
    """Correlation (B, h, w, K) and flow (B, h, w, 2) -> motion features, the last two the flow."""

    dims: tuple[int, int, int, int, int]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, flow: Array, correlation: Array) -> Array:
        corr1, corr2, flow1, flow2, out = self.dims
        c = nn.relu(conv(corr1, 1, self.dtype, "corr1")(correlation))
        c = nn.relu(conv(corr2, 3, self.dtype, "corr2")(c))
        f = nn.relu(conv(flow1, 7, self.dtype, "flow1")(flow))
        f = nn.relu(conv(flow2, 3, self.dtype, "flow2")(f))
        joint = nn.relu(conv(out - 2, 3, self.dtype, "out")(jnp.concatenate([c, f], axis=-1)))
        return jnp.concatenate([joint.astype(jnp.float32), flow], axis=-1)


class _Gate(nn.Module):
    """A convolution over [net, context, motion] whose context part is computed once.

    The context does not change over the iterations: by linearity its share of the sum, with the
    bias, is a constant (a third of the work of RAFT's gates).
    """

    features: int
    size: tuple[int, int]
    widths: tuple[int, int, int]
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        zeros = nn.initializers.zeros_init()
        shape = (*self.size, sum(self.widths), self.features)
        self.kernel = self.param("kernel", zeros, shape)
        self.bias = self.param("bias", zeros, (self.features,))

    def constant(self, context: Array) -> Array:
        net, width, _ = self.widths
        share = self._convolve(context, self.kernel[:, :, net : net + width])
        return share.astype(jnp.float32) + self.bias

    def __call__(self, net: Array, motion: Array, constant: Array) -> Array:
        first, width, _ = self.widths
        kernel = jnp.concatenate(
            [self.kernel[:, :, :first], self.kernel[:, :, first + width :]], axis=2
        )
        return (
            self._convolve(jnp.concatenate([net, motion], axis=-1), kernel).astype(jnp.float32)
            + constant
        )

    def _convolve(self, x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (1, 1),
            [(k // 2, k // 2) for k in self.size],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class SeparableGru(nn.Module):
    """Two gated passes, along rows (1 x 5), then along columns (5 x 1).

    z = sigmoid(Z [n, x]); r = sigmoid(R [n, x]); q = tanh(Q [r n, x]); n <- (1 - z) n + z q,
    x = [context, motion].
    """

    hidden_dim: int
    context_dim: int
    motion_dim: int
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        widths = (self.hidden_dim, self.context_dim, self.motion_dim)
        for index, size in ((1, (1, 5)), (2, (5, 1))):
            for gate in "zrq":
                layer = _Gate(self.hidden_dim, size, widths, self.dtype)
                setattr(self, f"{gate}{index}", layer)

    def constants(self, context: Array) -> dict[str, Array]:
        """What the context adds to every gate, the same in all iterations."""
        return {
            name: getattr(self, name).constant(context)
            for name in ("z1", "r1", "q1", "z2", "r2", "q2")
        }

    def __call__(self, net: Array, motion: Array, constants: dict[str, Array]) -> Array:
        for index in "12":

            def gate(name: str, state: Array, index: str = index) -> Array:
                return getattr(self, name + index)(state, motion, constants[name + index])

            z = nn.sigmoid(gate("z", net))
            r = nn.sigmoid(gate("r", net))
            net = (1 - z) * net + z * nn.tanh(gate("q", r * net))
        return net


class _Depthwise(nn.Module):
    """A 7 x 7 convolution of every channel by itself.

    A sum of 49 shifted products: XLA fuses them into one loop, 10 times faster on CPUs than its
    grouped convolution.
    """

    size: int = 7

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        zeros = nn.initializers.zeros_init()
        kernel = self.param("kernel", zeros, (self.size, self.size, 1, channels))
        bias = self.param("bias", zeros, (channels,))
        height, width = x.shape[1:3]
        edge = self.size // 2
        padded = jnp.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
        total = bias
        for i in range(self.size):
            for j in range(self.size):
                total = total + padded[:, i : i + height, j : j + width] * kernel[i, j, 0]
        return total


class RefineBlock(nn.Module):
    """conv1x1(a + gamma shrink(gelu(expand(norm(depthwise a))))), a = [net, x] (ConvNeXt)."""

    out_dim: int
    inner_dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, net: Array, x: Array) -> Array:
        a = jnp.concatenate([net, x], axis=-1)
        t = _Depthwise(name="depthwise")(a)
        t = nn.LayerNorm(epsilon=1e-6, name="norm")(t)
        zeros = nn.initializers.zeros_init()
        t = nn.Dense(self.inner_dim, dtype=self.dtype, kernel_init=zeros, name="expand")(t)
        t = nn.gelu(t, approximate=False)
        t = nn.Dense(a.shape[-1], dtype=self.dtype, kernel_init=zeros, name="shrink")(t)
        t = t.astype(jnp.float32) * self.param("gamma", zeros, (a.shape[-1],))
        return conv(self.out_dim, 1, self.dtype, "out")(a + t).astype(jnp.float32)


class Head(nn.Module):
    """conv(relu(conv 3x3)): what is read off the state; `out_size` is the last kernel's side.

    Flow (out_size 3) leaves in float32, its last product included; masks (1) in `dtype`.
    """

    inner_dim: int
    out_dim: int
    out_size: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, net: Array) -> Array:
        x = nn.relu(conv(self.inner_dim, 3, self.dtype, "conv1")(net))
        last = jnp.float32 if self.out_size == 3 else self.dtype
        return conv(self.out_dim, self.out_size, last, "conv2")(x).astype(jnp.float32)
