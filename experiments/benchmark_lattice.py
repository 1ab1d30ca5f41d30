"""How many pixels second-order alignment needs: both solvers at full size, strides of the lattice.

    python -m experiments.benchmark_lattice [--strides=8,6,4] [--adam] [--output=lattice.json]

The scene is that of the recorded alignment (tests/golden/alignment_scene.npz), as large as a real
clip: a wavy wall and a moving ball, 20 frames of 512x288, 150 pairs whose points have scale, noise
and outliers of their own. Point maps alone, one focal per frame, all from one start. Every solver
runs twice; the second run, which compiles nothing, is timed in CPU-seconds (Adam's 300 iterations
take minutes).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from align3r_jax import pairing
from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import objective
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.solvers import adam, second_order
from align3r_jax.config import AlignmentConfig, PairConfig
from align3r_jax.evaluation import trajectory
from data.procedural import wavy_wall
from experiments import cli

STRIDES = flags.DEFINE_list("strides", ["8", "6", "4"], "Of Gauss-Newton's lattice, in pixels.")
ADAM = flags.DEFINE_bool("adam", False, "Also 300 iterations of Adam over all pixels.")
FRAMES = flags.DEFINE_integer("frames", 20, "Frames of the scene.", lower_bound=2)
WIDTH = flags.DEFINE_integer(
    "width", 512, "Width in pixels; the height is 9/16 of it.", lower_bound=32
)
OUTPUT = flags.DEFINE_string("output", None, "Also write the rows as JSON here.")


def measure(task: align_lib.Task, truth: wavy_wall.World) -> dict[str, float]:
    """Returns the loss, errors and CPU-seconds of the second of two runs of a task's solver."""
    config = task.config
    problem = objective.prepare(
        task.predictions, task.graph, None, task.start, task.mask, config
    )  # the solvers' clock starts after the data are laid out
    optimise = (second_order if config.solver == "gauss_newton" else adam).optimise
    for _ in range(2):
        start = jax.block_until_ready(jax.tree.map(jnp.array, task.start))
        started = time.process_time()
        outcome = optimise(start, problem, config, task.trainable())
        jax.block_until_ready(outcome.variables)
        seconds = time.process_time() - started
    geometry = variables_lib.decode(outcome.variables, config, truth.depth.shape[1:])
    ratio = np.asarray(geometry.depth, np.float64) / truth.depth
    path = trajectory.evaluate(
        np.asarray(geometry.world_from_cam, np.float64), truth.world_from_cam
    )
    return {
        "cpu_seconds": seconds,
        "loss": float(objective.evaluate(outcome.variables, problem, config)[0]),
        "ate": path.ate,
        "abs_rel": float(np.mean(np.abs(ratio / np.median(ratio) - 1))),
    }


def main(argv: Sequence[str]) -> None:
    del argv
    height = WIDTH.value * 9 // 16
    truth = wavy_wall.world(FRAMES.value, height, WIDTH.value)
    graph = pairing.make_pairs(FRAMES.value, PairConfig(graph="swinstride-5-noncyclic"))
    alone = {"shared_focal": False, "smoothness_weight": 0.0, "flow_weight": 0.0, "lr_min": 1e-6}
    task = align_lib.prepare(wavy_wall.predict(truth, graph), graph, None, AlignmentConfig(**alone))
    cases = {
        f"Gauss-Newton, every {stride}th pixel": AlignmentConfig(
            solver="gauss_newton", lattice_stride=int(stride), **alone
        )
        for stride in STRIDES.value
    }
    if ADAM.value:
        cases["Adam, 300 iterations"] = AlignmentConfig(**alone)
    print(f"{FRAMES.value} frames of {WIDTH.value}x{height}, {graph.num_pairs} pairs\n")
    print("| solver | CPU-s | loss at full size | ATE | Abs Rel, % |\n|---|---|---|---|---|")
    rows = {}
    for name, config in cases.items():
        row = rows[name] = measure(dataclasses.replace(task, config=config), truth)
        print(
            f"| {name} | {row['cpu_seconds']:.2f} | {row['loss']:.7f} | {row['ate']:.4f} | "
            f"{100 * row['abs_rel']:.2f} |", flush=True,
        )  # fmt: skip
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    cli.run(main)
