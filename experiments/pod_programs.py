"""Programs of `benchmark_pods`, compiled for several devices but not run, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from align3r_jax import config as config_lib
from align3r_jax.alignment import batch, sharded, solve
from align3r_jax.networks import align3r
from align3r_jax.predictors import network_mesh, network_programs
from align3r_jax.structs import AlignmentPriors, PairGraph, PairPredictions
from align3r_jax.weights import placement
from experiments import compiled_program

# Nothing is run, so the machine code may be slow; what is counted is decided before.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def network_rows(
    preset: str,
    dtype: str,
    size: tuple[int, int],
    count: int,
    devices: Sequence[jax.Device],
    fsdp: int,
) -> list[dict[str, Any]]:
    """Returns a row for encoding `count` frames and one for decoding as many pairs."""
    config = config_lib.NETWORK_PRESETS[preset]
    mesh = placement.make_mesh(devices, fsdp)
    abstract = align3r.abstract_params(config)
    params = _placed(abstract, placement.split_over(mesh, abstract))
    divided = placement.batch_sharding(mesh)
    shape = (count, *size)
    maps = jax.ShapeDtypeStruct((*shape, 3), jnp.float32) if config.prior_branch else None
    has_prior = jax.ShapeDtypeStruct((count,), jnp.bool_) if config.prior_branch else None
    inputs = (jax.ShapeDtypeStruct((*shape, 3), jnp.uint8), maps, has_prior)
    encode = network_programs.encode_program(config, dtype)
    decode = network_programs.decode_program(config, dtype)
    features = jax.eval_shape(encode, abstract, *inputs)
    inputs = _placed(inputs, jax.tree.map(lambda _: divided, inputs))
    whole = network_mesh.everywhere(mesh)
    features = _placed(features, jax.tree.map(lambda _: whole, features))
    rows = []
    for name, program, arguments in (
        ("encode", network_mesh.over_mesh(encode, mesh, whole=True), inputs),
        ("decode", network_mesh.over_mesh(decode, mesh, whole=False), (features, features)),
    ):
        lowered = jax.jit(program).lower(params, *arguments)
        rows.append(_row(name, lowered, len(devices), fsdp))
    return rows


def alignment_row(
    devices: Sequence[jax.Device],
    size: tuple[int, int] = (72, 128),
    frames: int = 9,
    iterations: int = 50,
) -> dict[str, Any]:
    """Returns the row of Adam's alignment of one clip of all pairs, divided over the devices.

    size: of a frame in pixels; operations and bytes grow alike with it.
    """
    pairs = np.array([(i, j) for i in range(frames) for j in range(frames) if i != j], np.int32)
    ones = np.ones((len(pairs), *size, 3), np.float32)
    predictions = PairPredictions(ones, ones, ones[..., 0] + 1, ones[..., 0] + 1)
    graph = PairGraph(pairs, frames, symmetric=True, name="complete")
    config = config_lib.AlignmentConfig(solver="adam", iterations=iterations)
    stacked = batch.pad_and_stack([(predictions, graph, AlignmentPriors())], multiple=len(devices))
    mesh = sharded.make_mesh(1, len(devices), devices)
    degrees = solve.degrees(stacked.graph, stacked.priors, config)
    program = sharded.compiled(mesh, config, degrees)
    return _row("align", program.lower(*sharded.place(stacked, mesh)), len(devices), 1)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as Markdown; speed-up: operations of a device, against one device."""
    alone = {row["program"]: row["flops"] for row in rows if row["devices"] == 1}
    lines = [
        "| program | devices | parameters split over | GFLOP a device | speed-up | MB sent a device"
        " | parameters and inputs a device, MB | temporary, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["program"], row["fsdp"] > 1, row["devices"])):
        gain = alone[row["program"]] / row["flops"] if row["program"] in alone else float("nan")
        lines.append(
            f"| {row['program']} | {row['devices']} | {row['fsdp']} | {row['flops'] / 1e9:.4g} "
            f"| {gain:.2f} | {row['sent'] / 1e6:.4g} | {row['arguments'] / 1e6:.4g} "
            f"| {row['temporary'] / 1e6:.4g} |"
        )
    return "\n".join(lines)


def _row(name: str, lowered: Any, devices: int, fsdp: int) -> dict[str, Any]:
    compiled = lowered.compile(compiler_options=_QUICK)
    found = compiled_program.collectives(compiled.as_text()) if devices > 1 else []
    memory = compiled.memory_analysis()
    row = {
        "program": name,
        "devices": devices,
        "fsdp": fsdp,
        "flops": compiled.cost_analysis()["flops"],
        "sent": sum(item.moved for item in found),
        "collectives": compiled_program.by_kind(found),
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }
    logging.info("%s", row)
    return row


def _placed(abstract: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract,
        shardings,
    )
