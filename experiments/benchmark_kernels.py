"""The pairwise network's programs against the machine's matrix product, in CPU-seconds.

    python -m experiments.benchmark_kernels [--preset=align3r_small] [--batch=4] [--output=out.json]

One frame encoded, one ordered pair decoded (both heads included) and one pair of heads alone, with
all levels of what is computed once per frame and both forms of the heads; random weights, nothing
is read. GFLOP by formula (`networks.cost`). A matrix product is timed before and after every
program in the same process, and a program's rate is a share of the faster of the two; of every
program the best of a few runs counts, because machines are shared. ViT-L at 288 x 512 needs 4 GB of
memory and about 2 CPU-minutes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from align3r_jax.config import NETWORK_PRESETS, NetworkConfig
from align3r_jax.networks import align3r, cost, heads
from align3r_jax.predictors import network_programs
from experiments import cli

PRESET = flags.DEFINE_enum(
    "preset",
    "align3r_vitl_512_dpt",
    sorted(NETWORK_PRESETS),
    "Network, by its shapes only; the default is the paper's.",
)
HEIGHT = flags.DEFINE_integer("height", 288, "Of a frame, in pixels, a multiple of 16.")
WIDTH = flags.DEFINE_integer("width", 512, "Of a frame, in pixels, a multiple of 16.")
BATCH = flags.DEFINE_integer("batch", 1, "Frames, and pairs, run together.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 3, "Times that every program runs; the best one counts.")
OUTPUT = flags.DEFINE_string("output", None, "Also write the rows as JSON here.")
_SIDE = 2048  # of the matrices of the product


def rows(
    config: NetworkConfig, height: int, width: int, batch: int, repeats: int
) -> list[dict[str, Any]]:
    """Returns one row per program: what, GFLOP, CPU-seconds per item, share of the product."""
    params = _random(align3r.abstract_params(config))
    shape = (batch, height, width, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    maps = np.random.default_rng(1).random(shape, np.float32) if config.prior_branch else None
    found = []

    def add(name: str, operations: float, program: Any, *arguments: Any) -> Any:
        best, rate, result = _timed(program, arguments, repeats)
        share = operations * batch / best / rate
        row = {"program": name, "gflop": operations / 1e9, "cpu_seconds": best / batch}
        found.append(row | {"share": share, "temporary_mb": _temporary(program, arguments)})
        return result

    for reuse in ("tokens", "block", "head"):
        encode = jax.jit(network_programs.encode_program(config, reuse=reuse))
        operations = cost.encode(config, height, width, reuse)
        features = add(f"encode a frame, {reuse}", operations, encode, params, images, maps, None)
        for form in ("direct", "cheap"):
            if config.head == "linear" and form == "cheap":
                continue
            decode = jax.jit(network_programs.decode_program(config, head_form=form))
            views = features.as_view(1), features.as_view(2)
            operations = cost.decode(config, height, width, reuse, form)
            add(f"decode a pair, {reuse}, heads {form}", operations, decode, params, *views)
    tokens = [features.tokens if hook == 0 else features.decoder_tokens for hook in _hooks(config)]
    for form in ("direct", "cheap") if config.head == "dpt" else ("direct",):
        operations = 2 * cost.head(config, height, width, form)
        add(f"heads of a pair, {form}", operations, _heads(config, features.grid, form),
            params["head1"], params["head2"], tokens)  # fmt: skip
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as Markdown."""
    lines = ["| program | GFLOP | CPU-s | GFLOP / CPU-s | of the product | temporary memory |"]
    lines.append("|---|---|---|---|---|---|")
    for row in found:
        rate = row["gflop"] / row["cpu_seconds"]
        lines.append(
            f"| {row['program']} | {row['gflop']:.1f} | {row['cpu_seconds']:.3g} | {rate:.0f} "
            f"| {row['share']:.0%} | {row['temporary_mb']:.0f} MB |"
        )
    return "\n".join(lines)


def _hooks(config: NetworkConfig) -> Sequence[int]:
    return config.dpt_hooks if config.head == "dpt" else (1,)


def _heads(config: NetworkConfig, grid: tuple[int, int], form: str) -> Callable[..., Any]:
    module: Any = heads.make_head(config, form)

    @jax.jit
    def run(first: Any, second: Any, tokens: list[jax.Array]) -> Any:
        return [module.apply({"params": params}, tokens, grid) for params in (first, second)]

    return run


def _random(tree: Any) -> Any:
    pool = 0.02 * np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    return jax.tree.map(lambda leaf: jnp.asarray(np.resize(pool, leaf.shape)), tree)


def _timed(program: Any, arguments: tuple[Any, ...], repeats: int) -> tuple[float, float, Any]:
    """CPU-seconds of the best run, operations per CPU-second of the product, the result."""
    result = jax.block_until_ready(program(*arguments))
    before = _product_rate()
    best = min(_cpu_seconds(program, arguments) for _ in range(repeats))
    return best, max(before, _product_rate()), result


def _cpu_seconds(program: Any, arguments: tuple[Any, ...]) -> float:
    started = time.process_time()
    jax.block_until_ready(program(*arguments))
    return time.process_time() - started


def _product_rate() -> float:
    matrix = jnp.ones((_SIDE, _SIDE)) / 3
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    return 2 * _SIDE**3 / min(_cpu_seconds(product, (matrix, matrix)) for _ in range(4))


def _temporary(program: Any, arguments: tuple[Any, ...]) -> float:
    memory = program.lower(*arguments).compile().memory_analysis()
    return memory.temp_size_in_bytes / 2**20


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    del argv
    config = NETWORK_PRESETS[PRESET.value]
    found = rows(config, HEIGHT.value, WIDTH.value, BATCH.value, REPEATS.value)
    print(table(found))
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    cli.run(main)
