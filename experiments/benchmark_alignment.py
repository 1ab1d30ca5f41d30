"""One iteration of Adam over all terms of the alignment: bound by reading every pair once."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from align3r_jax import pairing
from align3r_jax.alignment import objective
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.solvers import adam
from align3r_jax.config import AlignmentConfig, PairConfig
from align3r_jax.structs import OpticalFlow, PairGraph, PairPredictions
from experiments import benchmark_measure, benchmark_rows

ITERATIONS = 5


def iteration_row(frames: int, height: int, width: int) -> benchmark_rows.Row:
    """Returns the row of one iteration, flow included, of a flat graph of `frames` frames.

    Random content: values do not change the cost.
    """
    graph = pairing.make_pairs(frames, PairConfig())
    state, problem, config, trainable = _problem(graph, height, width)

    def loop(state: Any, problem: Any) -> Any:
        return adam.scan(
            state, problem, 0, config=config, trainable=trainable, num_steps=ITERATIONS
        )

    found = benchmark_measure.measure(loop, state, problem, repeats=1)
    # Points (3), weight (1) and flow (3) of both views once; depth, its gradient and moments.
    floats = 2 * 7 * graph.num_pairs * height * width + 6 * frames * height * width
    # The compiler counts the body of a loop once.
    more = {
        "seconds_run": found.seconds / ITERATIONS,
        "cpu_seconds_run": found.cpu_seconds / ITERATIONS,
        "bytes": 4.0 * floats,
        "counted": f"operations: {found.cost.counted}; bytes: points, weights, flow and depth once",
        "part_of": "alone",
    }
    return benchmark_rows.of_measured(
        benchmark_rows.ITERATION, graph.num_pairs, "pair", found, **more
    )


def _problem(
    graph: PairGraph, height: int, width: int
) -> tuple[adam.State, objective.Problem, AlignmentConfig, Any]:
    config = AlignmentConfig(iterations=ITERATIONS, flow_start=0.0, flow_gate=0.0)
    rng = np.random.default_rng(0)
    frames, count, shape = graph.num_frames, graph.num_pairs, (height, width)
    points = jnp.asarray(rng.normal(1.0, 0.1, (count, *shape, 3)).astype(np.float32))
    confidence = jnp.asarray(rng.uniform(1.5, 5.0, (count, *shape)).astype(np.float32))
    predictions = PairPredictions(points, points, confidence, confidence)
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
    return adam.initial_state(start), problem, config, variables_lib.trainable(start, config)
