"""Time, memory and achieved share of the hardware, stage by stage, in one run.

    python -m experiments.benchmark [--output=benchmark.json] [--quick]

Ceilings are measured in the same run: a float32 matrix product (FLOP/s) and a large array copy
(bytes/s). A stage's share is its own count of operations or bytes over time over that ceiling.
Peak memory is the compiler's figure for temporaries plus arguments and results.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from align3r_jax import config as config_lib
from align3r_jax import pairing
from align3r_jax.alignment import objective
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.solvers import adam
from align3r_jax.networks import align3r
from align3r_jax.priors import optical_flow
from align3r_jax.structs import Frames, OpticalFlow, PairGraph, PairPredictions, WorkingSize
from experiments import cli

OUTPUT = flags.DEFINE_string("output", None, "Also write the rows as JSON here.")
QUICK = flags.DEFINE_bool("quick", False, "Small sizes only (seconds instead of minutes).")


@dataclasses.dataclass
class Row:
    """One measured stage. bound: what limits it; share: achieved part of that ceiling."""

    stage: str
    size: str
    seconds: float
    compile_seconds: float
    gflop: float
    peak_mb: float
    share: float
    bound: str


def measure(function: Callable[..., Any], *arguments: Any, repeats: int = 3) -> dict[str, float]:
    """Returns median seconds, compile seconds, FLOPs, bytes and peak memory of a jitted call."""
    return measure_with_result(function, *arguments, repeats=repeats)[0]


def measure_with_result(
    function: Callable[..., Any], *arguments: Any, repeats: int = 3
) -> tuple[dict[str, float], Any]:
    """Returns what `measure` does, and the result of the call."""
    started = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - started
    result = jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - started)
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    peak = sum(
        getattr(memory, f"{kind}_size_in_bytes", 0) for kind in ("temp", "argument", "output")
    )
    measured = {
        "seconds": float(np.median(seconds)),
        "compile_seconds": compile_seconds,
        "flops": float(cost.get("flops", 0.0)),
        "bytes": float(cost.get("bytes accessed", 0.0)),
        "peak_mb": peak / 2**20,
    }
    return measured, result


def ceilings(quick: bool) -> tuple[float, float]:
    """Returns (FLOP/s of a matrix product, bytes/s of a copy) of this device, measured."""
    side = 1024 if quick else 2048
    matrix = jax.random.normal(jax.random.key(0), (side, side))
    product = measure(lambda a: a @ a, matrix)
    vector = jnp.arange(2**24 if quick else 2**26, dtype=jnp.float32)
    copy = measure(lambda a: a + 1, vector)
    return 2 * side**3 / product["seconds"], 2 * vector.nbytes / copy["seconds"]


def network_rows(quick: bool, flops_ceiling: float) -> list[Row]:
    """Encoding one frame and decoding one pair, per preset."""
    cases = [("align3r_small", 160, 224)]
    if not quick:
        cases.append(("align3r_vitl_512_dpt", 288, 512))
    rows = []
    for preset, height, width in cases:
        config = config_lib.NETWORK_PRESETS[preset]
        network = align3r.Align3R(config)
        params = jax.jit(lambda k, c=config: align3r.init_params(c, k))(jax.random.key(0))
        image = jnp.zeros((1, height, width, 3))

        def encode(p, x, n=network):
            return n.apply({"params": p}, x, x + 1, method="encode_frames")

        def decode(p, f, n=network):
            return n.apply({"params": p}, f, f, method="decode_pairs")

        features = jax.jit(encode)(params, image)
        for name, result in (
            ("encode frame", measure(encode, params, image)),
            ("decode pair", measure(decode, params, features)),
        ):
            rows.append(_row(f"{preset} {name}", f"{height}x{width}", result, flops_ceiling))
    return rows


def alignment_rows(quick: bool, bytes_ceiling: float) -> list[Row]:
    """One optimiser iteration, with and without flow: bound by reading points and weights once."""
    cases = [(8, 64, 96)] if quick else [(24, 192, 256), (20, 288, 512)]
    rows = []
    for frames, height, width in cases:
        graph = pairing.make_pairs(frames, config_lib.PairConfig(graph="swinstride-4-noncyclic"))
        for with_flow in (False, True):
            state, problem, config, trainable = _alignment_problem(
                graph, frames, height, width, with_flow
            )
            iterations = config.iterations

            def loop(state, problem, config=config, trainable=trainable, count=iterations):
                return adam.scan(
                    state, problem, 0, config=config, trainable=trainable, num_steps=count
                )

            result = measure(loop, state, problem, repeats=1)
            # Points (3) and weight (1) of both views once, depth with its gradient and moments.
            floats = graph.num_pairs * height * width * 2 * (4 + (3 if with_flow else 0))
            floats += frames * height * width * 6
            seconds = result["seconds"] / iterations
            rows.append(
                Row(
                    stage="alignment iteration" + (" + flow" if with_flow else ""),
                    size=f"{frames}x{height}x{width}, {graph.num_pairs} pairs",
                    seconds=seconds,
                    compile_seconds=result["compile_seconds"],
                    gflop=result["flops"] / iterations / 1e9,
                    peak_mb=result["peak_mb"],
                    share=4 * floats / seconds / bytes_ceiling,
                    bound="bytes",
                )
            )
    return rows


def _row(stage: str, size: str, result: dict[str, float], ceiling: float) -> Row:
    seconds = result["seconds"]
    share = result["flops"] / seconds / ceiling
    gflop = result["flops"] / 1e9
    return Row(
        stage, size, seconds, result["compile_seconds"], gflop, result["peak_mb"], share, "FLOP"
    )


def _alignment_problem(
    graph: PairGraph, frames: int, height: int, width: int, with_flow: bool
) -> tuple[adam.State, objective.Problem, config_lib.AlignmentConfig, Any]:
    """A problem of the right shapes with random content: values do not change the cost."""
    config = config_lib.AlignmentConfig(iterations=5, flow_start=0.0, flow_gate=0.0)
    rng = np.random.default_rng(0)
    count, shape = graph.num_pairs, (height, width)
    points = rng.normal(1.0, 0.1, (count, *shape, 3)).astype(np.float32)
    confidence = rng.uniform(1.5, 5.0, (count, *shape)).astype(np.float32)
    points, confidence = jnp.asarray(points), jnp.asarray(confidence)
    predictions = PairPredictions(points, points, confidence, confidence)
    flow = None
    if with_flow:
        pairs = pairing.directed_pairs(graph)
        fields = rng.normal(0, 1, (len(pairs), *shape, 2)).astype(np.float32)
        flow = OpticalFlow(pairs, fields, np.ones((len(pairs), *shape), np.float32))
    start = variables_lib.encode(
        jnp.ones((frames, *shape)),
        jnp.tile(jnp.eye(4), (frames, 1, 1)),
        jnp.full((frames,), float(width)),
        jnp.ones((count,)),
        jnp.tile(jnp.eye(3), (count, 1, 1)),
        jnp.zeros((count, 3)),
        config,
    )
    problem = objective.prepare(predictions, graph, flow, start, None, config)
    trainable = variables_lib.trainable(start, config)
    return adam.initial_state(start), problem, config, trainable


def flow_rows(quick: bool) -> list[Row]:
    """OpenCV's DIS between neighbours, both directions (on the host, not jitted)."""
    height, width = (96, 128) if quick else (288, 512)
    rng = np.random.default_rng(0)
    images = np.repeat(rng.integers(0, 255, (1, height, width, 3), np.uint8), 3, axis=0)
    size = WorkingSize((height, width), (height, width), (0, 0), (height, width))
    frames = Frames(images, np.arange(3.0), size, ("a", "b", "c"))
    source = optical_flow.make_source(config_lib.FlowConfig(), frames)
    pairs = np.array([[0, 1], [1, 0], [1, 2], [2, 1]], np.int32)
    started = time.perf_counter()
    source.directed(frames, pairs)
    seconds = (time.perf_counter() - started) / len(pairs)
    return [Row("DIS flow, one field", f"{height}x{width}", seconds, 0.0, 0.0, 0.0, 0.0, "host")]


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a Markdown table."""
    lines = ["| stage | size | s | compile s | GFLOP | peak MB | share of ceiling |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        share = f"{100 * row.share:.0f} % of {row.bound}" if row.share else row.bound
        lines.append(
            f"| {row.stage} | {row.size} | {row.seconds:.4f} | {row.compile_seconds:.1f} | "
            f"{row.gflop:.2f} | {row.peak_mb:.0f} | {share} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    del argv
    flops_ceiling, bytes_ceiling = ceilings(QUICK.value)
    device = jax.devices()[0]
    hardware = f"{device.device_kind} ({platform.machine()}), jax {jax.__version__}"
    print(
        f"{hardware}: matrix product {flops_ceiling / 1e9:.0f} GFLOP/s, "
        f"copy {bytes_ceiling / 1e9:.1f} GB/s (ceilings of this run)\n"
    )
    rows = network_rows(QUICK.value, flops_ceiling)
    rows += alignment_rows(QUICK.value, bytes_ceiling)
    rows += flow_rows(QUICK.value)
    print(table(rows))
    if OUTPUT.value:
        content = {
            "hardware": hardware,
            "matrix_flops": flops_ceiling,
            "copy_bytes": bytes_ceiling,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        Path(OUTPUT.value).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    cli.run(main)
