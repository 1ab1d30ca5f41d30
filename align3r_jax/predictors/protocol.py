"""The interface that every pair predictor fills; alignment sees nothing else of it."""

from __future__ import annotations

from typing import Any, Protocol

from align3r_jax.priors.optical_flow import FlowSource
from align3r_jax.structs import DepthPrior, Frames, PairGraph, PairPredictions


class Predictor(Protocol):
    """Point maps and confidences for pairs of frames of one video.

    `prepare` does what depends on single frames or on the whole video once (encode the frames,
    solve for structure and motion); `predict` is then called for as many graphs as needed
    (flat: one; hierarchical: key frames, then every clip), with frame numbers of the whole video.
    """

    name: str

    def prepare(self, frames: Frames, prior: DepthPrior | None, flow: FlowSource | None) -> Any:
        """Returns a pytree of arrays for `predict`. Raises UserError if an input is missing."""
        ...

    def predict(self, state: Any, graph: PairGraph) -> PairPredictions:
        """Returns predictions for `graph.pairs`, in their order."""
        ...

    def limits(self, state: Any) -> tuple[str, ...]:
        """Returns one plain sentence per limit that a reader of the result should know."""
        ...
