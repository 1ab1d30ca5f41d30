"""Each term and its hand-written gradient against autodiff of the plain formula, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.alignment import objective
from align3r_jax.alignment import variables as variables_module
from align3r_jax.alignment.terms import depth_prior, flow, pointmap, smoothness
from align3r_jax.geometry import rigid, warp
from align3r_jax.structs import AlignmentVariables
from tests.alignment import plain, recorded, tiny
from tests.alignment.tiny import CONFIG, PAIRS, H, T, W


@pytest.fixture(autouse=True, scope="module")
def float64():
    """float64 throughout, also where the library asks for its working precision."""
    with jax.enable_x64(True):
        yield


# One compilation for all tests of equal shapes.
_evaluate = jax.jit(jax.value_and_grad(objective.evaluate, has_aux=True), static_argnames="config")


def _assert_same_tree(got, expected):
    for name in AlignmentVariables.__dataclass_fields__:
        a, b = np.asarray(getattr(got, name)), np.asarray(getattr(expected, name))
        assert np.abs(b).max() > 0, name
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize(
    "symmetric_flow, changes",
    [
        pytest.param(True, {}, marks=pytest.mark.slow),
        (False, {"residual_over_scale": True, "normalise_pair_scale": False}),
        pytest.param(
            False,
            {"distance": "l2", "confidence_weight": "sqrt", "flow_pixel_cut": 0.0},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            True,
            {"residual_over_scale": True, "distance": "l2", "flow_use_weight": False},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_gradient_equals_autodiff_of_the_plain_formula(symmetric_flow, changes):
    config = dataclasses.replace(CONFIG, **changes)
    predictions, variables, optical_flow, dynamic = tiny.problem(symmetric_flow)
    graph = recorded.graph(PAIRS)
    problem = objective.prepare(predictions, graph, optical_flow, variables, dynamic, config)
    indices = flow.field_indices(optical_flow, graph)
    assert (min(indices[0].min(), indices[1].min()) == -1) and problem.flow is not None

    def direct(v):
        extra = (optical_flow, indices, ~dynamic)
        return plain.total(v, predictions, PAIRS, config, (H, W), extra)

    (total, _), gradient = _evaluate(variables, problem, config=config)
    expected_total, expected = jax.jit(jax.value_and_grad(direct))(variables)
    # The regularising epsilons differ nowhere, so only rounding is left.
    np.testing.assert_allclose(total, expected_total, rtol=1e-9)
    _assert_same_tree(gradient, expected)
    geometry = variables_module.decode(variables, config, (H, W))
    value_only, _ = pointmap.alignment(
        geometry, problem.pixels, problem.pointmaps, config.distance, config.residual_over_scale
    )
    direct_value = plain.alignment(
        geometry,
        predictions,
        PAIRS,
        config.distance,
        config.confidence_weight,
        config.residual_over_scale,
    )
    np.testing.assert_allclose(value_only, sum(direct_value), rtol=1e-9)


def test_shared_fields_are_evaluated_once():
    """With both directions in the graph each field counts in both sums."""
    predictions, variables, optical_flow, dynamic = tiny.problem()
    graph = recorded.graph(PAIRS[:6])
    data = flow.prepare(
        optical_flow, *flow.field_indices(optical_flow, graph), ~dynamic, use_weight=True
    )
    assert data.count.shape[0] == 1
    geometry = variables_module.decode(variables, CONFIG, (H, W))
    pixels = warp.pixel_grid(H, W, jnp.float64).reshape(-1, 2).T
    forward, backward = flow.flow_terms(geometry, pixels, data, 3.0)
    np.testing.assert_allclose(forward, backward, rtol=1e-12)


def test_gradient_of_the_norm_at_zero_residual_is_zero():
    predictions, variables, _, _ = tiny.problem()
    geometry = variables_module.decode(variables, CONFIG, (H, W))
    world = plain.world_points(geometry)
    inverse = jnp.linalg.inv(geometry.pair_matrix)
    exact = [
        jnp.einsum(
            "eij,ehwj->ehwi", inverse, world[PAIRS[:, k]] - geometry.pair_offset[:, None, None]
        )
        for k in (0, 1)
    ]
    data = pointmap.prepare(
        predictions.replace(pointmap1=exact[0], pointmap2=exact[1]), recorded.graph(PAIRS), "log"
    )
    # Exactly zero: the residual of a point with itself, not up to rounding.
    data = data.replace(points=jnp.zeros_like(data.points))
    zero = jnp.zeros_like(geometry.pair_offset)
    gradient = jax.grad(
        lambda p: pointmap.weighted_residual(
            p, geometry.pair_matrix, zero, jnp.ones(len(PAIRS)), data, "l1"
        )[0]
    )(jnp.zeros((T, 3, H * W)))
    np.testing.assert_array_equal(gradient, 0.0)


def test_flow_of_points_on_the_camera_plane_is_ignored():
    predictions, variables, optical_flow, dynamic = tiny.problem()
    # Frame 1 looks back at frame 0's points from where they are: depth near zero, huge flows.
    flipped = variables.replace(
        frame_quaternion=variables.frame_quaternion.at[1].set(
            jnp.array([0.0, np.sqrt(0.5), 0.0, np.sqrt(0.5)])
        )
    )
    problem = objective.prepare(
        predictions, recorded.graph(PAIRS), optical_flow, flipped, dynamic, CONFIG
    )
    (total, _), gradient = _evaluate(flipped, problem, config=CONFIG)
    assert np.isfinite(total)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_no_kept_pixel_gives_zero_flow_loss():
    predictions, variables, optical_flow, dynamic = tiny.problem()
    everything = jnp.ones_like(dynamic)
    problem = objective.prepare(
        predictions, recorded.graph(PAIRS), optical_flow, variables, everything, CONFIG
    )
    (_, terms), _ = _evaluate(variables, problem, config=CONFIG)
    assert terms["flow_12"] == terms["flow_21"] == 0


def test_smoothness():
    still = jnp.broadcast_to(jnp.eye(4), (3, 4, 4))
    value, slope = jax.value_and_grad(smoothness.smoothness)(still, 1.0)
    assert value == 0 and np.all(slope == 0)
    turn = rigid.pose(rigid.exp_so3(jnp.array([0, 0, np.pi / 2])), jnp.array([3.0, 0, 4.0]))
    steps = smoothness.per_step(jnp.stack([jnp.eye(4), turn, turn]), 0.5)
    np.testing.assert_allclose(steps, [2 + 2.5, 0], atol=1e-12)


def test_depth_regulariser_ignores_scale_and_doubles_moving_pixels():
    start = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6)))
    still = jnp.zeros((2, 6), bool)
    np.testing.assert_allclose(
        depth_prior.log_depth_change(start + 0.7, start, still), 0, atol=1e-12
    )
    bent = start.at[0, 0].add(6.0)
    # Frame 0: changes (5, -1, -1, ...): mean square 5; frame 1: 0.
    np.testing.assert_allclose(depth_prior.log_depth_change(bent, start, still), 2.5)
    moving = still.at[0, 0].set(True)
    np.testing.assert_allclose(depth_prior.log_depth_change(bent, start, moving), (30 + 25) / 12)


def test_confidence_weights():
    value = jnp.array([1.0, 4.0])
    expected = {"log": np.log([1, 4]), "sqrt": [1, 2], "m1": [0, 3], "id": [1, 4]}
    for kind, weight in expected.items():
        np.testing.assert_allclose(pointmap.confidence_weight(value, kind), weight)


def test_padding_of_chunks_changes_nothing(monkeypatch):
    predictions, variables, optical_flow, dynamic = tiny.problem()

    def value_and_gradient():
        problem = objective.prepare(
            predictions, recorded.graph(PAIRS), optical_flow, variables, dynamic, CONFIG
        )
        (total, _), gradient = _evaluate(variables, problem, config=CONFIG)
        return problem.pointmaps.points.shape[:2], (total, gradient)

    (_, whole), (total, gradient) = value_and_gradient()
    monkeypatch.setitem(pointmap.CHUNK_ELEMENTS, jax.default_backend(), 5 * H * W)
    (chunks, length), (chunked_total, chunked_gradient) = value_and_gradient()
    assert (whole, chunks, length) == (2 * len(PAIRS), 3, 5)
    np.testing.assert_allclose(chunked_total, total, rtol=1e-12)
    _assert_same_tree(chunked_gradient, gradient)
