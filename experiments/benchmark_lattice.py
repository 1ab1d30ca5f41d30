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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy.spatial.transform import Rotation

from align3r_jax import pairing
from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import objective
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.solvers import adam, second_order
from align3r_jax.config import AlignmentConfig, PairConfig
from align3r_jax.evaluation import trajectory
from align3r_jax.structs import PairGraph, PairPredictions
from data.procedural.oracle import smooth
from experiments import cli

STRIDES = flags.DEFINE_list("strides", ["8", "6", "4"], "Of Gauss-Newton's lattice.")
ADAM = flags.DEFINE_bool("adam", False, "Also 300 iterations of Adam over all pixels.")
FRAMES = flags.DEFINE_integer("frames", 20, "Frames of the scene.", lower_bound=2)
WIDTH = flags.DEFINE_integer("width", 512, "Width; the height is 9/16 of it.", lower_bound=32)
OUTPUT = flags.DEFINE_string("output", None, "Also write the rows as JSON here.")

_SURFACE_STEPS = 60
_BALL_RADIUS = 0.45


class World(NamedTuple):
    """world_from_cam (T, 4, 4), depth (T, H, W), and the rays (H, W, 3) of all cameras."""

    world_from_cam: np.ndarray
    depth: np.ndarray
    rays: np.ndarray


def world(frames: int, height: int, width: int) -> World:
    """Returns the wall and the ball as every camera sees them; the focal is 0.9 widths."""
    focal = 0.9 * width
    rows, columns = np.mgrid[:height, :width]
    rays = np.stack([(columns - width / 2) / focal, (rows - height / 2) / focal,
                     np.ones((height, width))], -1)  # fmt: skip
    poses, depths = np.tile(np.eye(4), (frames, 1, 1)), []
    for k in range(frames):
        s = k / (frames - 1)
        poses[k, :3, 3] = 0.5 * np.sin(1.3 * s), -0.1 * s, 0.25 * s
        angles = [0.02 * np.sin(3 * s), -0.15 * s, 0.05 * s]
        poses[k, :3, :3] = Rotation.from_euler("ZYX", angles).as_matrix()
        seen, centre = rays @ poses[k, :3, :3].T, poses[k, :3, 3]
        depth = np.full((height, width), 4.0)
        for _ in range(_SURFACE_STEPS):
            x, y, _ = np.moveaxis(centre + depth[..., None] * seen, -1, 0)
            wall = 4 + 0.5 * np.sin(1.1 * x + 0.3) + 0.4 * np.cos(0.9 * y) + 0.15 * x
            depth = (wall - centre[2]) / seen[..., 2]
        towards = np.array([-0.5 + 0.9 * s**2, 0.1 - 0.15 * s, 2.6]) - centre
        along, length = seen @ towards, np.sum(seen**2, axis=-1)
        inside = along**2 - length * (towards @ towards - _BALL_RADIUS**2)
        ball = (along - np.sqrt(np.maximum(inside, 0))) / length
        depths.append(np.where((inside > 0) & (ball > 0) & (ball < depth), ball, depth))
    return World(poses, np.stack(depths), rays)


def predict(truth: World, graph: PairGraph, seed: int = 0) -> PairPredictions:
    """Returns what a network would say, with scale, bend, noise and outliers of every pair."""
    rng = np.random.default_rng(seed)
    shape = truth.depth.shape[1:]
    views: tuple[list, list] = ([], [])
    confidences: tuple[list, list] = ([], [])
    for pair in graph.pairs.tolist():
        scale, bend = np.exp(0.3 * rng.standard_normal()), 1 + 0.02 * rng.standard_normal()
        camera = truth.world_from_cam[pair[0]]
        for side, frame in enumerate(pair):
            pose = truth.world_from_cam[frame]
            points = (truth.rays * truth.depth[frame][..., None]) @ pose[:3, :3].T + pose[:3, 3]
            points = (points - camera[:3, 3]) @ camera[:3, :3]
            confidence = 1 + np.exp(1.2 + 0.8 * smooth(rng, *shape))
            points = points * [bend, bend, 1] * (1 + 0.01 * smooth(rng, *shape)[..., None])
            noise = 0.03 / np.sqrt(confidence)[..., None] * rng.standard_normal((*shape, 3))
            points = points + noise * points[..., 2:] * [0.3, 0.3, 1]
            outlier = rng.uniform(size=shape) < 0.01
            points = scale * points * np.where(outlier, 1.15, 1)[..., None]
            views[side].append(points.astype(np.float32))
            confidences[side].append(np.where(outlier, 1.05, confidence).astype(np.float32))
    return PairPredictions(*(np.stack(v) for v in views), *(np.stack(c) for c in confidences))


def measure(task: align_lib.Task, truth: World) -> dict[str, float]:
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
    truth = world(FRAMES.value, height, WIDTH.value)
    graph = pairing.make_pairs(FRAMES.value, PairConfig(graph="swinstride-5-noncyclic"))
    alone = {"shared_focal": False, "smoothness_weight": 0.0, "flow_weight": 0.0, "lr_min": 1e-6}
    task = align_lib.prepare(predict(truth, graph), graph, None, AlignmentConfig(**alone))
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
