"""Depth of every pixel with cameras fixed: against the objective, in parts, on the lattice."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.alignment import lattice, objective
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.solvers import depth_solve
from align3r_jax.alignment.terms import pointmap
from tests.alignment import recorded, tiny

CONFIG = dataclasses.replace(
    tiny.CONFIG,
    smoothness_weight=0.0,
    flow_weight=0.3,
    flow_gate=0.0,
    depth_rounds=60,
)


@pytest.fixture(scope="module")
def solved():
    predictions, variables, optical_flow, dynamic = tiny.problem()
    # Pairs that see the scene in front of the cameras, so that every depth has a minimum.
    variables = variables.replace(
        pair_quaternion=0.1 * variables.pair_quaternion + jnp.array([0, 0, 0, 1.0])
    )
    problem = objective.prepare(
        predictions, recorded.graph(tiny.PAIRS), optical_flow, variables, dynamic, CONFIG
    )
    solve = jax.jit(functools.partial(depth_solve.solve, config=CONFIG, flow_counts=True))
    return predictions, variables, problem, solve(variables, problem), solve


def test_it_is_a_minimum(solved):
    """No common or single change of depth lowers the loss."""
    _, variables, problem, result, _ = solved
    loss = jax.jit(lambda v: objective.evaluate(v, problem, CONFIG)[0])
    best = float(loss(result))
    assert best < 0.95 * float(loss(variables))
    rng = np.random.default_rng(0)
    for size in (0.02, 0.1, 0.5):
        for _ in range(4):
            change = size * rng.normal(size=result.log_depth.shape)
            assert float(loss(result.replace(log_depth=result.log_depth + change))) > best
    for name in ("frame_quaternion", "pair_translation", "log_focal"):
        np.testing.assert_array_equal(getattr(result, name), getattr(variables, name))


def test_start_does_not_matter(solved):
    _, variables, problem, result, solve = solved
    other = solve(variables.replace(log_depth=jnp.full_like(variables.log_depth, 3.0)), problem)
    near = np.isclose(other.log_depth, result.log_depth, atol=0.02)
    assert near.mean() > 0.95  # the flow is not convex everywhere


@pytest.mark.slow
def test_pairs_may_come_in_parts(solved):
    predictions, variables, problem, _, _ = solved
    geometry = variables_lib.decode(variables, CONFIG, problem.image_size)
    depth = geometry.depth.reshape(tiny.T, -1)
    add = functools.partial(depth_solve.add, pixels=problem.pixels, config=CONFIG, first=False)
    whole = add(depth_solve.begin(depth), depth, geometry, problem.pointmaps)
    sums = depth_solve.begin(depth)
    for rows in (slice(0, 3), slice(3, 7)):
        part = jax.tree.map(lambda leaf, rows=rows: leaf[rows], predictions)
        graph = dataclasses.replace(recorded.graph(tiny.PAIRS[rows], tiny.T), symmetric=False)
        own = geometry.replace(
            pair_scale=geometry.pair_scale[rows],
            pair_matrix=geometry.pair_matrix[rows],
            pair_offset=geometry.pair_offset[rows],
        )
        sums = add(sums, depth, own, pointmap.prepare(part, graph, "log"))
    for got, expected in zip(jax.tree.leaves(sums), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_lattice():
    """The reduced problem is the problem of reduced inputs, and knows where its pixels lie."""
    predictions, variables, optical_flow, dynamic = tiny.problem()
    graph = recorded.graph(tiny.PAIRS)
    full = objective.prepare(predictions, graph, optical_flow, variables, dynamic, CONFIG)
    reduced = lattice.reduce(full, 2)
    small = lattice.variables(variables, 2)
    other = lattice.at_pixels(
        objective.prepare(
            lattice.predictions(predictions, 2),
            graph,
            lattice.flow(optical_flow, 2),
            small,
            lattice.images(dynamic, 2),
            CONFIG,
        ),
        (tiny.H, tiny.W),
        2,
    )
    np.testing.assert_array_equal(reduced.pixels, [[1, 3, 5, 1, 3, 5], [1, 1, 1, 3, 3, 3]])
    got, _ = objective.evaluate(small, reduced, CONFIG)
    expected, _ = objective.evaluate(small, other, CONFIG)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert (lattice.stride_for(288, 512), lattice.stride_for(144, 256)) == (6, 3)
    assert (lattice.stride_for(30, 40), lattice.stride_for(288, 512, 3)) == (1, 3)
