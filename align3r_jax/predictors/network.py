"""The pairwise network as a predictor: every frame encoded once, pairs decoded in fixed batches.

Of long videos the features of a window of frames are kept, and computed again when needed again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.errors import UserError
from align3r_jax.networks.frame_features import FrameFeatures, Reuse
from align3r_jax.predictors import network_mesh, network_programs
from align3r_jax.predictors.network_window import FeatureWindow, order_for_reuse
from align3r_jax.priors import prior_map
from align3r_jax.priors.optical_flow import FlowSource
from align3r_jax.structs import DepthPrior, Frames, PairGraph, PairPredictions, WorkingSize
from align3r_jax.weights import placement
from align3r_jax.weights.store import LoadedNetwork

_REFINE_OFFSETS = (-3, -1, 1, 3)  # neighbours whose pairs refine a frame's depth


@struct.dataclass
class FrameInputs:
    """What features are computed from when not all are kept. images: (T, H, W, 3) uint8.

    prior: of all frames, or None. has_prior: (T,) bool, None without a prior.
    """

    images: np.ndarray
    prior: DepthPrior | None
    has_prior: np.ndarray | None
    size: WorkingSize = struct.field(pytree_node=False)


class NetworkPredictor:
    """Predicts pairs with a pairwise network; fills the `Predictor` protocol.

    pair_batch: frames encoded, and pairs decoded, together; the last batch is padded, so each
    of the two functions is compiled once per frame size. compute_dtype: of the matrix products
    ("float32", "bfloat16"). precision: of float32 products on accelerators, None = the default.
    frames_kept: frames whose features are kept; None: all of a video. reuse: what is computed once
    per frame (`networks.frame_features`). feature_memory: bytes that features may take on the
    device; those of a video that needs more live on the host, a window of frames on the device.
    None: half of what is free there. Parameters that lie on a mesh (`weights.placement`) divide
    every batch over its devices; each has the features of all frames. results: where predictions
    end up, "host" as NumPy arrays or "device".
    """

    def __init__(
        self,
        network: LoadedNetwork,
        pair_batch: int = 4,
        compute_dtype: str = "float32",
        precision: str | None = None,
        frames_kept: int | None = None,
        reuse: Reuse = "tokens",
        feature_memory: int | None = None,
        results: Literal["host", "device"] = "host",
    ):
        if pair_batch < 1:
            raise UserError(f"pair_batch={pair_batch}: expected at least 1.")
        self.name = network.name
        self.config = network.config
        self._mesh = placement.mesh_of(network.params)
        devices = 1 if self._mesh is None else self._mesh.size
        self._batch = math.ceil(pair_batch / devices) * devices
        self._frames_kept = frames_kept
        self._feature_memory = feature_memory
        self._results = results
        self._kept: dict[int, FrameFeatures] = {}  # of the frames of `_kept_of`, oldest first
        self._kept_of: FrameInputs | None = None
        self._moved: tuple[FrameFeatures, FrameFeatures] | None = None  # on the host, on the device
        self._params = network_programs.stored_weights(network.params, compute_dtype)
        settings = (network.config, compute_dtype, precision)
        encode = network_programs.encode_program(*settings, reuse=reuse)
        decode = network_programs.decode_program(*settings)
        if self._mesh is not None:
            encode = network_mesh.over_mesh(encode, self._mesh, whole=True)
            decode = network_mesh.over_mesh(decode, self._mesh, whole=False)
        self._encode, self._decode = jax.jit(encode), jax.jit(decode)
        self._pick = jax.jit(_pick, static_argnums=2)
        self._write = jax.jit(_write, donate_argnums=0)

    def prepare(
        self, frames: Frames, prior: DepthPrior | None, flow: FlowSource | None = None
    ) -> FrameFeatures | FrameInputs:
        """Returns the features of all frames, on the device if they fit there, else NumPy arrays.

        Their inputs if they are too many to be kept at all. Optical flow is of no use here.
        prior: None if the network has no prior branch, or was trained to do without (anchored
        networks). Frames whose prior is missing everywhere are encoded without it. Raises
        UserError if prior and network do not fit.
        """
        del flow
        images = np.asarray(frames.check().images)
        has_prior = self._check_prior(frames, prior)
        inputs = FrameInputs(images, prior, has_prior, frames.size)
        if self._frames_kept is not None and len(images) > self._frames_kept:
            return inputs
        return self._features(inputs, np.arange(len(images)))

    def _features(
        self, inputs: FrameInputs, frames: np.ndarray, on_host: bool = False
    ) -> FrameFeatures:
        """Returns the features of some frames, on the device if they fit and may stay there."""
        store: FrameFeatures | None = None
        pending: tuple[FrameFeatures, slice] | None = None
        count = len(frames)
        for indices, start in _windows(count, self._batch):
            chosen = frames[indices]
            maps = has_prior = None
            if inputs.prior is not None:
                maps = prior_map.prior_maps(_of(inputs.prior, chosen), self.config, inputs.size)
                has_prior = np.asarray(inputs.has_prior)[chosen]
            part = self._encode(self._params, inputs.images[chosen], maps, has_prior)
            part = part.take(slice(count)) if count < self._batch else part
            if store is None:
                needed = count * _bytes(part) / len(part.tokens)
                fits = not on_host and needed <= self._device_memory()
                make = self._zeros if fits else np.empty
                store = jax.tree.map(
                    lambda leaf, make=make: make((count, *leaf.shape[1:]), leaf.dtype), part
                )
            if fits:
                store = self._write(store, part, start)
                continue
            _start_fetching(part)
            if pending is not None:  # fetched while the device works on the next batch
                _put_rows(store, *pending)
            pending = part, slice(start, start + self._batch)
        if pending is not None:
            _put_rows(store, *pending)
        assert store is not None
        return store

    def _window(self, inputs: FrameInputs, frames: np.ndarray) -> FrameFeatures:
        """Returns the features of some frames; the last `frames_kept` ones are remembered."""
        if self._kept_of is not inputs:
            self._kept_of, self._kept = inputs, {}
        missing = [int(frame) for frame in frames if int(frame) not in self._kept]
        if missing:
            found = self._features(inputs, np.array(missing), on_host=True)
            self._kept |= {
                frame: jax.tree.map(lambda a, k=k: a[k], found) for k, frame in enumerate(missing)
            }
        wanted = [self._kept.pop(int(frame)) for frame in frames]
        self._kept |= dict(zip((int(frame) for frame in frames), wanted))
        for frame in list(self._kept)[: max(0, len(self._kept) - (self._frames_kept or 0))]:
            del self._kept[frame]
        return jax.tree.map(lambda *rows: np.stack(rows), *wanted)

    def predict(self, state: FrameFeatures | FrameInputs, graph: PairGraph) -> PairPredictions:
        """Returns the predictions of the graph's pairs in their order, float32."""
        pairs = graph.pairs
        passing = isinstance(state, FrameInputs)
        if isinstance(state, FrameInputs):
            frames, local = np.unique(pairs, return_inverse=True)
            state, pairs = self._window(state, frames), local.reshape(pairs.shape)
        state, slots = self._placed(state, keep=not passing)
        order = np.arange(len(pairs)) if slots is None else order_for_reuse(pairs, slots)
        steps = [order[indices] for indices in _batches(len(order), self._batch)]
        window = None
        if slots is not None:
            window = FeatureWindow(state, [tuple(pairs[step].T) for step in steps], slots)
        found = _Results(len(pairs), self._results == "host")
        pending: tuple[np.ndarray, PairPredictions] | None = None
        for number, step in enumerate(steps):
            if window is None:
                first, second = (self._pick(state, pairs[step, k], k + 1) for k in (0, 1))
            else:
                first, second = window.views(number)
            running = self._decode(self._params, first, second)
            _start_fetching(running if found.on_host else None)
            if window is not None:
                window.load(number + 1)
            if pending is not None:  # fetched while the device works on the next batch
                found.put(*pending)
            pending = step, running
        assert pending is not None  # a graph has pairs
        found.put(*pending)
        return found.all().check(graph)

    def _placed(self, state: FrameFeatures, keep: bool) -> tuple[FrameFeatures, int | None]:
        """Returns the features to decode from, and how many frames fit the device if not all do.

        keep: what is moved to the device stays there for the next graph.
        """
        if isinstance(state.tokens, jax.Array):
            return state, None
        if self._moved is not None and self._moved[0] is state:
            return self._moved[1], None
        memory, size = self._device_memory(), _bytes(state)
        if size <= memory:
            placed = jax.device_put(state)
            self._moved = (state, placed) if keep else None
            return placed, None
        count = len(state.tokens)
        return state, max(4 * self._batch, int(memory * count / size))  # two steps at least

    def _zeros(self, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        place = None if self._mesh is None else network_mesh.everywhere(self._mesh)
        return jnp.zeros(shape, dtype, device=place)

    def _device_memory(self) -> float:
        """Bytes that features may take on the device; a CPU's memory is the host's."""
        if self._feature_memory is not None:
            return self._feature_memory
        known = jax.local_devices()[0].memory_stats()
        if not known or "bytes_limit" not in known:
            return math.inf
        return (known["bytes_limit"] - known["bytes_in_use"]) / 2

    def limits(self, state: FrameFeatures | FrameInputs) -> tuple[str, ...]:
        """Returns one plain sentence per limit of these features."""
        if state.has_prior is None or np.all(state.has_prior):
            return ()
        missing = int(np.sum(np.asarray(state.has_prior) == 0))
        return (
            f"{missing} of {len(state.has_prior)} frames came without a depth prior; the network "
            f"{self.name} saw only their images, its depth is weaker there.",
        )

    def _check_prior(self, frames: Frames, prior: DepthPrior | None) -> np.ndarray | None:
        """Returns (T,) bool, which frames have a prior, None without one."""
        if prior is None:
            if self.config.prior_branch and self.config.prior_encoding == "minmax":
                raise UserError(
                    f"{self.name} needs a depth prior for every frame, got none; choose one "
                    "(files of the monocular network it was trained with work best)."
                )
            return None
        if not self.config.prior_branch:
            raise UserError(
                f"{self.name} has no prior branch and cannot use the depth prior "
                f"'{prior.name}'; run it without a prior, or use Align3R weights."
            )
        if len(prior.depth) != frames.num_frames:
            raise UserError(
                f"The depth prior has {len(prior.depth)} frames, the video {frames.num_frames}; "
                "they must correspond one to one."
            )
        return np.array([np.isfinite(depth).any() for depth in prior.depth])


def refine_depth(predictor: NetworkPredictor, frames: Frames, prior: DepthPrior) -> DepthPrior:
    """Returns the prior cleaned by an anchored network, at working size and in the same scale.

    log depth = sum_k c_k (log z_k + log median) / sum_k c_k over the pairs k of the frame with
    neighbours 1 and 3 frames away; z_k the depth that pair gives its first view, in units of the
    prior's median, c_k its confidence minus the lowest possible one. Missing depth is filled;
    frames without any prior stay missing. Raises UserError if the network is not anchored.
    """
    if predictor.config.output != "anchored":
        raise UserError(
            f"{predictor.name} predicts points in a scale of its own; only an anchored network "
            "(align3r_small) refines a prior."
        )
    count = frames.num_frames
    pairs = [
        (i, i + offset)
        for i in range(count)
        for offset in _REFINE_OFFSETS
        if 0 <= i + offset < count
    ] or [(0, 0)]
    graph = PairGraph(np.array(pairs, np.int32), count, symmetric=False, name="refine")
    state = predictor.prepare(frames, prior)
    assert isinstance(state, FrameFeatures)  # a predictor that keeps all
    predictions = predictor.predict(state, graph)

    weight = predictions.confidence1 - predictor.config.conf_min + 1e-3
    log_depth = np.log(np.maximum(predictions.pointmap1[..., 2], 1e-6))
    total = np.zeros_like(weight, shape=(count, *weight.shape[1:]))
    weighted = np.zeros_like(total)
    np.add.at(total, graph.pairs[:, 0], weight)
    np.add.at(weighted, graph.pairs[:, 0], weight * log_depth)
    depth = np.exp(weighted / total + np.asarray(state.log_median)[:, None, None])
    depth = np.where(np.asarray(state.has_prior)[:, None, None] > 0, depth, np.nan)
    return DepthPrior(
        native=depth.astype(np.float32),
        depth=depth.astype(np.float32),
        focal=prior.focal,
        name=f"{prior.name}, refined by {predictor.name}",
        inverse=False,
        metric=prior.metric,
    )


def _of(prior: DepthPrior, frames: np.ndarray) -> DepthPrior:
    focal = None if prior.focal is None else np.asarray(prior.focal)[frames]
    native, depth = np.asarray(prior.native)[frames], np.asarray(prior.depth)[frames]
    return dataclasses.replace(prior, native=native, depth=depth, focal=focal)


def _batches(count: int, size: int) -> list[np.ndarray]:
    """Index arrays of equal size that cover range(count); the last index fills the last one."""
    padded = np.minimum(np.arange(math.ceil(count / size) * size), count - 1)
    return list(padded.reshape(-1, size))


def _windows(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Runs of `size` indices and their starts that cover range(count); the last ends with it.

    Fewer than `size` in all: the last index fills the one run.
    """
    for start in range(0, count, size):
        begin = max(0, min(start, count - size))
        yield np.minimum(np.arange(begin, begin + size), count - 1), begin


def _bytes(features: FrameFeatures) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(features))


def _pick(features: FrameFeatures, frames: jax.Array, view: int) -> FrameFeatures:
    return features.as_view(view).take(frames)


def _write(store: FrameFeatures, part: FrameFeatures, start: jax.Array) -> FrameFeatures:
    def put(rows: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(rows, new, start, 0)

    return jax.tree.map(put, store, part)


def _put_rows(store: Any, part: Any, rows: Any) -> None:
    """Copies what the device computed into NumPy arrays."""

    def put(array: np.ndarray, new: jax.Array) -> None:
        array[rows] = np.asarray(new)

    jax.tree.map(put, store, part)


def _start_fetching(tree: Any) -> None:
    for leaf in jax.tree.leaves(tree):
        leaf.copy_to_host_async()


class _Results:
    """Predictions of all pairs, filled batch by batch, in the graph's order."""

    def __init__(self, count: int, on_host: bool):
        self.on_host = on_host
        self._count = count
        self._arrays: PairPredictions | None = None
        self._parts: list[PairPredictions] = []
        self._places: list[np.ndarray] = []

    def put(self, places: np.ndarray, part: PairPredictions) -> None:
        """Takes a batch; places: (B,) where its pairs stand in the graph."""
        if not self.on_host:
            self._parts.append(part)
            self._places.append(places)
            return
        if self._arrays is None:
            self._arrays = jax.tree.map(
                lambda leaf: np.empty((self._count, *leaf.shape[1:]), leaf.dtype), part
            )
        _put_rows(self._arrays, part, places)

    def all(self) -> PairPredictions:
        """Returns the predictions of all pairs."""
        if self._arrays is not None:
            return self._arrays
        _, row = np.unique(np.concatenate(self._places), return_index=True)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts)[row], *self._parts)
