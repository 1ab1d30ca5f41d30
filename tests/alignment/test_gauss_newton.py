"""The second-order solver: equations against autodiff, elimination against the full system, the
loop against the recorded end of Adam, in batches, under permutations and changes of gauge."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.alignment import objective
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.solvers import gauss_newton, second_order
from align3r_jax.alignment.solvers import gauss_newton_frames as frames_lib
from align3r_jax.alignment.solvers import gauss_newton_increments as increments
from align3r_jax.alignment.solvers import gauss_newton_slots as slots_lib
from align3r_jax.alignment.solvers import gauss_newton_system as system
from align3r_jax.alignment.terms import pointmap
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import rigid, warp
from tests.alignment import recorded, tiny

OFF = {"smoothness_weight": 0.0, "flow_weight": 0.0}
EVERYTHING = dataclasses.replace(
    tiny.CONFIG,
    smoothness_weight=0.3,
    flow_weight=0.5,
    flow_gate=0.0,
    depth_regulariser_weight=0.2,
    depth_prior_weight=0.4,
    known_camera_weight=0.6,
)
TERMS = {
    "all": EVERYTHING,
    "squared": dataclasses.replace(
        tiny.CONFIG,
        distance="l2",
        residual_over_scale=True,
        normalise_pair_scale=False,
        shared_focal=True,
        flow_weight=0.5,
        flow_gate=0.0,
        flow_pixel_cut=0.0,
        smoothness_weight=0.0,
    ),
}
FLOOR = 1e-9


def _soft_cameras(rng):
    poses = np.tile(np.eye(4), (tiny.T, 1, 1))
    poses[:, :3, 3] = rng.normal(size=(tiny.T, 3))
    return variables_lib.Known(
        world_from_cam=poses,
        focal=rng.uniform(6, 8, size=tiny.T),
        rotation_deviation=np.full(tiny.T, 0.3),
        translation_deviation=np.full(tiny.T, 0.5),
        focal_deviation=np.full(tiny.T, 0.2),
        fixes_scale=False,
    )


def _tiny(config, seed=0):
    """(variables, problem, trainable) with every kind of term that the config weighs."""
    rng = np.random.default_rng(seed)
    predictions, variables, optical_flow, dynamic = tiny.problem(seed=seed)
    if config.shared_focal:
        variables = variables.replace(log_focal=variables.log_focal[:1])
    has_prior = config.depth_prior_weight > 0
    problem = objective.prepare(
        predictions,
        recorded.graph(tiny.PAIRS),
        optical_flow,
        variables,
        dynamic,
        config,
        known=_soft_cameras(rng) if has_prior else None,
        depth_prior=jnp.asarray(rng.uniform(1, 5, size=dynamic.shape)) if has_prior else None,
    )
    initial = problem.initial_log_depth + 0.1 * rng.normal(size=problem.initial_log_depth.shape)
    free = jax.tree.map(jnp.asarray, variables_lib.trainable(variables, config))
    return variables, problem.replace(initial_log_depth=initial), free


@functools.partial(jax.jit, static_argnames=("config", "degrees"))
def _equations(variables, problem, free, damping, *, config, degrees):
    """Blocks, their sum as a matrix and a gradient, and the depths' steps for no other step."""
    slots = slots_lib.arrange(problem, degrees)
    blocks, scene, numbers, depth_free = gauss_newton.equations(
        variables, problem, config, free, slots, flow_counts=True, damping=damping, floor=FLOOR
    )
    matrix = jnp.zeros((numbers.size + 1, numbers.size + 1))
    for block in blocks:
        matrix = matrix.at[block.number[:, :, None], block.number[:, None]].add(block.matrix)
    gradient = system.add(blocks, "gradient", numbers)
    other = jax.random.normal(jax.random.key(0), gradient.shape).at[-1].set(0)
    steps = [
        frames_lib.depth_steps(step, scene, problem, config, numbers, 0.0, depth_free)
        for step in (jnp.zeros_like(other), other)
    ]
    return numbers, matrix[:-1, :-1], gradient[:-1], other, steps


@pytest.mark.parametrize("name", ["all", pytest.param("squared", marks=pytest.mark.slow)])
def test_gradient_is_that_of_the_objective(name):
    config = TERMS[name]
    with jax.enable_x64(True):
        variables, problem, free = _tiny(config)
        # So much damping of the depths that nothing is eliminated.
        numbers, _, gradient, _, _ = _equations(
            variables, problem, free, 1e30, config=config, degrees=slots_lib.degrees(problem)
        )
        gradient = jnp.append(gradient, 0)

        @jax.jit
        @jax.grad
        def expected(step):
            depth_step = jnp.zeros(problem.dynamic.shape)
            moved = increments.take(variables, step, depth_step, numbers, problem, config, free)
            return objective.evaluate(moved, problem, config)[0]

        expected = expected(jnp.zeros(numbers.size + 1))[:-1]
        got = increments.without_gauge(gradient, numbers)[:-1]
        assert float(jnp.abs(expected).max()) > 0.1
        np.testing.assert_allclose(got, expected, atol=1e-9 * float(jnp.abs(expected).max()))


def _weighted_residuals(variables, problem, config):
    """Residuals of point maps and flow and what they weigh in g = J' w r, written out plainly."""
    geometry = variables_lib.decode(variables, config, problem.image_size)
    data, fields = problem.pointmaps, problem.flow
    length = problem.pixels.shape[1]
    frame, row = data.frame.reshape(-1), data.row.reshape(-1)
    pair = row % data.num_pairs
    mapped = jnp.einsum(
        "kab,kbl->kal", geometry.pair_matrix[pair], data.points.reshape(-1, 3, length)
    )
    world = pointmap.world_points(geometry, problem.pixels)[frame]
    by_points = world - mapped - geometry.pair_offset[pair][..., None]
    share = data.weight.reshape(-1, 1, length) / (data.num_pairs * length)
    share = share / jnp.linalg.norm(by_points, axis=1, keepdims=True)

    source, target = fields.source.reshape(-1), fields.target.reshape(-1)
    ego = jax.vmap(warp.ego_flow)(
        geometry.depth.reshape(-1, *problem.image_size)[source],
        geometry.intrinsics[source],
        geometry.intrinsics[target],
        geometry.world_from_cam[source],
        geometry.world_from_cam[target],
    )
    by_flow = jnp.moveaxis(ego.reshape(-1, length, 2), 1, 2) - fields.flow.reshape(-1, 2, length)
    size = jnp.abs(by_flow)
    cost = jnp.where(size < 1, by_flow**2 / 2, size - 0.5)
    trust = fields.trust.reshape(-1, 1, length) * fields.static[source][:, None]
    mask = fields.count.reshape(-1, 1, 1) * trust * (cost < config.flow_pixel_cut)
    pull = 2 * config.flow_weight * mask / jnp.maximum(size, 1) / jnp.sum(mask)
    share = jnp.broadcast_to(share, by_points.shape)
    return tuple(
        jnp.concatenate([part.reshape(-1) for part in parts])
        for parts in ((by_points, by_flow), (share, pull))
    )


@pytest.mark.slow
def test_elimination_is_that_of_the_full_system():
    """H_cc - H_cd H_dd^-1 H_dc and the depths' steps, against J' W J of all unknowns at once."""
    config = dataclasses.replace(
        tiny.CONFIG,
        smoothness_weight=0.0,
        flow_weight=0.5,
        flow_gate=0.0,
        normalise_pair_scale=False,  # else the gauge is taken out when the system is solved
    )
    with jax.enable_x64(True):
        variables, problem, free = _tiny(config)
        numbers, matrix, gradient, other, steps = _equations(
            variables, problem, free, 0.0, config=config, degrees=slots_lib.degrees(problem)
        )
        shape = problem.dynamic.shape

        def residual(step, depth_step):
            moved = increments.take(
                variables,
                jnp.append(step, 0),
                depth_step.reshape(shape),
                numbers,
                problem,
                config,
                free,
            )
            return _weighted_residuals(moved, problem, config)[0]

        zero = jnp.zeros(numbers.size), jnp.zeros(problem.dynamic.size)
        r, w = _weighted_residuals(variables, problem, config)
        by_step, by_depth = jax.jit(jax.jacfwd(residual, (0, 1)))(*zero)
        diagonal = jnp.sum(w[:, None] * by_depth**2, axis=0)
        coupling = by_step.T @ (w[:, None] * by_depth)
        force = by_depth.T @ (w * r)
        full = by_step.T @ (w[:, None] * by_step) - coupling / diagonal @ coupling.T
        np.testing.assert_allclose(matrix, full, atol=1e-9 * float(jnp.abs(full).max()))
        slope = by_step.T @ (w * r) - coupling @ (force / diagonal)
        np.testing.assert_allclose(gradient, slope, atol=1e-9 * float(jnp.abs(slope).max()))
        for step, got in zip((0 * other, other), steps, strict=True):
            expected = -(force + coupling.T @ step[:-1]) / diagonal
            np.testing.assert_allclose(got.reshape(-1), expected, rtol=1e-7, atol=1e-9)


def test_both_solutions_of_the_system():
    """Cholesky and conjugate gradients agree, and the scale gauge holds exactly."""
    rng = np.random.default_rng(0)
    size = 12
    number = np.stack([rng.choice(size + 1, 6, replace=False) for _ in range(8)])
    root = rng.normal(size=(8, 6, 6))
    matrix = jnp.asarray(root @ root.transpose(0, 2, 1) + np.eye(6), jnp.float32)
    gradient = jnp.asarray(rng.normal(size=number.shape), jnp.float32)
    blocks = [
        frames_lib.Blocks(
            jnp.asarray(number), matrix, gradient, jnp.diagonal(matrix, axis1=1, axis2=2)
        )
    ]
    numbers = increments.Unknowns(
        frame=jnp.zeros((1, 7), jnp.int32),
        pair=jnp.zeros((1, 7), jnp.int32),
        gauge=jnp.zeros(size + 1).at[jnp.array([2, 5, 7])].set(1),
        size=size,
        principal_point=False,
        mean_depth=False,
    )
    direct = system.solve(blocks, numbers, 1e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "DENSE_UNKNOWNS", 0)
        patch.setattr(system, "CONJUGATE_TOLERANCE", 1e-6)
        iterated = system.solve(blocks, numbers, 1e-6)
    np.testing.assert_allclose(direct, iterated, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.asarray(direct) @ np.asarray(numbers.gauge), 0, atol=1e-5)
    # It minimises the quadratic model among the steps of the same gauge.
    total = np.zeros((size + 1, size + 1))
    slope = np.zeros(size + 1)
    for rows, block, g in zip(number, np.asarray(matrix), np.asarray(gradient), strict=True):
        total[np.ix_(rows, rows)] += block
        slope[rows] += g
    remainder = (total @ np.asarray(direct) + slope)[:-1]
    inside = np.isin(np.arange(size), [2, 5, 7])
    np.testing.assert_allclose(remainder[~inside], 0, atol=1e-3)
    np.testing.assert_allclose(remainder[inside], remainder[inside].mean(), atol=1e-3)


@pytest.fixture(scope="module")
def static_scene(golden_dir):
    """The recorded scene without flow, and how to run it (compiled once for all tests)."""
    scene = np.load(golden_dir / "alignment_scene.npz")
    golden = np.load(golden_dir / "alignment_dust3r.npz")
    size = (int(scene["H"]), int(scene["W"]))
    config = AlignmentConfig(shared_focal=False, gauss_newton_steps=16, **OFF)
    start = recorded.variables(golden, "init_", size)

    def run(start, order=slice(None), **changes):
        predictions = recorded.predictions(scene, order)
        predictions = dataclasses.replace(predictions, **changes)
        graph = recorded.graph(scene["edges"][order], int(scene["N"]))
        problem = objective.prepare(predictions, graph, None, start, None, config)
        free = variables_lib.trainable(start, config)
        return second_order.optimise(
            start, problem, config, free, refresh=lambda _, old: old, refresh_count=1
        )

    return scene, golden, config, start, run, run(start)


@pytest.mark.golden
def test_recorded_scene(static_scene):
    """Every step lowers the loss, the end lies below that of 300 iterations of Adam."""
    _, golden, config, start, _, outcome = static_scene
    total = outcome.trace["total"]
    assert not outcome.failed and len(total) == config.gauss_newton_steps + 1
    np.testing.assert_allclose(total[0], golden["init_loss"], rtol=1e-4)
    # Between the halves every depth is solved by itself; the last entry is of the end.
    assert (np.diff(total) < 2e-6).all() and outcome.trace["accepted"][:6].all()
    assert total[2] < 0.4 * total[-1] + 0.6 * total[0]
    assert total[-1] < golden["demo_final_loss"][0] * (1 + 1e-5)
    # Groups that are not free keep their bits.
    for name in ("principal_point", "pair_adaptor"):
        np.testing.assert_array_equal(getattr(outcome.variables, name), getattr(start, name))


@pytest.mark.slow
@pytest.mark.golden
def test_order_of_pairs_and_frame_of_the_world(static_scene):
    scene, _, config, start, run, outcome = static_scene
    size = outcome.variables.log_depth.shape[1:]
    expected = variables_lib.decode(outcome.variables, config, size)

    order = np.random.default_rng(0).permutation(len(scene["edges"]))
    pair_groups = {
        field.name: getattr(start, field.name)[order]
        for field in dataclasses.fields(start)
        if field.name.startswith("pair")
    }
    permuted = run(start.replace(**pair_groups), order)
    np.testing.assert_allclose(permuted.trace["total"][-1], outcome.trace["total"][-1], rtol=1e-5)
    geometry = variables_lib.decode(permuted.variables, config, size)
    np.testing.assert_allclose(geometry.depth, expected.depth, rtol=2e-3)

    # A rigid motion of the start moves the whole result and nothing else.
    turn = rigid.exp_so3(jnp.array([0.4, -0.3, 1.0]))
    motion = rigid.pose(turn, jnp.array([1.0, -2.0, 0.5]))
    first = variables_lib.decode(start, config, size)
    poses = rigid.compose(motion, first.world_from_cam)
    rotation = rigid.compose(turn, rigid.matrix_from_quaternion(start.pair_quaternion))
    offset = first.pair_offset @ turn.T + motion[:3, 3]
    moved = run(
        start.replace(
            frame_quaternion=rigid.quaternion_from_matrix(poses[:, :3, :3]),
            frame_translation=rigid.encode_translation(poses[:, :3, 3]),
            pair_quaternion=rigid.quaternion_from_matrix(rotation),
            pair_translation=rigid.encode_translation(offset / first.pair_scale[:, None]),
        )
    )
    np.testing.assert_allclose(moved.trace["total"][-1], outcome.trace["total"][-1], rtol=1e-4)
    geometry = variables_lib.decode(moved.variables, config, size)
    np.testing.assert_allclose(geometry.depth, expected.depth, rtol=1e-2)
    back = rigid.compose(rigid.invert(motion), geometry.world_from_cam)
    relative, expected_relative = (
        rigid.compose(rigid.invert(p[:1]), p) for p in (back, expected.world_from_cam)
    )
    np.testing.assert_allclose(relative, expected_relative, atol=5e-3)


@pytest.mark.golden
def test_a_start_that_is_not_finite_comes_back(static_scene):
    _, _, _, start, run, _ = static_scene
    bad = start.replace(frame_translation=start.frame_translation.at[1, 0].set(jnp.nan))
    outcome = run(bad)
    assert outcome.failed and not outcome.trace["accepted"].any()
    for got, expected in zip(jax.tree.leaves(outcome.variables), jax.tree.leaves(bad), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.slow
@pytest.mark.golden
def test_recorded_scene_with_all_terms(golden_dir):
    scene = np.load(golden_dir / "alignment_scene.npz")
    golden = np.load(golden_dir / "alignment_flow.npz")
    size = (int(scene["H"]), int(scene["W"]))
    config = AlignmentConfig(flow_use_weight=False, gauss_newton_steps=16)
    start = recorded.variables(golden, "init_", size)
    problem = objective.prepare(
        recorded.predictions(scene),
        recorded.graph(scene["edges"]),
        recorded.flow(scene, scene["edges"]),
        start,
        jnp.asarray(golden["dynamic_masks"]),
        config,
    )
    outcome = second_order.optimise(start, problem, config, variables_lib.trainable(start, config))
    assert outcome.trace["total"][-1] < golden["demo_final_loss"][0] * (1 + 1e-4)
    assert (np.diff(outcome.trace["total"][2:]) < 1e-6).all()


@pytest.mark.slow
def test_batch_of_problems_and_frozen_frames():
    """The pure loop vmaps; frames that are held in some frames only keep their poses."""
    config = dataclasses.replace(EVERYTHING, gauss_newton_steps=3)
    runs = [_tiny(config, seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
    degrees = slots_lib.degrees(stacked[1])
    assert degrees == slots_lib.degrees(runs[0][1])
    held = jnp.array([True, False, True, True])

    def one(variables, problem, free):
        free = free.replace(frame_quaternion=held, frame_translation=held)
        state = gauss_newton.initial_state(variables, problem, config)
        state, trace = gauss_newton.scan(
            state, problem, 0, config=config, trainable=free, num_steps=3, degrees=degrees
        )
        return state.variables, trace

    batched, trace = jax.jit(jax.vmap(one))(*stacked)
    alone = jax.jit(one)
    for k, (variables, problem, free) in enumerate(runs):
        single, single_trace = alone(variables, problem, free)
        np.testing.assert_allclose(trace["total"][k], single_trace["total"], rtol=2e-3)
        assert single_trace["total"][-1] < single_trace["total"][1]
        for name in ("frame_quaternion", "frame_translation"):
            got = getattr(single, name)
            np.testing.assert_array_equal(got[1], getattr(variables, name)[1])
            assert np.abs(got[0] - getattr(variables, name)[0]).max() > 1e-4
            np.testing.assert_allclose(getattr(batched, name)[k], got, atol=2e-2)


def test_slots_tell_if_they_are_too_few():
    problem = _tiny(tiny.CONFIG)[1]
    degrees = slots_lib.degrees(problem)
    assert degrees.observations == 4  # frames 1 and 2 stand in four of the seven pairs
    assert bool(slots_lib.arrange(problem, degrees).complete)
    fewer = degrees._replace(observations=3)
    assert not bool(slots_lib.arrange(problem, fewer).complete)
    pairs = jnp.asarray(tiny.PAIRS)
    assert slots_lib.bound(tiny.T, np.asarray(pairs), None).observations == 4
