"""RAFT and SEA-RAFT as a flow source: every frame encoded once, every directed pair computed once.

Pairs are matched directly, however far apart. Frames and pairs run in batches of one fixed size,
the last padded, so that a video costs two compilations.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from align3r_jax.config import FlowConfig
from align3r_jax.errors import UserError
from align3r_jax.networks.raft.config import DOWNSCALE, RaftConfig, SeaRaftConfig
from align3r_jax.networks.raft.correlation import Lookup
from align3r_jax.networks.raft.features import FrameFeatures
from align3r_jax.priors import cache, flow_batches, optical_flow
from align3r_jax.structs import Frames, OpticalFlow
from align3r_jax.weights import kinds
from align3r_jax.weights.store import LoadedNetwork

Pair = tuple[int, int]

MAX_MEMORY = 4 * 2**30
"""Bytes for one batch (half of it), features of frames and computed fields (a quarter each)."""
_CACHE_FORMAT = "flow_network 1"


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
        self._params = jax.tree.map(
            lambda x: jax.device_put(jnp.asarray(x), flow_batches.everywhere(sharding)),
            loaded.params,
        )
        self._features = _Kept(max_memory // 4)
        self._fields = _Kept(max_memory // 4)

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
        plan = flow_batches.plan_batch(
            self._network, backend, height, width, self._max_memory // 2, self._batch, devices
        )
        encode, match = self._compiled(plan, backend)
        # Blocks of frames: two of them and a batch encoded ahead fit into what is kept.
        kept = self._max_memory // 4 // flow_batches.feature_bytes(self._network, height, width)
        block = max((kept - plan.batch) // 2, 1)
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
        plan: flow_batches.BatchPlan,
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
        self, plan: flow_batches.BatchPlan, backend: str
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        return flow_batches.compiled(
            self._network,
            self._config.iterations,
            self._dtype,
            self._precision,
            self._lookup,
            plan,
            backend,
            self._sharding,
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
