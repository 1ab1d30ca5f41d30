"""Layers against plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.config import NETWORK_PRESETS
from align3r_jax.networks import align3r, heads, prior_branch
from align3r_jax.networks.layers import attention, dpt, resample
from tests.networks import micro


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_upsampling_puts_corners_on_corners(size):
    values = np.random.default_rng(0).normal(size=(1, size, 2, 3)).astype(np.float32)
    doubled = np.asarray(resample.upsample2(jnp.asarray(values)))
    assert doubled.shape == (1, 2 * size, 4, 3)
    at = np.arange(2 * size) * (size - 1) / (2 * size - 1)
    for column, weight in enumerate(np.arange(4) / 3):
        line = (1 - weight) * values[0, :, 0, :] + weight * values[0, :, 1, :]
        expected = np.stack([np.interp(at, np.arange(size), line[:, c]) for c in range(3)], -1)
        np.testing.assert_allclose(doubled[0, :, column], expected, atol=1e-6)


def test_attention_is_softmax_of_products():
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 2, 4, 9, 8)).astype(np.float32)
    expected = jax.nn.dot_product_attention(
        *(jnp.asarray(x).swapaxes(1, 2) for x in (query, key, value))
    ).swapaxes(1, 2)
    np.testing.assert_allclose(attention.attend(query, key, value), expected, atol=2e-6)


def test_enlarge_is_a_transposed_convolution():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 2, 3, 4)).astype(np.float32)
    kernel = rng.normal(size=(2, 2, 4, 4)).astype(np.float32)
    params = {"kernel": kernel, "bias": np.arange(4, dtype=np.float32)}
    got = dpt.Enlarge(2).apply({"params": params}, features)
    expected = jax.lax.conv_transpose(
        features, kernel[::-1, ::-1], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(got, expected + params["bias"], atol=1e-5)


def test_initial_values():
    config = NETWORK_PRESETS["tiny_align3r"]
    params = align3r.init_params(config, jax.random.key(0))
    again = align3r.init_params(config, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    jax.tree.map(np.testing.assert_array_equal, params["decoder1"], params["decoder2"])

    def check_uniform(values, bound):
        values = np.asarray(values)
        assert 0.97 * bound < np.abs(values).max() <= bound * (1 + 1e-6)
        assert abs(values.std() / (bound / np.sqrt(3)) - 1) < 0.1

    encoder, branch = params["encoder"], params["prior_branch"]
    check_uniform(encoder["block_00"]["attention"]["qkv"]["kernel"], np.sqrt(6 / (4 * 96)))
    check_uniform(encoder["patch_embed"]["kernel"], np.sqrt(6 / (768 + 96)))
    check_uniform(branch["patch_embed"]["kernel"], 768**-0.5)
    check_uniform(params["head1"]["fusion_1"]["unit"]["conv1"]["kernel"], (32 * 9) ** -0.5)
    check_uniform(params["head1"]["resize_1"]["kernel"], (12 * 16) ** -0.5)
    assert np.abs(encoder["patch_embed"]["bias"]).max() <= 768**-0.5
    assert np.abs(encoder["patch_embed"]["bias"]).max() > 0
    assert np.all(encoder["block_00"]["mlp"]["fc1"]["bias"] == 0)
    assert np.all(encoder["norm"]["scale"] == 1) and np.all(encoder["norm"]["bias"] == 0)
    injections = [value for name, value in branch.items() if name.startswith("injection")]
    assert len(injections) == config.num_prior_blocks + 1
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(injections))
    assert 0.01 < np.std(params["mask_token"]) < 0.03


def test_points_and_confidence():
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(1, 4, 5, 4)).astype(np.float32)
    raw[0, 0, 0, :3] = 0
    norm = np.linalg.norm(raw[..., :3], axis=-1, keepdims=True)
    config = micro.ALIGN3R
    lengths = {"exp": np.expm1(norm), "square": norm**2, "linear": norm}
    for mode, length in lengths.items():
        changed = heads.direct(raw, micro.ALIGN3R.__class__(depth_mode=mode))[0]
        expected = raw[..., :3] / np.maximum(norm, 1e-8) * length
        np.testing.assert_allclose(changed, expected, atol=1e-5)
    np.testing.assert_allclose(heads.direct(raw, config)[1], 1 + np.exp(raw[..., 3]), rtol=1e-6)

    bounded = config.__class__(conf_max=1.5)
    assert float(heads.confidence(jnp.float32(9.0), bounded)) == 1.5
    sigmoid = config.__class__(conf_mode="sigmoid", conf_max=3.0)
    assert float(heads.confidence(jnp.float32(0.0), sigmoid)) == 2.0

    gradient = jax.grad(lambda r: jnp.sum(heads.direct(r, config)[0]))(jnp.asarray(raw))
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[0, 0, 0], 0)


def test_ray_encoding_fills_what_is_missing():
    points = micro.camera_points(3, 32, 48, scale=5.0)
    points[0, 4:10, 7:30] = np.nan
    points[0, 20, 20, 2] = np.inf
    points[0, 21, 20, 2] = -1
    has_prior = np.array([True, True, False])
    ray = prior_branch.encode_ray(jnp.asarray(points), jnp.asarray(has_prior), (3, 32, 48))
    valid = np.isfinite(points).all(-1) & (points[..., 2] > 0)

    depth = points[0, ..., 2][valid[0]]
    np.testing.assert_allclose(ray.log_median[0], np.log(np.median(depth)), rtol=1e-5)
    encoding = np.asarray(ray.encoding[0])
    assert np.all(encoding[~valid[0]] == 0)
    np.testing.assert_allclose(
        encoding[valid[0]][:, 2], np.log(depth / np.median(depth)), atol=1e-5
    )
    np.testing.assert_allclose(
        encoding[valid[0]][:, :2], points[0][valid[0]][:, :2] / depth[:, None], atol=1e-6
    )
    anchor = np.asarray(ray.anchor[0])
    np.testing.assert_allclose(anchor[valid[0]], points[0][valid[0]] / np.median(depth), rtol=1e-5)
    # A hole lies at the median depth, on the rays of the focal of the rest (0.7 W).
    row, column = 5, 10
    expected = [(column - 24) / (0.7 * 48), (row - 16) / (0.7 * 48), 1.0]
    np.testing.assert_allclose(anchor[row, column], expected, atol=1e-4)

    assert ray.has_prior.tolist() == [1, 1, 0]
    assert float(ray.log_median[2]) == 0 and np.all(ray.encoding[2] == 0)
    np.testing.assert_allclose(ray.anchor[2, 0, 0], [-24 / 40.8, -16 / 40.8, 1], rtol=1e-5)
    none = prior_branch.encode_ray(None, None, (1, 32, 48))
    np.testing.assert_allclose(none.anchor[0], ray.anchor[2], rtol=1e-6)
