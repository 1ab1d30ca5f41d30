"""The total loss, its terms and its gradient against the recorded parameter points."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.alignment import objective
from align3r_jax.alignment import variables as variables_module
from align3r_jax.alignment.terms import flow, pointmap, smoothness
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import rigid, warp
from align3r_jax.structs import OpticalFlow
from tests.alignment import recorded

pytestmark = pytest.mark.golden

# Relative to the largest entry of a gradient.
GRADIENT_TOLERANCE = 1e-4
STATIC = AlignmentConfig(shared_focal=False, smoothness_weight=0.0, flow_weight=0.0)
DEMO = AlignmentConfig(depth_regulariser_weight=0.1, flow_use_weight=False)

_evaluate = jax.jit(jax.value_and_grad(objective.evaluate, has_aux=True), static_argnames="config")


@pytest.fixture(scope="module")
def scene(golden_dir):
    return dict(np.load(golden_dir / "alignment_scene.npz"))


@pytest.fixture(scope="module")
def size(scene):
    return int(scene["H"]), int(scene["W"])


@pytest.fixture(scope="module")
def static_golden(golden_dir):
    return dict(np.load(golden_dir / "alignment_dust3r.npz"))


@pytest.fixture(scope="module")
def flow_golden(golden_dir):
    return dict(np.load(golden_dir / "alignment_flow.npz"))


def _assert_gradient(tree, golden, prefix, size, names=recorded.GROUPS, missing_is_zero=True):
    for name, got in recorded.groups(tree).items():
        if name not in names:
            continue
        if prefix + name not in golden:
            # The reference holds the adaptors fixed here and records no gradient for them.
            if missing_is_zero and name != "pw_adaptors":
                np.testing.assert_allclose(got, 0, atol=1e-7, err_msg=name)
            continue
        expected = golden[prefix + name]
        if expected.shape != got.shape:  # depth, every 2nd pixel
            got = got.reshape(-1, *size)[:, ::2, ::2]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(got, expected, atol=GRADIENT_TOLERANCE * scale, err_msg=name)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_alignment_gradient(static_golden, scene, size, distance):
    point = recorded.variables(static_golden, "point_", size)
    config = dataclasses.replace(STATIC, distance=distance)
    problem = objective.prepare(
        recorded.predictions(scene), recorded.graph(scene["edges"]), None, point, None, config
    )
    (total, terms), gradient = _evaluate(point, problem, config=config)
    expected = static_golden[f"loss_{distance}_log"]
    got = [terms["pointmap_1"], terms["pointmap_2"], total]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    _assert_gradient(gradient, static_golden, f"grad_{distance}_", size)


@pytest.mark.parametrize("kind", ["log", "sqrt", "m1", "id"])
def test_alignment_loss_of_every_confidence_weight(static_golden, scene, size, kind):
    point = recorded.variables(static_golden, "point_", size)
    config = dataclasses.replace(STATIC, confidence_weight=kind)
    graph = recorded.graph(scene["edges"])
    problem = objective.prepare(recorded.predictions(scene), graph, None, point, None, config)
    (total, terms), _ = _evaluate(point, problem, config=STATIC)
    expected = static_golden[f"loss_l1_{kind}"]
    got = [terms["pointmap_1"], terms["pointmap_2"], total]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_alignment_loss_without_scale_normalisation(static_golden, scene, size):
    point = recorded.variables(static_golden, "point_", size)
    config = dataclasses.replace(STATIC, normalise_pair_scale=False)
    problem = objective.prepare(
        recorded.predictions(scene), recorded.graph(scene["edges"]), None, point, None, config
    )
    geometry = variables_module.decode(point, config, size)
    total, _ = pointmap.alignment(geometry, problem.pixels, problem.pointmaps, config.distance)
    np.testing.assert_allclose(total, static_golden["loss_l1_log_no_norm"], rtol=1e-5)


@pytest.fixture(scope="module")
def flow_problem(flow_golden, scene, size):
    """The recorded point of the variant with flow. Every pair has its own two fields."""
    point = recorded.variables(flow_golden, "point_", size)
    graph = recorded.graph(scene["edges"])
    dynamic = jnp.asarray(flow_golden["dynamic_masks"])
    problem = objective.prepare(recorded.predictions(scene), graph, None, point, dynamic, DEMO)
    fields = recorded.flow(scene, graph.pairs)
    index = np.arange(graph.num_pairs, dtype=np.int32)
    data = flow.prepare(fields, index, index + graph.num_pairs, ~dynamic, use_weight=False)
    initial = jnp.asarray(flow_golden["init_im_depthmaps"]).reshape(problem.dynamic.shape)
    return point, problem.replace(flow=data, initial_log_depth=initial)


@functools.partial(jax.jit, static_argnames="config")
def _gradient_of_every_term(variables, problem, config):
    """Total, terms, and the gradients of (total, smoothness, both flow terms, depth) in rows."""

    def values(v):
        total, terms = objective.evaluate(v, problem, config)
        both = terms["flow_12"] + terms["flow_21"]
        return jnp.stack([total, terms["smoothness"], both, terms["depth"]]), (total, terms)

    _, pullback, aux = jax.vjp(values, variables, has_aux=True)
    return *aux, jax.vmap(pullback)(jnp.eye(4))[0]


def test_terms_total_and_their_gradients(flow_golden, flow_problem, size):
    point, problem = flow_problem
    total, terms, gradients = _gradient_of_every_term(point, problem, DEMO)
    names = ("align_i", "align_j", "smooth", "flow_i", "flow_j", "depth_reg")
    expected = [flow_golden[f"term_{name}"] for name in names]
    np.testing.assert_allclose([terms[name] for name in objective.TERMS], expected, rtol=2e-5)
    np.testing.assert_allclose(total, flow_golden["total_with_flow"], rtol=1e-5)
    rows = [jax.tree.map(lambda leaf, k=k: leaf[k], gradients) for k in range(4)]
    weights = (DEMO.smoothness_weight, DEMO.flow_weight, DEMO.depth_regulariser_weight)
    align = jax.tree.map(
        lambda whole, *parts: whole - sum(w * p for w, p in zip(weights, parts, strict=True)), *rows
    )
    _assert_gradient(rows[0], flow_golden, "grad_total_", size)
    _assert_gradient(align, flow_golden, "grad_align_", size)
    for row, name in zip(rows[1:], ("smooth", "flow", "depth_reg"), strict=True):
        _assert_gradient(row, flow_golden, f"grad_{name}_", size)


@pytest.mark.slow
def test_variants_of_the_flow_term(flow_golden, flow_problem, scene, size):
    point, problem = flow_problem
    plain = dataclasses.replace(DEMO, depth_regulariser_weight=0.0)
    frames = point.log_depth.shape[0]
    apart = point.replace(log_focal=jnp.broadcast_to(point.log_focal, (frames,)))
    config = dataclasses.replace(plain, shared_focal=False)
    (total, _), gradient = _evaluate(apart, problem, config=config, with_flow=True)
    np.testing.assert_allclose(total, flow_golden["total_unshared"], rtol=1e-5)
    _assert_gradient(
        gradient, flow_golden, "grad_unshared_", size, names=("im_focals",), missing_is_zero=False
    )
    config = dataclasses.replace(plain, flow_pixel_cut=0.5)
    (total, _), gradient = _evaluate(point, problem, config=config, with_flow=True)
    np.testing.assert_allclose(total, flow_golden["total_pxl_thre_0p5"], rtol=1e-5)
    _assert_gradient(
        gradient,
        flow_golden,
        "grad_pxl_thre_0p5_",
        size,
        names=("im_poses",),
        missing_is_zero=False,
    )
    config = dataclasses.replace(plain, flow_gate=0.5)
    (total, terms), _ = _evaluate(point, problem, config=config, with_flow=True)
    np.testing.assert_allclose(total, flow_golden["total_gated"], rtol=1e-5)
    (total, off), _ = _evaluate(point, problem, config=config, with_flow=False)
    without = flow_golden["total_without_flow"] - 0.1 * flow_golden["term_depth_reg"]
    np.testing.assert_allclose(total, without, rtol=1e-5)
    assert off["flow_12"] == off["flow_21"] == 0
    assert terms["flow_12"] + terms["flow_21"] > 0.5


def test_smoothness_of_each_step_and_ego_flow(flow_golden, scene, size):
    point = recorded.variables(flow_golden, "point_", size)
    geometry = variables_module.decode(point, DEMO, size)
    steps = smoothness.per_step(geometry.world_from_cam, DEMO.smoothness_translation_weight)
    np.testing.assert_allclose(steps, flow_golden["term_smooth_per_pair"], rtol=1e-4)
    i, j = np.moveaxis(scene["edges"], -1, 0)
    ego = warp.ego_flow(
        geometry.depth[i],
        geometry.intrinsics[i],
        geometry.intrinsics[j],
        geometry.world_from_cam[i],
        geometry.world_from_cam[j],
    )
    expected = np.moveaxis(flow_golden["point_ego_flow_ij"], 1, -1)
    np.testing.assert_allclose(ego[:, ::8, ::8], expected, atol=1e-4 * np.abs(expected).max())


def test_loss_at_the_recorded_start(static_golden, flow_golden, scene, size):
    graph = recorded.graph(scene["edges"])
    predictions = recorded.predictions(scene)
    start = recorded.variables(static_golden, "init_", size)
    problem = objective.prepare(predictions, graph, None, start, None, STATIC)
    (total, _), _ = _evaluate(start, problem, config=STATIC)
    np.testing.assert_allclose(total, static_golden["init_loss"], rtol=1e-5)


def test_recorded_flow_loss(golden_dir):
    """The flow loss alone, with and without the pixel cut, on hand-made cameras."""
    masks = dict(np.load(golden_dir / "flow_masks.npz"))
    count = masks["depth1"].shape[0]
    # Frames 2k and 2k + 1 are the cameras of pair k.
    pairs = np.arange(2 * count, dtype=np.int32).reshape(-1, 2)

    def interleave(first, second):
        values = np.stack([masks[first], masks[second]], axis=1)
        return jnp.asarray(values.reshape(2 * count, *values.shape[2:]))

    height, width = masks["depth1"].shape[1:]
    geometry = variables_module.Geometry(
        depth=interleave("depth1", "depth2"),
        world_from_cam=rigid.pose(interleave("R1", "R2"), interleave("T1", "T2")),
        intrinsics=interleave("K1", "K2"),
        focal=None,
        principal_point=None,
        pair_scale=None,
        pair_matrix=None,
        pair_offset=None,
    )
    fields = OpticalFlow(
        pairs=pairs,
        flow=jnp.asarray(masks["flow_for_loss"]),
        weight=jnp.ones((count, height, width)),
    )
    static = jnp.broadcast_to(masks["motion_mask"] == 0, (2 * count, height, width))
    index = np.arange(count, dtype=np.int32)
    data = flow.prepare(fields, index, np.full_like(index, -1), static, use_weight=False)
    pixels = warp.pixel_grid(height, width).reshape(-1, 2).T
    for cut, name in ((50.0, "loss"), (0.0, "loss_no_pixel_threshold")):
        value, nothing = flow.flow_terms(geometry, pixels, data, cut)
        np.testing.assert_allclose(value, masks[name], rtol=1e-4)
        assert nothing == 0
