"""Time, memory, achieved share of the hardware and bfloat16 error of the depth and flow networks.

    python -m experiments.benchmark_networks [--quick] [--heavy] [--output=networks.json]

Each network runs at its usual size with random weights (values do not change the cost). The share
is of a float32 matrix product measured around it; operations are the compiler's count, for
the flow networks a count of their layers (compilers count a loop once). Peak memory: arguments,
results and temporaries by the compiler; resident: the process's own peak while the network ran.
bfloat16: largest difference to float32 over the range of values, and its time; on CPUs it is slow,
so heavy networks leave it out. --heavy adds Base, Large and Depth Pro (19 TFLOP an image, 8 GB).
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from align3r_jax import stages
from align3r_jax.networks import depth_anything, depth_pro
from align3r_jax.networks.raft import build
from align3r_jax.networks.raft.config import FLOW_PRESETS
from align3r_jax.weights import kinds
from experiments import benchmark_measure, cli

OUTPUT = flags.DEFINE_string("output", None, "Also write the rows as JSON here.")
QUICK = flags.DEFINE_bool("quick", False, "Small sizes only (seconds instead of minutes).")
HEAVY = flags.DEFINE_bool("heavy", False, "Also the networks that take minutes on a CPU.")

# Operations of one directed pair of 288 x 512 frames: (encoders and what else runs once,
# correlation, one update); two operations a multiply-add.
_FLOW_COST = {"raft": (60.1e9, 2.7e9, 14.37e9), "sea_raft_m": (214.6e9, 3.6e9, 11.87e9)}
_FLOW_SIZE = (288, 512)


@dataclasses.dataclass(frozen=True)
class Case:
    """apply(dtype) returns the function (parameters, *inputs) -> map.

    flops: operations, None: the compiler's count.
    """

    network: str
    config: Any
    size: tuple[int, int]
    inputs: tuple[np.ndarray, ...]
    apply: Callable[[Any], Callable[..., jax.Array]]
    heavy: bool = False
    flops: float | None = None
    label: str = ""


@dataclasses.dataclass
class Row:
    """A measured network. share: of the matrix product's rate, share_per_cpu: by CPU-seconds.
    bfloat16_error: None if that was not run."""

    network: str
    size: str
    parameters: int
    seconds: float
    cpu_seconds: float
    compile_seconds: float
    gflop: float
    share: float
    share_per_cpu: float
    peak_mb: float
    resident_mb: float
    bfloat16_seconds: float | None = None
    bfloat16_error: float | None = None


def cases(quick: bool, heavy: bool) -> Iterator[Case]:
    """Yields every network at its usual size."""
    sizes = {"small": [(266, 350)] if quick else [(518, 518), (518, 924)]}
    if heavy:
        sizes |= {"base": [(518, 518)], "large": [(518, 518), (518, 924)]}
    for name, shapes in sizes.items():
        for shape in shapes:
            config = depth_anything.DEPTH_ANYTHING_PRESETS[f"depth_anything_v2_{name}"]
            yield Case(
                f"depth_anything_v2_{name}", config, shape, (_smooth(shape, -2, 2),),
                lambda dtype, c=config: _depth(depth_anything.DepthAnything(c, dtype), "depth"),
                heavy=name != "small",
            )  # fmt: skip
    for name, iterations in (("raft", 20), ("sea_raft_m", 4), ("sea_raft_m", 20)):
        shape = (96, 128) if quick else _FLOW_SIZE
        image = _smooth(shape, 0, 255)
        area = shape[0] * shape[1] / (_FLOW_SIZE[0] * _FLOW_SIZE[1])
        encoders, correlation, update = _FLOW_COST[name]
        flops = area * (encoders + area * correlation + iterations * update)
        yield Case(
            name, FLOW_PRESETS[name], shape, (image, np.roll(image, 3, axis=2)),
            lambda dtype, n=name, k=iterations: _flow(n, dtype, k),
            flops=flops, label=f"{iterations} updates",
        )  # fmt: skip
    if heavy:
        config = depth_pro.DEPTH_PRO_PRESETS["depth_pro"]
        shape = (config.image_size,) * 2
        yield Case(
            "depth_pro", config, shape, (_smooth(shape, -1, 1),),
            lambda dtype: _depth(depth_pro.DepthPro(config, dtype), "inverse_depth"),
            heavy=True,
        )  # fmt: skip


def _smooth(shape: tuple[int, int], low: float, high: float) -> np.ndarray:
    coarse = np.random.default_rng(0).uniform(low, high, (1, shape[0] // 8, shape[1] // 8, 3))
    image = jax.image.resize(coarse.astype(np.float32), (1, *shape, 3), "linear")
    return np.asarray(image)


def _depth(module: Any, output: str) -> Callable[..., jax.Array]:
    return lambda params, images: getattr(module.apply({"params": params}, images), output)


def _flow(name: str, dtype: Any, iterations: int) -> Callable[..., jax.Array]:
    module = build.make(FLOW_PRESETS[name], dtype=dtype)

    def run(params: Any, first: jax.Array, second: jax.Array) -> jax.Array:
        output: Any = module.apply({"params": params}, first, second, iterations)
        return output.flow

    return run


def measure(case: Case, quick: bool) -> Row:
    """Runs a case in float32 and, where it is worth it, in bfloat16."""
    network = kinds.of_config(case.config).network_module
    params = jax.jit(lambda key: network.init_params(case.config, key))(jax.random.key(0))
    # Depth is cut off at 0: random weights should be above it.
    params = jax.tree.map(lambda leaf: leaf + 1 if leaf.shape == (1,) else leaf, params)
    inputs = [jnp.asarray(array) for array in case.inputs]
    slow = case.heavy and jax.default_backend() == "cpu"

    # Around the run: on a shared machine both change from minute to minute.
    before = benchmark_measure.ceilings(quick)
    stages.reset_peak_memory()
    found = benchmark_measure.measure(
        case.apply(jnp.float32), params, *inputs, repeats=1 if slow else 3
    )
    resident = stages.peak_memory_bytes() / 2**20
    ceilings = before.merged(benchmark_measure.ceilings(quick))
    flops = found.cost.flops if case.flops is None else case.flops
    row = Row(
        network=f"{case.network} {case.label}".strip(),
        size=f"{case.size[0]}x{case.size[1]}",
        parameters=network.parameter_count(case.config),
        seconds=found.seconds,
        cpu_seconds=found.cpu_seconds,
        compile_seconds=found.cost.compile_seconds,
        gflop=flops / 1e9,
        share=flops / found.seconds / ceilings.flops,
        share_per_cpu=flops / found.cpu_seconds / ceilings.flops_per_cpu,
        peak_mb=found.cost.program_mb,
        resident_mb=resident,
    )
    if not slow:
        rounded = benchmark_measure.measure(case.apply(jnp.bfloat16), params, *inputs, repeats=1)
        row.bfloat16_seconds = rounded.seconds
        difference = jnp.abs(rounded.result - found.result).max()
        row.bfloat16_error = float(difference / jnp.ptp(found.result))
    return row


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a Markdown table."""
    lines = [
        "| network | size | parameters | s | CPU s | compile s | GFLOP "
        "| share of matrix product, wall / CPU | peak MB | resident MB | bf16 s | bf16 error |",
        "|---" * 12 + "|",
    ]
    for row in rows:
        rounded = ["–", "–"]
        if row.bfloat16_error is not None and row.bfloat16_seconds is not None:
            rounded = [f"{row.bfloat16_seconds:.3f}", f"{row.bfloat16_error:.1e}"]
        lines.append(
            f"| {row.network} | {row.size} | {row.parameters:,} | {row.seconds:.3f} | "
            f"{row.cpu_seconds:.3f} | {row.compile_seconds:.1f} | {row.gflop:.0f} | "
            f"{100 * row.share:.0f} / {100 * row.share_per_cpu:.0f} % | "
            f"{row.peak_mb:.0f} | {row.resident_mb:.0f} | {' | '.join(rounded)} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    del argv
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured
    quick = QUICK.value
    device = jax.devices()[0]
    hardware = f"{device.device_kind} ({platform.machine()}), jax {jax.__version__}"
    print(f"{hardware}\n")
    rows = []
    for case in cases(quick, HEAVY.value):
        rows.append(measure(case, quick))
        print(table(rows).splitlines()[-1], flush=True)
    print("\n" + table(rows))
    if OUTPUT.value:
        content = {"hardware": hardware, "rows": [dataclasses.asdict(row) for row in rows]}
        Path(OUTPUT.value).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    cli.run(main)
