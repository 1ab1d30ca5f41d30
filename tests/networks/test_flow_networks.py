"""RAFT and SEA-RAFT as modules: sizes, padding, iterations, counts, uncertainty, bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.networks.raft import build, features, sea_raft
from align3r_jax.networks.raft.config import FLOW_PRESETS, SeaRaftConfig
from align3r_jax.networks.raft.upsample import convex_upsample
from tests.networks import tiny_flow

KINDS = list(tiny_flow.CONFIGS)


IMAGES = tiny_flow.images(2, 9, 3)
MARGINS = ((0, 0), (3, 4), (2, 3), (0, 0))
PADDED = np.pad(IMAGES, MARGINS, mode="edge")


def flow(kind, images, **settings):
    network = build.make(tiny_flow.CONFIGS[kind], **settings)
    run = jax.jit(lambda v, a, b: network.apply(v, a, b, 2))
    return run({"params": tiny_flow.params(kind)}, *(jnp.asarray(x)[None] for x in images))


@pytest.fixture(scope="module")
def padded_flow():
    return {kind: flow(kind, PADDED) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_padding_repeats_the_border_and_is_cut_off_again(kind, padded_flow):
    """Down to a grid of 2 x 1 cells, of which pooling leaves nothing."""
    odd, whole = flow(kind, IMAGES), padded_flow[kind]
    assert odd.flow.shape == (1, 9, 3, 2) and odd.flow_low.shape == (1, 2, 1, 2)
    assert np.isfinite(odd.flow).all() and np.abs(odd.flow).max() > 0.1
    np.testing.assert_allclose(odd.flow, whole.flow[:, 3:12, 2:5], atol=1e-4)
    np.testing.assert_allclose(odd.flow_low, whole.flow_low, atol=1e-5)
    assert odd.iterates is None and odd.iterates_low is None
    if kind == "sea_raft":
        np.testing.assert_allclose(odd.info, whole.info[:, 3:12, 2:5], atol=1e-4)
    assert [features.margins(n) for n in (132, 150, 21, 64)] == [(2, 2), (1, 1), (1, 2), (0, 0)]


def test_bfloat16_convolutions_stay_close(padded_flow):
    kind = "raft"
    exact, short = padded_flow[kind], flow(kind, PADDED, dtype=jnp.bfloat16)
    assert short.flow.dtype == short.flow_low.dtype == jnp.float32
    error = np.abs(short.flow - exact.flow)
    assert 0 < error.max() < 0.15 * np.abs(exact.flow).max()


def test_parameter_counts_and_variants():
    names = ("raft", "sea_raft_s", "sea_raft_m")
    counts = {name: build.parameter_count(FLOW_PRESETS[name]) for name in names}
    assert counts["raft"] == 5_257_536
    assert counts["sea_raft_m"] == 19_663_876
    assert dataclasses.replace(FLOW_PRESETS["sea_raft_l"], iterations=4) == SeaRaftConfig()
    # S: resnet18 blocks, one, two and four fewer in the stages of both encoders.
    small = build.abstract_params(FLOW_PRESETS["sea_raft_s"])
    for encoder in ("frame_encoder", "context_encoder"):
        names = sorted(name for name in small[encoder] if name.startswith("layer"))
        assert names == [f"layer{stage}_{block}" for stage in (1, 2, 3) for block in (0, 1)]
        assert small[encoder]["layer3_1"]["conv2"]["kernel"].shape == (3, 3, 256, 256)
    assert small["context_encoder"]["stem"]["kernel"].shape == (7, 7, 6, 64)

    def block(width):
        return 2 * (9 * width * width + width) + 2 * 2 * width

    fewer = 2 * (block(64) + 2 * block(128) + 4 * block(256))
    assert counts["sea_raft_s"] == counts["sea_raft_m"] - fewer


def test_initial_parameters_fit():
    config = tiny_flow.CONFIGS["sea_raft"]
    params = build.init_params(config, jax.random.key(0))
    expected = build.abstract_params(config)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda x: x.shape, expected)
    norm = params["context_encoder"]["stem_norm"]
    assert (norm["scale"] == 1).all() and (norm["var"] == 1).all() and not norm["mean"].any()
    assert len(np.unique(params["frame_encoder"]["stem"]["kernel"])) > 1000


def test_upsampling_weighs_neighbours_and_zeros_beyond_the_border():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1, 3, 4, 2)).astype(np.float32)
    mask = rng.standard_normal((1, 3, 4, 9, 8, 8)).astype(np.float32)
    up = np.asarray(convex_upsample(jnp.asarray(values), jnp.asarray(mask.reshape(1, 3, 4, 576))))
    weights = np.exp(mask) / np.exp(mask).sum(3, keepdims=True)
    expected = np.zeros((1, 24, 32, 2))
    for y, x, i, j, k in np.ndindex(3, 4, 8, 8, 9):
        row, column = y + k // 3 - 1, x + k % 3 - 1
        if 0 <= row < 3 and 0 <= column < 4:
            expected[0, 8 * y + i, 8 * x + j] += weights[0, y, x, k, i, j] * values[0, row, column]
    np.testing.assert_allclose(up, expected, atol=1e-6)


def test_the_mixture_is_a_density_and_its_uncertainty_a_mean():
    info = np.float32([0.3, -0.8, 1.7, -2.0])
    weights, log_scales = sea_raft.mixture(jnp.asarray(info))
    assert log_scales[1] == 0  # the narrow component has scale 1
    assert sea_raft.mixture(jnp.asarray(info + 50))[1][0] == 10
    share = np.exp(info[:2]) / np.exp(info[:2]).sum()
    np.testing.assert_allclose(weights, share, rtol=1e-6)
    np.testing.assert_allclose(sea_raft.uncertainty(jnp.asarray(info)), share[0] * 1.7, rtol=1e-6)
    estimate = np.float32([2.0, -1.0])
    targets = np.linspace(-100, 100, 20001).astype(np.float32)
    nll = jax.jit(sea_raft.negative_log_likelihood)(
        estimate, info, np.stack([targets, targets], -1)
    )
    density = np.exp(-np.asarray(nll))
    np.testing.assert_allclose(density.sum(0) * 0.01, 1, atol=1e-3)
    np.testing.assert_allclose(targets[density.argmax(0)], estimate, atol=0.011)
