"""What the benchmarks measure with: a machine's ceilings, the cost of a program, nested sections.

Time is wall time and CPU time, because machines are shared: a share of a ceiling per CPU-second
says the same on a busy machine, per second of wall time it does not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax import stages

_SIDES = {"cpu": (1024, 2048)}  # of the matrices of a ceiling, quick and usual
_ACCELERATOR_SIDES = (2048, 8192)
_COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


# ---- one program


@dataclasses.dataclass(frozen=True)
class Cost:
    """One run of a compiled program. flops, bytes: of its operations, `counted` says by whom.

    program_mb: arguments, results and temporaries by the compiler. compile_seconds: with tracing.
    """

    flops: float
    bytes: float
    program_mb: float
    compile_seconds: float
    counted: str


def program_cost(function: Callable[..., Any], *arguments: Any) -> Cost:
    """Returns the cost of `function` by the compiler's analysis; arguments: arrays or shapes.

    On accelerators the program before compilation is counted: what is compiled calls libraries,
    whose operations the analysis leaves out.
    """
    started = time.perf_counter()
    lowered = jax.jit(function).lower(*arguments)
    compiled = lowered.compile()
    seconds = time.perf_counter() - started
    return _cost(lowered, compiled, seconds)


def _cost(lowered: Any, compiled: Any, seconds: float) -> Cost:
    is_host = jax.default_backend() == "cpu"
    found = (compiled if is_host else lowered).cost_analysis() or {}
    memory = compiled.memory_analysis()
    size = sum(
        getattr(memory, f"{kind}_size_in_bytes", 0) for kind in ("temp", "argument", "output")
    )
    return Cost(
        float(found.get("flops", 0.0)),
        float(found.get("bytes accessed", 0.0)),
        size / 2**20,
        seconds,
        "compiled program" if is_host else "program before compilation",
    )


def shapes(tree: Any) -> Any:
    """Returns a tree of arrays as shapes and types: arguments of `program_cost`."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A program's cost, the median times of one run, and what it returned."""

    cost: Cost
    seconds: float
    cpu_seconds: float
    result: Any


def measure(function: Callable[..., Any], *arguments: Any, repeats: int = 3) -> Measured:
    """Compiles a function, runs it once unmeasured and `repeats` times measured."""
    started = time.perf_counter()
    lowered = jax.jit(function).lower(*arguments)
    compiled = lowered.compile()
    cost = _cost(lowered, compiled, time.perf_counter() - started)
    result = jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*arguments))
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    seconds, cpu_seconds = np.median(times, axis=0)
    return Measured(cost, float(seconds), float(cpu_seconds), result)


# ---- the machine


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What the machine reaches at most, measured: per second of wall time and per CPU-second.

    flops: of a matrix product in `dtype`. bytes: read and written by a large copy.
    """

    dtype: str
    flops: float
    flops_per_cpu: float
    bytes: float
    bytes_per_cpu: float

    def merged(self, other: Ceilings) -> Ceilings:
        """Returns the higher ones: on a shared machine they change from minute to minute."""
        pairs = zip(dataclasses.astuple(self)[1:], dataclasses.astuple(other)[1:])
        return Ceilings(self.dtype, *(max(pair) for pair in pairs))


def ceilings(quick: bool = False, dtype: str = "float32") -> Ceilings:
    """Measures a matrix product in `dtype` and a copy on the default device."""
    side = _SIDES.get(jax.default_backend(), _ACCELERATOR_SIDES)[not quick]
    repeats = 3 if jax.default_backend() == "cpu" else 20
    matrix = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
    product = measure(lambda a: a @ a, matrix, repeats=repeats)
    vector = jnp.arange(2**24 if quick else 2**26, dtype=jnp.float32)
    copy = measure(lambda a: a + 1, vector, repeats=repeats)
    operations, moved = 2.0 * side**3, 2.0 * vector.nbytes
    return Ceilings(
        dtype,
        operations / product.seconds,
        operations / max(product.cpu_seconds, 1e-9),
        moved / copy.seconds,
        moved / max(copy.cpu_seconds, 1e-9),
    )


# ---- nested sections of a run


@dataclasses.dataclass
class Spent:
    """What a section took by itself, without the sections inside it.

    seconds, cpu_seconds: without compiling. peak_mb: highest resident size of the process.
    peak_device_mb: highest use of the device's memory up to its end, None where nobody knows.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    compile_seconds: float = 0.0
    peak_mb: float = 0.0
    peak_device_mb: float | None = None
    calls: int = 0


class Sections:
    """Measures named sections that may lie inside each other; `found` is name -> `Spent`.

    Used as a context, because it listens to what JAX says about compiling.
    """

    def __init__(self) -> None:
        self.found: dict[str, Spent] = {}
        self._open: list[str] = []
        self._compiling = _CompileClock()
        self._mark = (0.0, 0.0, 0.0, 0.0)

    def __enter__(self) -> Sections:
        jax.monitoring.register_event_duration_secs_listener(self._compiling.told)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._compiling.told)

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[Spent]:
        """Measures what is done in this context."""
        self._switch()
        self._open.append(name)
        spent = self.found.setdefault(name, Spent())
        spent.calls += 1
        try:
            yield spent
        finally:
            self._switch()
            self._open.pop()

    def measured(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function as a section; its result is waited for."""

        def run(*arguments: Any, **options: Any) -> Any:
            with self.section(name):
                return jax.block_until_ready(function(*arguments, **options))

        return run

    def _switch(self) -> None:
        """Books what happened since the last switch to the innermost open section."""
        wall, cpu = time.perf_counter(), time.process_time()
        now = (wall, cpu, self._compiling.seconds, self._compiling.cpu_seconds)
        if self._open:
            spent = self.found[self._open[-1]]
            passed = [new - old for new, old in zip(now, self._mark)]
            spent.seconds += max(passed[0] - passed[2], 0.0)
            spent.cpu_seconds += max(passed[1] - passed[3], 0.0)
            spent.compile_seconds += passed[2]
            spent.peak_mb = max(spent.peak_mb, stages.peak_memory_bytes() / 2**20)
            spent.peak_device_mb = device_peak_mb()
        stages.reset_peak_memory()
        self._mark = now


class _CompileClock:
    """Seconds that JAX spent on tracing, lowering and compiling, nested traces counted once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self._covered: list[tuple[float, float]] = []  # disjoint, oldest first
        self._last_cpu = time.process_time()

    def told(self, event: str, duration: float, **_: Any) -> None:
        """Called by JAX at the end of whatever takes time."""
        if event not in _COMPILING:
            return
        end, cpu = time.perf_counter(), time.process_time()
        inside = 0.0
        while self._covered and self._covered[-1][0] >= end - duration:
            first, last = self._covered.pop()
            inside += last - first
        self._covered.append((end - duration, end))
        own = max(duration - inside, 0.0)
        self.seconds += own
        # Lowering and compiling follow upon the event before; a trace may begin much later, but it
        # keeps one core busy at most.
        since = cpu - self._last_cpu
        self.cpu_seconds += min(own, since) if event == _COMPILING[0] else since
        self._last_cpu = cpu


def device_peak_mb() -> float | None:
    """Returns the device's highest use of memory so far; None on CPUs, which do not say."""
    found = jax.local_devices()[0].memory_stats()
    return found["peak_bytes_in_use"] / 2**20 if found and "peak_bytes_in_use" in found else None


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
