"""What training costs: compiles once per shape; times, rates, memory, waiting, MFU.

MFU (model FLOPs utilisation, PaLM, appendix B): operations of the steps / (seconds * peak), the
operations counted by `training.flops` (what `remat` computes again is counted too), the peak that
of all devices together.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from align3r_jax import stages
from align3r_jax.structs import Array
from align3r_jax.training import flops

# Dense peaks in TFLOP/s, from the vendors' data sheets: name of the device kind as JAX tells it ->
# (bfloat16, what float32 products run in by default: TF32 on NVIDIA, bfloat16 on TPU).
PUBLISHED_PEAKS = {
    "TPU v4": (275.0, 275.0),
    "TPU v5 lite": (197.0, 197.0),
    "TPU v5e": (197.0, 197.0),
    "TPU v5p": (459.0, 459.0),
    "TPU v5": (459.0, 459.0),
    "TPU v6 lite": (918.0, 918.0),
    "TPU v6e": (918.0, 918.0),
    "NVIDIA A100": (312.0, 156.0),
    "NVIDIA H100 PCIe": (756.0, 378.0),
    "NVIDIA H100": (989.0, 494.0),
    "NVIDIA H200": (989.0, 494.0),
    "NVIDIA GeForce RTX 4090": (165.0, 82.6),
    "NVIDIA L4": (121.0, 60.0),
}
_SIDE = 1024  # of the matrices of a measured peak


@functools.lru_cache(maxsize=4)
def peak_flops(dtype: Any) -> tuple[float, str]:
    """Returns (operations per second of one device in `dtype`, where the number comes from)."""
    device = jax.local_devices()[0]
    half = jnp.dtype(dtype) != jnp.float32
    matching = [name for name in PUBLISHED_PEAKS if device.device_kind.startswith(name)]
    if matching:
        name = max(matching, key=len)
        peak = PUBLISHED_PEAKS[name][0 if half else 1]
        return 1e12 * peak, f"published peak of {name}, {'bfloat16' if half else 'float32'}"
    matrix = jax.device_put(jnp.ones((_SIDE, _SIDE), dtype), device)
    product = jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()
    best = min(_seconds(product, matrix) for _ in range(3))
    return 2 * _SIDE**3 / best, f"measured {jnp.dtype(dtype).name} matrix product of {_SIDE}"


def _seconds(function: Callable[[Array], Array], argument: Array) -> float:
    started = time.perf_counter()
    function(argument).block_until_ready()
    return time.perf_counter() - started


class Meter:
    """Runs the steps and keeps the accounts of the interval since the last `take`."""

    def __init__(self, step: Any, batch_size: int):
        """step: jitted (state, batch, key) -> (state, details). batch_size: samples of a step."""
        self._step = step
        self._batch_size = batch_size
        self._compiled: dict[Any, tuple[Callable[..., Any], float]] = {}
        self._last: Array | None = None
        self._reset()

    def _reset(self) -> None:
        self._started = time.monotonic()
        self._steps = 0
        self._flops = 0.0
        self._waited = self._elsewhere = self._preparing = 0.0

    def batch(self, batch_of: Callable[[int], Any], number: int) -> Any:
        """Returns `batch_of(number)`; its time counts as waiting if the devices ran out of work.

        The first one's counts as preparation, like compiling: pipelines start with it.
        """
        started = time.monotonic()
        batch = batch_of(number)
        seconds = time.monotonic() - started
        if self._last is None:
            self._preparing += seconds
        elif self._last.is_ready():
            self._waited += seconds
        return batch

    def step(self, state: Any, batch: Any, key: Array) -> tuple[Any, dict[str, Array]]:
        """Runs one step, compiled once per shape of batch; at most one step runs ahead."""
        shapes = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(batch))
        if shapes not in self._compiled:
            started = time.monotonic()
            operations = flops.step_flops(self._step, state, batch, key)
            compiled = self._step.lower(state, batch, key).compile()
            self._compiled[shapes] = compiled, operations
            self._preparing += time.monotonic() - started
        compiled, operations = self._compiled[shapes]
        previous = self._last
        state, details = compiled(state, batch, key)
        self._last = details["loss"]
        if previous is not None:
            previous.block_until_ready()  # else batches would pile up in memory
        self._steps += 1
        self._flops += operations
        return state, details

    def elsewhere(self, seconds: float) -> None:
        """Tells of time that was no training: evaluation, pictures."""
        self._elsewhere += seconds

    def take(self, peak: float) -> dict[str, float]:
        """Returns the accounts of the interval and starts a new one.

        peak: operations per second of all devices together. Call it when the steps are done.
        samples_per_second, step_seconds, mfu: without compiling and evaluating. data_wait: share
        of the time in which the devices had no batch to work on (an upper bound).
        """
        seconds = time.monotonic() - self._started - self._elsewhere - self._preparing
        seconds = max(seconds, 1e-9)
        account = {
            "samples_per_second": self._batch_size * self._steps / seconds,
            "step_seconds": seconds / max(self._steps, 1),
            "data_wait": min(self._waited / seconds, 1.0),
            "memory_mb": memory_bytes() / 2**20,
        }
        if self._flops:
            account["mfu"] = self._flops / seconds / peak
        if self._preparing:
            account["prepare_seconds"] = self._preparing
        self._reset()
        return account


def memory_bytes() -> float:
    """Returns the highest memory in use of the fullest local device, of the process on a CPU."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(entry.get("peak_bytes_in_use", 0) for entry in stats)
    return float(peak or stages.peak_memory_bytes())
