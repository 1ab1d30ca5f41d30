"""RAFT (large): Recurrent All-Pairs Field Transforms, Teed and Deng, ECCV 2020."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align3r_jax.networks.raft import network, update
from align3r_jax.networks.raft.config import DOWNSCALE, RaftConfig
from align3r_jax.networks.raft.features import Encoder, FrameFeatures
from align3r_jax.networks.raft.network import Named, PairState

Array = jax.Array


class Raft(network.FlowNetwork):
    """Flow starts at 0; a convolutional GRU adds to it. Context comes from the source frame.

    See `network.FlowNetwork` for the settings and `encode_frames`, `flow_pairs`, `__call__`.
    """

    config: RaftConfig = RaftConfig()

    def setup(self) -> None:
        config = self.config
        encoder = {"widths": config.widths, "blocks": config.blocks, "dtype": self.dtype}
        self.frame_encoder = Encoder(out_dim=config.feature_dim, norm="instance", **encoder)
        context_dim = config.hidden_dim + config.context_dim
        self.context_encoder = Encoder(out_dim=context_dim, norm="batch", **encoder)
        self.motion_encoder = update.MotionEncoder(config.motion_dims, self.dtype)
        self.gru = update.SeparableGru(
            config.hidden_dim, config.context_dim, config.motion_dims[-1], self.dtype
        )
        self.flow_head = update.Head(config.head_dim, 2, 3, self.dtype)
        self.mask_head = update.Head(config.head_dim, 9 * DOWNSCALE**2, 1, self.dtype)

    def mask(self, state: PairState) -> Array:
        """Returns the logits of the convex up-sampling, (B, h, w, 576)."""
        return 0.25 * self.mask_head(state.net)

    def _encode(self, padded: Array) -> tuple[Array, Array, Named]:
        matching, frame = self.frame_encoder(padded)
        raw, context = self.context_encoder(padded)
        named = {f"frame_{name}": x for name, x in frame.items()}
        named |= {f"context_{name}": x for name, x in context.items()}
        named["context_raw"] = raw
        net, inputs = jnp.split(raw, [self.config.hidden_dim], axis=-1)
        activated = jnp.concatenate([nn.tanh(net), nn.relu(inputs)], axis=-1)
        return matching, activated, named

    def _begin(self, source: FrameFeatures, target: FrameFeatures) -> tuple[PairState, Any, Named]:
        net, inputs = jnp.split(source.context, [self.config.hidden_dim], axis=-1)
        flow = jnp.zeros((*net.shape[:3], 2), jnp.float32)
        return PairState(net, flow), self.gru.constants(inputs), {"net": net, "inputs": inputs}

    def _update(
        self, state: PairState, correlation: Array, context: Any
    ) -> tuple[PairState, Named]:
        motion = self.motion_encoder(state.flow, correlation)
        net = self.gru(state.net, motion, context)
        delta = self.flow_head(net)
        return PairState(net, state.flow + delta), {"motion": motion, "delta": delta}
