"""RAFT and SEA-RAFT as a flow source: every frame encoded once, every directed pair computed once.

Pairs are matched directly, however far apart. Frames and pairs run in batches of one fixed size,
the last padded, so that a video costs two compilations.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from align3r_jax.config import FlowConfig
from align3r_jax.errors import UserError
from align3r_jax.networks.raft import build, correlation
from align3r_jax.networks.raft.config import DOWNSCALE, AnyFlowConfig, RaftConfig, SeaRaftConfig
from align3r_jax.networks.raft.correlation import Lookup
from align3r_jax.networks.raft.features import FrameFeatures
from align3r_jax.priors import cache, optical_flow
from align3r_jax.structs import Frames, OpticalFlow
from align3r_jax.weights import kinds
from align3r_jax.weights.store import LoadedNetwork

Pair = tuple[int, int]

MAX_MEMORY = 4 * 2**30
"""Bytes for one batch (half of it), features of frames and computed fields (a quarter each)."""
_CACHE_FORMAT = "flow_network 1"
_PIXEL_BYTES = (
    800  # activations of a pair per pixel beside the volume; the compiler reports 180-600
)
_DEFAULT_BATCH = {"cpu": 1}  # convolutions of one pair fill a CPU; elsewhere:
_ACCELERATOR_BATCH = 12


class BatchPlan(NamedTuple):
    """How pairs run: `batch` of all devices together, bytes of correlation on each device."""

    batch: int
    correlation_budget: int


class NetworkFlow:
    """A loaded flow network as a `FlowSource`.

    config: `iterations` and the consistency settings count. cache_dir: fields are kept there under
    the content of both frames, the weights and the settings, so that no pair is computed again.
    batch: pairs (and frames) computed together on each device; None: 12, on CPUs 1, or as many as
    fit. max_memory: bytes, see MAX_MEMORY; features that do not fit are computed again when
    needed, a single pair that does not fit is correlated on the fly. sharding: of a batch (B, ...)
    over devices, e.g. NamedSharding(mesh, PartitionSpec("pairs")). compute_dtype: of convolutions.
    precision: of float32 convolutions on accelerators ("highest" for parity), None: the default.

    Raises UserError for weights of another network and impossible settings.
    """

    def __init__(
        self,
        config: FlowConfig,
        loaded: LoadedNetwork,
        *,
        cache_dir: str | Path | None = None,
        batch: int | None = None,
        max_memory: int = MAX_MEMORY,
        lookup: Lookup = "auto",
        sharding: NamedSharding | None = None,
        compute_dtype: str = "float32",
        precision: str | None = None,
    ):
        if not isinstance(loaded.config, RaftConfig | SeaRaftConfig):
            raise UserError(
                f"{loaded.name} holds the weights of {kinds.get(loaded.kind).title}; expected "
                "those of RAFT or SEA-RAFT."
            )
        for name, value in (
            ("iterations", config.iterations),
            ("batch", 1 if batch is None else batch),
            ("max_memory", max_memory),
        ):
            if value < 1:
                raise UserError(f"{name}={value}: expected at least 1.")
        self.name = loaded.kind
        self._config, self._network = config, loaded.config
        self._cache_dir = cache_dir
        self._batch, self._max_memory = batch, max_memory
        self._lookup: Lookup = lookup
        self._sharding = sharding
        self._settings = (loaded.checksum, config.iterations, compute_dtype, precision or "")
        self._dtype, self._precision = jnp.dtype(compute_dtype), precision
        everywhere = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
        self._everywhere = everywhere
        self._params = jax.tree.map(
            lambda x: jax.device_put(jnp.asarray(x), everywhere), loaded.params
        )
        self._features = _Kept(max_memory // 4)
        self._fields = _Kept(max_memory // 4)
        self._functions: dict[BatchPlan, tuple[Callable[..., Any], Callable[..., Any]]] = {}

    def sharpest(self) -> NetworkFlow:
        """Returns itself: there is one quality."""
        return self

    def directed(self, frames: Frames, pairs: np.ndarray) -> OpticalFlow:
        """Returns the flow of each directed pair (D, 2), host arrays; see `FlowSource`.

        Raises UserError if the frames are too small, or the network gives numbers that are not
        finite.
        """
        images = np.asarray(frames.images)
        height, width = images.shape[1:3]
        if min(height, width) < DOWNSCALE:
            raise UserError(
                f"Flow networks need frames of at least {DOWNSCALE} pixels a side, got "
                f"{width}x{height}; use larger frames or --flow=none."
            )
        wanted = optical_flow.both_ways(pairs)
        used = sorted({frame for pair in wanted for frame in pair})
        digests = {k: cache.content_key(images[k]) for k in used}
        keys = {
            (i, j): cache.content_key(_CACHE_FORMAT, *self._settings, digests[i], digests[j])
            for i, j in wanted
        }
        flows: dict[Pair, np.ndarray] = {}
        missing = []
        for pair in wanted:
            known = self._fields.get(keys[pair])
            if known is None and (stored := cache.read(self._cache_dir, keys[pair])) is not None:
                known = stored["flow"]
            if known is None:
                missing.append(pair)
            else:
                flows[pair] = known
        for pair, flow in self._compute(images, digests, missing):
            flows[pair] = flow
            self._fields.put(keys[pair], flow)
            cache.write(self._cache_dir, keys[pair], {"flow": flow})
        return optical_flow.weigh(flows, pairs, self._config, self.name)

    def _compute(
        self, images: np.ndarray, digests: dict[int, str], pairs: list[Pair]
    ) -> Iterator[tuple[Pair, np.ndarray]]:
        """Yields the flow of each pair, in an order that meets frames again soon."""
        if not pairs:
            return
        backend, devices = self._devices()
        height, width = images.shape[1:3]
        plan = plan_batch(
            self._network, backend, height, width, self._max_memory // 2, self._batch, devices
        )
        encode, match = self._compiled(plan, backend)
        # Blocks of frames whose features fit together.
        size = max(feature_bytes(self._network, height, width), 1)
        block = max(self._max_memory // 4 // size // 2, 1)
        pairs = sorted(pairs, key=lambda p: (p[0] // block, p[1] // block, p))
        pending: tuple[Sequence[Pair], Any] | None = None
        for start in range(0, len(pairs), plan.batch):
            chunk = pairs[start : start + plan.batch]
            features = self._encoded(chunk, pairs[start:], images, digests, plan, encode)
            padded = [*chunk, *[chunk[-1]] * (plan.batch - len(chunk))]
            sources, targets = ([features[pair[end]] for pair in padded] for end in (0, 1))
            running = match(self._params, sources, targets)
            if pending is not None:  # fetched while the device works on the next batch
                yield from self._fetched(*pending)
            pending = (chunk, running)
        if pending is not None:
            yield from self._fetched(*pending)

    def _fetched(self, pairs: Sequence[Pair], flow: jax.Array) -> Iterator[tuple[Pair, np.ndarray]]:
        fields = np.asarray(jax.device_get(flow))
        for pair, field in zip(pairs, fields):  # the rest is padding
            if not np.isfinite(field).all():
                raise UserError(
                    f"{self.name} gave flow that is not finite from frame {pair[0]} to {pair[1]}: "
                    "the weights are damaged, or their numbers too large for the compute type; "
                    "try float32."
                )
            yield pair, field.copy()

    def _encoded(
        self,
        chunk: Sequence[Pair],
        ahead: Sequence[Pair],
        images: np.ndarray,
        digests: dict[int, str],
        plan: BatchPlan,
        encode: Callable[..., Any],
    ) -> dict[int, FrameFeatures]:
        """Features of the frames of `chunk`; batches are filled with frames needed later."""
        needed = list(dict.fromkeys(frame for pair in chunk for frame in pair))
        found = {k: self._features.get(digests[k]) for k in needed}
        if None not in found.values():
            return found
        lost = [
            k
            for k in dict.fromkeys(frame for pair in ahead for frame in pair)
            if found.get(k) is None and self._features.get(digests[k]) is None
        ]
        while any(found[k] is None for k in needed):
            batch, lost = lost[: plan.batch], lost[plan.batch :]
            indices = [*batch, *[batch[-1]] * (plan.batch - len(batch))]
            for frame, features in zip(batch, encode(self._params, images[indices])):
                self._features.put(digests[frame], features)
                if frame in found:
                    found[frame] = features
        return found

    def _devices(self) -> tuple[str, int]:
        """The platform, and over how many devices a batch is split."""
        if self._sharding is None:
            return jax.default_backend(), 1
        mesh, axes = self._sharding.mesh, self._sharding.spec[0] or ()
        names = (axes,) if isinstance(axes, str) else axes
        platform = self._sharding.mesh.devices.flat[0].platform
        return platform, math.prod(mesh.shape[name] for name in names)

    def _compiled(
        self, plan: BatchPlan, backend: str
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The two jitted functions, which keep frames apart: (features), (source, target)."""
        if plan not in self._functions:
            network = build.make(
                self._network,
                dtype=self._dtype,
                precision=self._precision,
                lookup=self._lookup,
                correlation_budget=plan.correlation_budget,
                backend=backend,
            )

            def encode(params: Any, images: jax.Array) -> list[FrameFeatures]:
                run = self._split(
                    lambda p, x: network.apply({"params": p}, x, method="encode_frames"), 1
                )
                features = run(params, images)
                return [features.take(k) for k in range(plan.batch)]

            def match(
                params: Any, sources: list[FrameFeatures], targets: list[FrameFeatures]
            ) -> jax.Array:
                def run(p: Any, source: FrameFeatures, target: FrameFeatures) -> jax.Array:
                    output: Any = network.apply(
                        {"params": p}, source, target, self._config.iterations, method="flow_pairs"
                    )
                    return output.flow

                stacked = (jax.tree.map(lambda *x: jnp.stack(x), *s) for s in (sources, targets))
                return self._split(run, 2)(params, *stacked)

            self._functions[plan] = (
                jax.jit(encode, out_shardings=self._everywhere),
                jax.jit(match),
            )
        return self._functions[plan]

    def _split(self, function: Callable[..., Any], arrays: int) -> Callable[..., Any]:
        """The function on every device's part of the batch."""
        if self._sharding is None:
            return function
        part = self._sharding.spec
        return jax.shard_map(
            function,
            mesh=self._sharding.mesh,
            in_specs=(PartitionSpec(), *[part] * arrays),
            out_specs=part,
            check_vma=False,
        )


class _Kept:
    """The most recently used values, up to a number of bytes."""

    def __init__(self, budget: int):
        self._budget, self._total = budget, 0
        self._values: collections.OrderedDict[str, Any] = collections.OrderedDict()

    def get(self, key: str) -> Any:
        """Returns the value, None if it is not here."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keeps a value, and drops others if they are too much together."""
        self._total -= _nbytes(self._values.pop(key, None))
        self._values[key] = value
        self._total += _nbytes(value)
        while self._total > self._budget and self._values:
            _, dropped = self._values.popitem(last=False)
            self._total -= _nbytes(dropped)


def _nbytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@functools.lru_cache(maxsize=16)
def feature_bytes(config: AnyFlowConfig, height: int, width: int) -> int:
    """Returns the memory of what is kept of one frame."""
    network = build.make(config)
    encode = functools.partial(network.apply, method="encode_frames")
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
    features = jax.eval_shape(encode, {"params": build.abstract_params(config)}, image)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(features))


def plan_batch(
    config: AnyFlowConfig,
    backend: str,
    height: int,
    width: int,
    budget: int,
    batch: int | None = None,
    devices: int = 1,
) -> BatchPlan:
    """Returns how many pairs to run together in `budget` bytes on each device.

    A pair needs its correlation volume and about 800 bytes per pixel. batch: per device, if it is
    prescribed; else 12 (CPU: 1), fewer if they do not fit, at least 1. What activations leave of
    the budget is the correlation's; where a volume does not fit, `correlation.plan_lookup` does
    without.
    """
    rows, columns = (math.ceil(side / DOWNSCALE) for side in (height, width))
    activations = _PIXEL_BYTES * rows * columns * DOWNSCALE**2
    volume = correlation.volume_bytes(1, rows, columns, config.corr_levels)
    if batch is None:
        default = _DEFAULT_BATCH.get(backend, _ACCELERATOR_BATCH)
        batch = min(max(budget // (activations + volume), 1), default)
    return BatchPlan(batch * devices, max(budget - batch * activations, budget // 8))
