"""What turns pictures into results one by one: flow alone, or a predictor of pairs.

    engine = engines.make(config, ...)
    for frame in frames: result = engine.push(image, prior)

An engine keeps one state of constant size and nothing else of the frames before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.alignment import mask_outline
from align3r_jax.config import ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.feedforward import flow, pairs, tracks
from align3r_jax.feedforward.anchor import FrameResult
from align3r_jax.networks.align3r import FrameFeatures
from align3r_jax.predictors import network_programs
from align3r_jax.predictors.protocol import Predictor
from align3r_jax.priors import prior_map
from align3r_jax.priors.optical_flow import FlowSource
from align3r_jax.structs import DepthPrior, PairGraph, PairPredictions, WorkingSize
from align3r_jax.weights.store import LoadedNetwork


class Engine(Protocol):
    """Takes one frame after the other; `name` says what of."""

    name: str

    def push(self, image: np.ndarray, prior: DepthPrior | None) -> FrameResult:
        """Returns the result of the next frame, NumPy arrays.

        image: (H, W, 3) uint8 at working size, always the same. prior: of this one frame.
        """
        ...


class FlowEngine:
    """Optical flow and geometry, no weights (`feedforward.flow`)."""

    name = "flow"

    def __init__(self, config: ReconstructConfig, source: FlowSource | None):
        """source: a flow network's; None for OpenCV's DIS."""
        self._config = config.feedforward
        self._outlines = config.alignment.outline_masks
        self._tracker = tracks.Tracker(config.flow, source)
        self._state: flow.FlowState | None = None

    def push(self, image: np.ndarray, prior: DepthPrior | None) -> FrameResult:
        """See `Engine`."""
        seen = self._tracker.advance(image)
        depth = None if prior is None else np.asarray(prior.depth[0], np.float32)
        if self._state is None:
            self._state, result = flow.init(image, depth, _focal_of(prior))
        else:
            self._state, result = flow.step(self._state, image, depth, seen, self._config)
        result = jax.device_get(result)
        if result.is_anchor:
            self._tracker.set_anchor()
        return _outlined(result, image) if self._outlines else result


def _outlined(result: FrameResult, image: np.ndarray) -> FrameResult:
    """The result with its mask drawn to the edges of its image."""
    masks = mask_outline.to_image_edges(result.dynamic_mask[None], np.asarray(image)[None])
    return dataclasses.replace(result, dynamic_mask=masks[0])


# (number, image, prior) -> features of the frame, any tree of arrays.
Encode = Callable[[int, np.ndarray, DepthPrior | None], Any]


class PairEngine:
    """Point maps of pairs (`feedforward.pairs`), from whatever predicts them."""

    def __init__(
        self,
        name: str,
        encode: Encode,
        decode: pairs.Decode,
        config: ReconstructConfig,
        masks_from: FlowSource | bool = True,
    ):
        """masks_from: flow for the motion masks, True for OpenCV's DIS, False for no masks."""
        self.name = name
        self._encode, self._decode, self._config = encode, decode, config.feedforward
        self._outlines = config.alignment.outline_masks
        self._count = 0
        self._state: pairs.PairState | None = None
        self._tracker = None
        if masks_from is not False and config.feedforward.motion_masks:
            source = None if masks_from is True else masks_from
            self._tracker = tracks.Tracker(config.flow, source, anchor=False)

    def push(self, image: np.ndarray, prior: DepthPrior | None) -> FrameResult:
        """See `Engine`."""
        past = None if self._tracker is None else self._tracker.advance(image).past
        features = self._encode(self._count, image, prior)
        if self._state is None:
            self._state, result = pairs.init(features, self._decode, _focal_of(prior))
        else:
            self._state, result = pairs.step(
                self._state, features, self._decode, self._config, past
            )
        self._count += 1
        result = jax.device_get(result)
        return _outlined(result, image) if self._outlines else result


def make(
    config: ReconstructConfig,
    *,
    model: LoadedNetwork | None,
    source: FlowSource | None,
    size: WorkingSize,
) -> Engine:
    """Returns the engine of `config.predictor`; "auto" is the network if there is one, else flow.

    source: optical flow, None for none. Raises UserError for settings that cannot work together.
    """
    kind = config.predictor
    if kind == "auto":
        kind = "flow" if model is None else "network"
    if kind == "network":
        if model is None:
            raise UserError(
                "--predictor=network needs weights: --weights=DIR or an official file; without "
                "them use --predictor=flow."
            )
        return network_engine(model, config, size, _own(source) if source else False)
    if model is not None:
        raise UserError(
            f"The flow predictor uses no weights, but {model.name} was given; drop --weights or "
            "use --predictor=network."
        )
    if source is None:
        raise UserError(
            "Without weights the real-time mode needs optical flow, but --flow=none was given; use "
            "--flow=dis, raft or sea_raft, or give network weights with --weights=DIR."
        )
    return FlowEngine(config, None if source.name == "dis" else source)


def network_engine(
    model: LoadedNetwork,
    config: ReconstructConfig,
    size: WorkingSize,
    masks_from: FlowSource | bool = True,
) -> PairEngine:
    """Returns an engine of a pairwise network: one frame encoded, one batch of two pairs decoded.

    Features stay on the device. masks_from: see `PairEngine`.
    """
    params = jax.tree.map(jnp.asarray, model.params)
    programs = (network_programs.encode_program, network_programs.decode_program)
    encoder, decoder = (jax.jit(make(model.config, config.compute_dtype)) for make in programs)
    needs_prior = model.config.prior_branch and model.config.prior_encoding == "minmax"

    def encode(number: int, image: np.ndarray, prior: DepthPrior | None) -> FrameFeatures:
        if prior is None and needs_prior:
            raise UserError(
                f"{model.name} needs a depth prior for every frame, got none; use the prior it was "
                "trained with, small or plane."
            )
        if prior is not None and not model.config.prior_branch:
            raise UserError(
                f"{model.name} has no prior branch and cannot use the depth prior '{prior.name}'; "
                "use --prior=none, or Align3R weights."
            )
        maps = has_prior = None
        if prior is not None:
            maps = prior_map.prior_maps(prior, model.config, size)
            has_prior = np.isfinite(np.asarray(prior.depth)).any(axis=(1, 2))
        return encoder(params, image[None], maps, has_prior)

    @jax.jit
    def both(anchor: FrameFeatures, frame: FrameFeatures) -> tuple[FrameFeatures, FrameFeatures]:
        def joined(first: Any, second: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)

        return joined(anchor, frame), joined(frame, anchor)

    def decode(anchor: FrameFeatures, frame: FrameFeatures) -> PairPredictions:
        return decoder(params, *both(anchor, frame))

    return PairEngine(model.name, encode, decode, config, masks_from)


def predictor_engine(
    predictor: Predictor, state: Any, num_frames: int, config: ReconstructConfig,
    masks_from: FlowSource | bool = True,
) -> PairEngine:  # fmt: skip
    """Returns an engine of any predictor of a whole video that is prepared already.

    state: what its `prepare` returned; what it looked at decides whether results are causal.
    """

    def encode(number: int, image: np.ndarray, prior: DepthPrior | None) -> np.int32:
        del image, prior
        return np.int32(number)

    def decode(anchor: Any, frame: Any) -> PairPredictions:
        i, j = int(anchor), int(frame)
        graph = PairGraph(np.array([[i, j], [j, i]], np.int32), num_frames, True, "feedforward")
        return predictor.predict(state, graph)

    return PairEngine(predictor.name, encode, decode, config, masks_from)


def _own(source: FlowSource) -> FlowSource | bool:
    """OpenCV's DIS is searched frame by frame here, from the flow found so far; others as is."""
    return True if source.name == "dis" else source


def _focal_of(prior: DepthPrior | None) -> float | None:
    """The focal in pixels of the working size that the first frame's prior knows, if any."""
    if prior is None or prior.focal is None:
        return None
    return float(np.asarray(prior.focal).reshape(-1)[0])
