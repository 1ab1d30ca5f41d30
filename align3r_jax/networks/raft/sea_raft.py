"""SEA-RAFT: Simple, Efficient, Accurate RAFT, Wang, Lipson and Deng, ECCV 2024."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from align3r_jax.networks.raft import network, update
from align3r_jax.networks.raft.config import DOWNSCALE, SeaRaftConfig
from align3r_jax.networks.raft.features import Encoder, FrameFeatures, conv
from align3r_jax.networks.raft.network import Named, PairState

Array = jax.Array

_OUTPUTS = 6  # flow (2), logits (2) and log scales (2) of the mixture


class SeaRaft(network.FlowNetwork):
    """Flow starts from a regression; convolutional blocks refine it. Context sees both frames.

    See `network.FlowNetwork` for the settings and `encode_frames`, `flow_pairs`, `__call__`.
    """

    config: SeaRaftConfig = SeaRaftConfig()
    starts_with_prediction = True

    def setup(self) -> None:
        config = self.config
        encoder = {"widths": config.widths, "blocks": config.blocks, "dtype": self.dtype}
        context_dim = config.hidden_dim + config.context_dim
        self.frame_encoder = Encoder(out_dim=config.feature_dim, norm="batch", **encoder)
        self.context_encoder = Encoder(out_dim=context_dim, norm="batch", **encoder)
        self.start = conv(context_dim, 3, self.dtype)
        self.motion_encoder = update.MotionEncoder(config.motion_dims, self.dtype)
        self.refine = [
            update.RefineBlock(
                config.hidden_dim, config.refine_expansion * config.hidden_dim, self.dtype
            )
            for _ in range(config.refine_blocks)
        ]
        self.flow_head = update.Head(config.head_dim, _OUTPUTS, 3, self.dtype)
        self.mask_head = update.Head(config.head_dim, 9 * DOWNSCALE**2, 1, self.dtype)

    def mask(self, state: PairState) -> Array:
        """Returns the logits of the convex up-sampling, (B, h, w, 576)."""
        return 0.25 * self.mask_head(state.net)

    def _encode(self, padded: Array) -> tuple[Array, Array, Named]:
        matching, frame = self.frame_encoder(padded)
        named = {f"frame_{name}": x for name, x in frame.items()}
        return matching, padded, named

    def _begin(self, source: FrameFeatures, target: FrameFeatures) -> tuple[PairState, Any, Named]:
        both = jnp.concatenate([source.context, target.context], axis=-1)
        raw, named = self.context_encoder(both)
        started = self.start(raw).astype(jnp.float32)
        net, context = jnp.split(started, [self.config.hidden_dim], axis=-1)
        head = self.flow_head(net)
        named = {f"context_{name}": x for name, x in named.items()}
        named |= {"context_raw": raw, "start": started, "head": head}
        return PairState(net, head[..., :2], head[..., 2:]), context, named

    def _update(
        self, state: PairState, correlation: Array, context: Any
    ) -> tuple[PairState, Named]:
        motion = self.motion_encoder(state.flow, correlation)
        x = jnp.concatenate([context, motion], axis=-1)
        named, net = {"motion": motion}, state.net
        for index, block in enumerate(self.refine):
            net = named[f"refine_{index}"] = block(net, x)
        head = named["head"] = self.flow_head(net)
        return PairState(net, state.flow + head[..., :2], head[..., 2:]), named


def mixture(info: Array, var_max: float = 10.0, var_min: float = 0.0) -> tuple[Array, Array]:
    """Returns (weights, log scales b) of the two Laplace components, each (..., 2).

    p(d) = sum_k w_k exp(-|d - flow| exp(-b_k)) / (2 exp(b_k)) for each component d of the flow
    (SEA-RAFT, section 3.2); w = softmax(info[:2]), b_0 = clip(info[2], 0, var_max),
    b_1 = clip(info[3], var_min, 0). info: (..., 4) of `FlowOutput`; var_max, var_min:
    as in `SeaRaftConfig`.
    """
    wide = jnp.clip(info[..., 2], min=0, max=var_max)
    narrow = jnp.clip(info[..., 3], min=var_min, max=0)
    return jax.nn.softmax(info[..., :2], axis=-1), jnp.stack([wide, narrow], axis=-1)


def uncertainty(info: Array, var_max: float = 10.0, var_min: float = 0.0) -> Array:
    """sum_k w_k b_k of `mixture`, (...): expected log scale of the error, 0 where it is certain."""
    weights, log_scales = mixture(info, var_max, var_min)
    return (weights * log_scales).sum(-1)


def negative_log_likelihood(
    flow: Array, info: Array, target: Array, var_max: float = 10.0, var_min: float = 0.0
) -> Array:
    """-log p(target) under `mixture`, per component of the flow.

    flow, target: (..., 2) pixels. info: (..., 4). Returns (..., 2).
    """
    _, log_scales = mixture(info, var_max, var_min)
    distance = jnp.abs(target - flow)[..., None]
    log_scales, logits = log_scales[..., None, :], info[..., None, :2]
    parts = logits - math.log(2) - log_scales - distance * jnp.exp(-log_scales)
    return jax.nn.logsumexp(logits, axis=-1) - jax.nn.logsumexp(parts, axis=-1)
