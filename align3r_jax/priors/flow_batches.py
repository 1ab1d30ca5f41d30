"""Batches of pairs for flow networks: how many fit, and the two functions that run them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from align3r_jax.networks.raft import build, correlation
from align3r_jax.networks.raft.config import DOWNSCALE, AnyFlowConfig
from align3r_jax.networks.raft.correlation import Lookup
from align3r_jax.networks.raft.features import FrameFeatures

# Activations of a pair, per pixel, beside the volume: compilers report 180 to 600.
_PIXEL_BYTES = 800
_DEFAULT_BATCH = {"cpu": 1}  # convolutions of one pair fill a CPU; elsewhere:
_ACCELERATOR_BATCH = 12


class BatchPlan(NamedTuple):
    """How pairs run: `batch` of all devices together, bytes of correlation on each device."""

    batch: int
    correlation_budget: int


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


@functools.lru_cache(maxsize=8)
def compiled(
    config: AnyFlowConfig,
    iterations: int,
    dtype: Any,
    precision: str | None,
    lookup: Lookup,
    plan: BatchPlan,
    backend: str,
    sharding: NamedSharding | None,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two jitted functions, common to all sources of equal settings.

    encode(params, images) gives the features frame by frame; match(params, sources, targets) takes
    lists of them and gives the flow (B, H, W, 2).
    """
    network = build.make(
        config,
        dtype=dtype,
        precision=precision,
        lookup=lookup,
        correlation_budget=plan.correlation_budget,
        backend=backend,
    )

    def on_each_device(function: Callable[..., Any], arrays: int) -> Callable[..., Any]:
        if sharding is None:
            return function
        return jax.shard_map(
            function,
            mesh=sharding.mesh,
            in_specs=(PartitionSpec(), *[sharding.spec] * arrays),
            out_specs=sharding.spec,
            check_vma=False,
        )

    def features_of(params: Any, images: jax.Array) -> FrameFeatures:
        features: Any = network.apply({"params": params}, images, method="encode_frames")
        return features

    def flow_of(params: Any, source: FrameFeatures, target: FrameFeatures) -> jax.Array:
        output: Any = network.apply(
            {"params": params}, source, target, iterations, method="flow_pairs"
        )
        return output.flow

    def encode(params: Any, images: jax.Array) -> list[FrameFeatures]:
        features = on_each_device(features_of, 1)(params, images)
        return [features.take(k) for k in range(plan.batch)]

    def match(params: Any, sources: list[FrameFeatures], targets: list[FrameFeatures]) -> jax.Array:
        source, target = (jax.tree.map(lambda *x: jnp.stack(x), *s) for s in (sources, targets))
        return on_each_device(flow_of, 2)(params, source, target)

    return jax.jit(encode, out_shardings=everywhere(sharding)), jax.jit(match)


def everywhere(sharding: NamedSharding | None) -> NamedSharding | None:
    """A copy on every device."""
    return None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
