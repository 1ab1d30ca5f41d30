"""What RAFT and SEA-RAFT share: frames encoded once, pairs iterated under one scan.

A subclass says how frames are encoded, how a pair begins and what one update does.
"""

from __future__ import annotations

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from align3r_jax.geometry import warp
from align3r_jax.networks.raft import correlation as correlation_lib
from align3r_jax.networks.raft import features as features_lib
from align3r_jax.networks.raft.config import AnyFlowConfig
from align3r_jax.networks.raft.correlation import Correlation, Lookup
from align3r_jax.networks.raft.features import FrameFeatures
from align3r_jax.networks.raft.upsample import convex_upsample

Array = jax.Array
Dtype = Any
Named = dict[str, Array]

_CORRELATION_BUDGET = 2 << 30  # bytes of correlation volume before it is computed on the fly


@struct.dataclass
class PairState:
    """What an update changes: net (B, h, w, C); flow (B, h, w, 2) in cells of 8 pixels, (x, y);
    info (B, h, w, 4) of SEA-RAFT, else None. All float32.
    """

    net: Array
    flow: Array
    info: Array | None = None


@struct.dataclass
class BegunPair:
    """A pair before its first update: `context` is what all updates see beside correlation."""

    state: PairState
    correlation: Correlation
    context: Any
    intermediates: Named


@struct.dataclass
class FlowOutput:
    """Flow of B pairs; pixel p of the source lands on p + flow in the target.

    flow: (B, H, W, 2) float32 pixels (x, y). flow_low: (B, h, w, 2), the same before up-sampling,
    in cells of 8 pixels, padding included. info: (B, H, W, 4) of SEA-RAFT, two logits and two log
    scales (`sea_raft.uncertainty`), else None. iterates, iterates_low: (K, ...) flow and flow_low
    of every prediction on request (SEA-RAFT's first is the regression before any update).
    """

    flow: Array
    flow_low: Array
    info: Array | None = None
    iterates: Array | None = None
    iterates_low: Array | None = None


class FlowNetwork(nn.Module):
    """Base of both networks.

    dtype: of the convolutions; correlation, positions, state and flow are float32 whatever it is.
    precision: of float32 convolutions on accelerators ("highest" for parity; None: the device's
    default). lookup, correlation_budget, backend: how correlations are read, see
    `correlation.plan_lookup` (backend None: the default one).
    """

    config: AnyFlowConfig
    dtype: Dtype = jnp.float32
    precision: str | None = None
    lookup: Lookup = "auto"
    correlation_budget: int = _CORRELATION_BUDGET
    backend: str | None = None

    def encode_frames(self, images: Array, return_intermediates: bool = False) -> FrameFeatures:
        """Returns what the network needs of each frame, whichever pairs it is in.

        images: (B, H, W, 3) RGB in [0, 255], any type and size; sides that are no multiples of 8
        are padded with their border.
        """
        _, height, width, _ = images.shape
        padded = features_lib.pad(features_lib.normalise(images))
        with self._precision():
            matching, context, named = self._encode(padded)
        return FrameFeatures(
            matching, context, (height, width), named if return_intermediates else None
        )

    def begin(self, source: FrameFeatures, target: FrameFeatures) -> BegunPair:
        """Returns B pairs (source -> target) before their first update."""
        batch, height, width, _ = source.matching.shape
        levels, radius = self.config.corr_levels, self.config.corr_radius
        backend = self.backend or jax.default_backend()
        plan = correlation_lib.plan_lookup(
            self.lookup, backend, batch, height, width, levels, self.correlation_budget
        )
        correlation = correlation_lib.correlate(
            source.matching, target.matching, levels, radius, plan
        )
        with self._precision():
            state, context, named = self._begin(source, target)
        return BegunPair(state, correlation, context, named)

    def step(self, state: PairState, begun: BegunPair) -> tuple[PairState, Named]:
        """Returns the state after one update, and intermediate results by name."""
        _, height, width, _ = state.flow.shape
        found = begun.correlation.lookup(warp.pixel_grid(height, width) + state.flow)
        with self._precision():
            updated, named = self._update(state, found, begun.context)
        return updated, {"correlation": found, **named}

    def flow_pairs(
        self,
        source: FrameFeatures,
        target: FrameFeatures,
        iterations: int | None = None,
        all_iterations: bool = False,
    ) -> FlowOutput:
        """Returns the flow of B pairs from the features of their frames.

        iterations: number of updates (static), None: `config.iterations`. all_iterations: return
        every prediction too, each up-sampled; otherwise only the last is.
        """
        begun = self.begin(source, target)
        size = source.size

        def update(
            network: FlowNetwork, state: PairState, _: None
        ) -> tuple[PairState, tuple[Array, Array] | None]:
            state = network.step(state, begun)[0]
            if not all_iterations:
                return state, None
            return state, (network.upsampled_flow(state, size), state.flow)

        scan = nn.scan(
            update,
            variable_broadcast="params",
            split_rngs={"params": False},
            length=self.config.iterations if iterations is None else iterations,
        )
        state, kept = scan(self, begun.state, None)
        if kept is not None and self.starts_with_prediction:
            first = (self.upsampled_flow(begun.state, size), begun.state.flow)
            kept = jax.tree.map(lambda x, later: jnp.concatenate([x[None], later]), first, kept)
        flow, info = self._upsampled(state, size)
        return FlowOutput(flow, state.flow, info, *(kept or (None, None)))

    def upsampled_flow(self, state: PairState, size: tuple[int, int]) -> Array:
        """Returns the flow of a state at full size, (B, H, W, 2) pixels."""
        return self._upsampled(state, size)[0]

    def __call__(self, images1: Array, images2: Array, iterations: int | None = None) -> FlowOutput:
        """flow_pairs of images (B, H, W, 3) in [0, 255], both encoded as one batch."""
        batch = images1.shape[0]
        features = self.encode_frames(jnp.concatenate([images1, images2]))
        return self.flow_pairs(
            features.take(slice(batch)), features.take(slice(batch, None)), iterations
        )

    def _upsampled(self, state: PairState, size: tuple[int, int]) -> tuple[Array, Array | None]:
        with self._precision():
            mask = self.mask(state)
        flow = features_lib.crop(convex_upsample(8 * state.flow, mask), size)
        if state.info is None:
            return flow, None
        return flow, features_lib.crop(convex_upsample(state.info, mask), size)

    def _precision(self) -> contextlib.AbstractContextManager:
        if self.precision is None:
            return contextlib.nullcontext()
        return jax.default_matmul_precision(self.precision)

    # ---- what a network defines

    starts_with_prediction = False  # the first state is a prediction already

    def mask(self, state: PairState) -> Array:
        """Returns the logits of the convex up-sampling, (B, h, w, 576)."""
        raise NotImplementedError

    def _encode(self, padded: Array) -> tuple[Array, Array, Named]:
        raise NotImplementedError

    def _begin(self, source: FrameFeatures, target: FrameFeatures) -> tuple[PairState, Any, Named]:
        raise NotImplementedError

    def _update(
        self, state: PairState, correlation: Array, context: Any
    ) -> tuple[PairState, Named]:
        raise NotImplementedError
