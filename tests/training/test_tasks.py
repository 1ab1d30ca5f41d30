"""Losses of the two trainings: what is trained on, both orders of a pair, both forms of batches."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.config import NETWORK_PRESETS
from align3r_jax.errors import UserError
from align3r_jax.networks import align3r
from align3r_jax.training import flops, losses, pair_batch, tasks
from tests.training import tiny


@pytest.fixture(scope="module")
def params():
    return tiny.parameters(align3r.abstract_params(tiny.NETWORK))


@pytest.fixture(scope="module")
def plain_params():
    return tiny.parameters(align3r.abstract_params(tiny.PLAIN))


def _value(loss_fn, params, batch):
    return jax.jit(loss_fn)(params, batch, jax.random.key(0))


def _products(jaxpr):
    """(type, width of the result) of every matrix product, those of inner programs too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            aval = equation.outvars[0].aval
            found.append((equation.invars[0].aval.dtype, aval.shape[-1]))
        for inner in flops.inner_programs(equation.params):
            found += _products(inner)
    return found


def test_both_orders_are_trained_and_every_view_is_encoded_once(params):
    batch = tiny.from_files(tiny.rendered())
    network = align3r.Align3R(tiny.NETWORK, precision="highest")

    @functools.partial(jax.jit, static_argnames="symmetrise")
    def outputs(batch, symmetrise):
        views = pair_batch.read(batch, tiny.NETWORK)
        true = pair_batch.true_points(views)
        true = true if symmetrise else pair_batch.first_of_pairs(true)
        return tasks.predict(network, params, views, symmetrise), true

    both, true = outputs(batch, symmetrise=True)
    for order, one in enumerate((batch, tiny.other_order(batch))):
        single, true_single = outputs(one, symmetrise=False)
        for name in ("pointmap1", "pointmap2", "confidence1", "confidence2"):
            got = getattr(both, name)[order::2]
            np.testing.assert_allclose(got, getattr(single, name), rtol=1e-4, atol=1e-5)
        for name in ("points1", "points2", "valid1", "valid2"):
            got = getattr(true, name)[order::2]
            np.testing.assert_allclose(got, getattr(true_single, name), rtol=1e-5, atol=1e-6)

    def operations(symmetrise):
        loss_fn = tasks.pairwise_loss(tiny.NETWORK, symmetrise=symmetrise)
        return flops.step_flops(loss_fn, params, batch)

    encoder = 2 * operations(False) - operations(True)
    frames = 2 * tiny.ROWS * (tiny.HEIGHT // 16) * (tiny.WIDTH // 16)
    patches = 2 * 2 * frames * 16 * 16 * 3 * 16  # image and prior
    assert encoder > patches, "what depends on one frame is computed once"


def test_both_forms_of_a_batch_say_the_same():
    rendered = tiny.rendered()
    files = tiny.from_files(rendered)
    read = jax.jit(lambda batch: pair_batch.read(batch, tiny.NETWORK))
    one, other = read(rendered), read(files)
    for name in ("images", "depth", "intrinsics", "other", "has_prior"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6)
    assert one.portrait is None and not other.portrait.any()
    one, other = pair_batch.true_points(one), pair_batch.true_points(other)
    np.testing.assert_allclose(one.points1, other.points1, rtol=1e-6)
    np.testing.assert_allclose(one.points2, other.points2, rtol=1e-6)
    expected = rendered["depth"][:, 1, 8, 16 + 4]
    point = np.stack([expected * 4 / tiny.FOCAL, 0 * expected, expected, expected**0], -1)
    moved = np.einsum("bij,bj->bi", rendered["cam1_from_cam2"], point)
    np.testing.assert_allclose(one.points2[0::2, 8, 16 + 4], moved[:, :3], rtol=1e-5)


def test_portrait_views_stored_transposed_give_the_loss_of_upright_ones(plain_params):
    upright = tiny.from_files(tiny.rendered(height=32, width=16))
    upright["intrinsics"][..., 0, 0] = 1.2 * tiny.FOCAL
    upright["intrinsics"][:, 1, :2, 2] += [1.5, -2.0]
    stored = tiny.stored_transposed(upright, np.ones((tiny.ROWS, 2), bool))
    del upright["portrait"]
    loss_fn = tasks.pairwise_loss(tiny.PLAIN, symmetrise=True, max_distance=2.5, metric_weight=0.5)
    expected, details = _value(loss_fn, plain_params, upright)
    loss, _ = _value(loss_fn, plain_params, stored)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    parts = details["confidence_1"] + details["confidence_2"] + 0.5 * details["metric"]
    np.testing.assert_allclose(expected, parts, rtol=1e-6)
    # A mixed batch: the prior's camera is turned too.
    views = pair_batch.read(tiny.rendered() | {"portrait": stored["portrait"]}, tiny.RAY)
    plain = pair_batch.read(tiny.rendered(height=32, width=16), tiny.RAY)
    assert views.prior.shape == (4, 16, 32, 3) and plain.prior.shape == (4, 32, 16, 3)
    ratio = views.prior[..., 1] / views.prior[..., 2]
    np.testing.assert_allclose(
        ratio, plain.prior[..., 1].swapaxes(1, 2) / plain.prior[..., 2].swapaxes(1, 2), atol=1e-6
    )


def test_priors_as_the_network_reads_them():
    batch = tiny.rendered()
    batch["prior_depth"][0, 0, 3, 4] = np.nan
    ray, minmax = (pair_batch.read(batch, config).prior for config in (tiny.RAY, tiny.NETWORK))
    np.testing.assert_allclose(ray[1, ..., 2], batch["prior_depth"][0, 1], rtol=1e-6)
    np.testing.assert_allclose(
        ray[1, 5, 20, 0], 4 / (1.1 * tiny.FOCAL) * batch["prior_depth"][0, 1, 5, 20], rtol=1e-5
    )
    low, high = (np.nanmin(ray, (1, 2)), np.nanmax(ray, (1, 2)))
    expected = np.nan_to_num((ray - low[:, None, None]) / (high - low)[:, None, None])
    np.testing.assert_allclose(minmax, expected, atol=1e-5)
    assert np.all(minmax[0, 3, 4] == 0) and minmax.min() == 0 and minmax.max() == 1
    files = tiny.from_files(tiny.rendered())
    np.testing.assert_array_equal(
        pair_batch.read(files, tiny.NETWORK).prior[1], files["prior_points"][0, 1]
    )
    with pytest.raises(UserError, match="depth maps"):
        pair_batch.read(files, tiny.RAY)
    del files["prior_points"]
    with pytest.raises(UserError, match="data.prior"):
        pair_batch.read(files, tiny.NETWORK)
    without = dataclasses.replace(tiny.NETWORK, prior_branch=False)
    assert pair_batch.read(files, without).prior is None


def test_dropped_priors_go_in_pairs():
    views = pair_batch.read(tiny.rendered(rows=40) | {"has_prior": np.ones(40, bool)}, tiny.RAY)
    dropped = pair_batch.drop_priors(views, 0.4, jax.random.key(0)).has_prior.reshape(-1, 2)
    assert np.all(dropped[:, 0] == dropped[:, 1])
    assert 8 <= np.sum(~dropped[:, 0]) <= 24
    assert not pair_batch.drop_priors(views, 1.0, jax.random.key(0)).has_prior.any()
    assert pair_batch.drop_priors(views, 0.0, jax.random.key(0)) is views


@pytest.mark.golden
def test_which_truth_counts(golden_dir):
    for case in json.loads((golden_dir / "datasets.json").read_text())["valid_mask"]:
        depth = np.array(case["depth"], np.float32)
        parity = pair_batch.valid_depth(depth, 400.0, rescue_empty_views=True)
        np.testing.assert_array_equal(parity, np.array(case["valid"], bool))
        ours = pair_batch.valid_depth(depth, 400.0)
        np.testing.assert_array_equal(ours, (depth > 0) & (depth < 400))
    depth = np.array([[79.0, 80.0, 500.0, np.nan, np.inf, -1.0]], np.float32)
    for name, count in (("monst3r", 1), ("align3r", 2), ("dust3r", 3)):
        assert pair_batch.valid_depth(depth, pair_batch.MAX_DEPTH[name]).sum() == count


def test_unknown_depth_is_not_trained_on_and_does_no_harm():
    batch = tiny.rendered()
    batch["depth"][0, 0, 0, :3] = [0.0, np.nan, 500.0]
    true = jax.jit(lambda b: pair_batch.true_points(pair_batch.read(b, tiny.NETWORK)))(batch)
    assert not true.valid1[0, 0, :3].any() and true.valid1[0, 0, 3:].all()
    assert np.isfinite(true.points1).all() and np.isfinite(true.points2).all()


def test_memory_for_time_and_half_precision(plain_params):
    batch = tiny.from_files(tiny.rendered())

    def program(**options):
        loss_fn = tasks.pairwise_loss(tiny.PLAIN, **options)
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        return jax.make_jaxpr(gradient, return_shape=True)(plain_params, batch, jax.random.key(0))

    plain, _ = program()
    again, _ = program(remat=True)
    assert len(_products(again.jaxpr)) > len(_products(plain.jaxpr)) + 10, "computed again"
    half, ((loss, _), grads) = program(dtype=jnp.bfloat16)
    types = {dtype for dtype, width in _products(half.jaxpr) if width == 4 * 16}
    assert types == {jnp.dtype("bfloat16")}, "hidden layers"
    types = {dtype for dtype, width in _products(half.jaxpr) if width == 4 * 256}
    assert types == {jnp.dtype("float32")}, "heads"
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((loss, grads)))


def test_the_monitored_error_is_in_the_unit_of_the_truth_and_ignores_its_scale(plain_params):
    batch = tiny.from_files(tiny.rendered())
    larger = dict(batch, depth=3 * batch["depth"], cam1_from_cam2=batch["cam1_from_cam2"].copy())
    larger["cam1_from_cam2"][:, :3, 3] *= 3
    error_fn = jax.jit(tasks.pairwise_error(tiny.PLAIN))
    error, details = error_fn(plain_params, batch, jax.random.key(0))
    scaled, _ = error_fn(plain_params, larger, jax.random.key(0))
    assert error > 0
    np.testing.assert_allclose(error, details["error_1"] + details["error_2"], rtol=1e-6)
    np.testing.assert_allclose(scaled, 3 * error, rtol=1e-3)


def test_scale_does_not_count_in_log_depth():
    depth = tiny.rendered()["depth"].reshape(-1, tiny.HEIGHT, tiny.WIDTH)
    error, valid, gradient = jax.jit(tasks.log_depth_errors)(np.log(depth) + 0.7, depth)
    assert valid.all()
    np.testing.assert_allclose(error, 0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.slow
def test_the_small_network_starts_at_its_prior_and_learns():
    batch = tiny.rendered(height=32, width=48)
    config = dataclasses.replace(NETWORK_PRESETS["align3r_small"], enc_depth=1)
    params = align3r.init_params(config, jax.random.key(0))
    gradient = jax.jit(jax.value_and_grad(tasks.pairwise_loss(config), has_aux=True))
    (_, details), grads = gradient(params, batch, jax.random.key(0))
    both = dict(batch, has_prior=np.array([True, True]))
    views = pair_batch.read(both, config)
    true = pair_batch.first_of_pairs(pair_batch.true_points(views))
    points = views.prior.reshape(-1, 2, *views.prior.shape[1:])
    prior = losses.PointmapBatch(points[:, 0], points[:, 1], true.valid1, true.valid2)
    _, at_prior = losses.pointmap_regression(prior, true)
    (_, with_prior), _ = gradient(params, both, jax.random.key(0))
    np.testing.assert_allclose(with_prior["regression_1"], at_prior["regression_1"], rtol=1e-3)
    assert details["regression_1"] > with_prior["regression_1"], "without a prior: a plane"
    norms = {k: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(v)) for k, v in grads.items()}
    assert norms["head1"] > 0 and norms["head2"] > 0
    assert all(np.isfinite(v) for v in norms.values())
