"""What the pairwise network knows of single frames: computed once, used in many pairs."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
from flax import struct

# What is computed once per frame rather than in every pair: "tokens", all that the frame alone
# determines; "block", also the self-attention of either decoder's first block; "head", also the
# shallow part of either dense head. Memory against operations, see `networks.cost`.
Reuse = Literal["tokens", "block", "head"]


@struct.dataclass
class FrameFeatures:
    """What the network knows of each frame alone; every array starts with the frame axis B.

    tokens: (B, N, E) encoder tokens after their norm. decoder_tokens: (B, N, D) decoder input,
    first injection included. injections: (B, n, N, D), entry k is added behind decoder block k.
    positions: (B, N, 2) int32 (row, column). portrait: (B,) bool or None, frames stored
    transposed. has_prior: (B,) 0 or 1, None if the network has no prior branch.
    anchor (B, H, W, 3) and log_median (B,): only of anchored networks. grid: (h, w) as stored.
    intermediates: name -> array, if asked for. If asked for by `reuse`, as first and as second view
    of a pair: begun1, begun2 (B, N, D), the self-attention of decoder block 0; shallow1, shallow2
    (B, 4h, 4w, F), what the dense head makes of `tokens` alone.
    """

    tokens: jax.Array
    decoder_tokens: jax.Array
    injections: jax.Array
    positions: jax.Array
    portrait: jax.Array | None
    has_prior: jax.Array | None
    anchor: jax.Array | None
    log_median: jax.Array | None
    grid: tuple[int, int] = struct.field(pytree_node=False)
    intermediates: dict[str, jax.Array] | None = None
    begun1: jax.Array | None = None
    begun2: jax.Array | None = None
    shallow1: jax.Array | None = None
    shallow2: jax.Array | None = None

    def as_view(self, view: int) -> FrameFeatures:
        """Without what only the other view of a pair (1 or 2) needs."""
        if view == 1:
            return dataclasses.replace(self, begun2=None, shallow2=None)
        return dataclasses.replace(self, begun1=None, shallow1=None)

    def take(self, frames: Any) -> FrameFeatures:
        """The features of the frames with these indices, e.g. the first views of some pairs."""
        return jax.tree.map(lambda array: array[frames], self)
