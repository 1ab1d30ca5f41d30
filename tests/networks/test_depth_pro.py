"""Depth Pro against recorded runs: every intermediate of three sizes, chunks, counts, messages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.networks import depth_pro
from align3r_jax.networks import depth_pro_windows as windows_lib
from tests.networks import depth_pro_runs as runs
from tests.networks import recorded
from tests.networks.depth_pro_runs import RECORDINGS, load_run

TOLERANCE = 1e-5
# bfloat16 keeps 8 bits (4e-3). Measured on the recorded inputs, relative to the largest value:
# inverse depth 1.6e-2 at most (3e-3 r.m.s.), the field of view 0.005 degrees.
BFLOAT16_TOLERANCE = 4e-2


@pytest.fixture(scope="module")
def toy(golden_dir, golden_weights):
    return load_run(golden_dir, golden_weights, "toy")


@pytest.mark.golden
def test_small_windows_match_the_recorded_run(toy):
    out = runs.check_run("toy", toy, runs.compiled("toy", toy.config), TOLERANCE, 1e-5, 1e-3)
    assert out.inverse_depth.dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.golden
def test_released_model_matches_the_recorded_run(golden_dir, golden_weights):
    """19 TFLOP and about 12 GB."""
    run = load_run(golden_dir, golden_weights, "full")
    runs.check_run("full", run, runs.compiled("full", run.config), 1e-4, 5e-4, 1e-2)


def test_windows_in_chunks_are_the_same_as_in_one_batch():
    """8 does not divide 35."""
    config, params = runs.micro()
    side = config.image_size
    images = np.random.default_rng(1).uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
    whole = depth_pro.DepthPro(config, precision="highest")
    chunks = depth_pro.DepthPro(config, precision="highest", window_chunk=8)
    expected, out = jax.jit(
        lambda p, x: [
            network.apply({"params": p}, x, estimate_fov=False) for network in (whole, chunks)
        ]
    )(params, images)
    assert out.fov is None and out.intermediates is None
    assert np.std(expected.inverse_depth) > 1e-3
    np.testing.assert_allclose(out.inverse_depth, expected.inverse_depth, atol=1e-5)


def test_outputs_are_float32_whatever_the_network_computes_in():
    config, params = runs.micro()
    network = depth_pro.DepthPro(config, jnp.bfloat16)
    images = jnp.zeros((1, config.image_size, config.image_size, 3))
    apply = lambda p, x: network.apply({"params": p}, x, return_intermediates=True)  # noqa: E731
    out = jax.eval_shape(apply, params, images)
    assert out.inverse_depth.dtype == out.fov.dtype == jnp.float32
    assert out.intermediates["fusion0"].dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.golden
def test_bfloat16_stays_near_the_recorded_run(toy):
    network = depth_pro.DepthPro(toy.config, jnp.bfloat16)
    out = jax.jit(lambda p, x: network.apply({"params": p}, x))(toy.params, toy.images)
    assert out.inverse_depth.dtype == jnp.float32
    step = RECORDINGS["toy"].pixels
    recorded.assert_close(
        out.inverse_depth[:, ::step, ::step],
        toy.file["canonical_inverse_depth"],
        BFLOAT16_TOLERANCE,
        "inverse depth",
    )
    np.testing.assert_allclose(out.fov, toy.file["fov_deg"], atol=0.05, rtol=0)


def test_parameter_counts():
    released = depth_pro.DEPTH_PRO_PRESETS["depth_pro"]
    tree = depth_pro.abstract_params(released)
    size = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in tree.items()}
    encoders = [tree["patch_encoder"], tree["image_encoder"], tree["fov"]["encoder"]]
    vits = [sum(leaf.size for leaf in jax.tree.leaves(encoder)) for encoder in encoders]
    convs = sum(leaf.size for i in range(1, 5) for leaf in tree["decoder"][f"conv_{i}"].values())
    assert depth_pro.parameter_count(released) == 951_991_330
    assert vits == [303_739_904] * 3
    assert sum(n for name, n in size.items() if name.startswith("upsample")) == 18_088_960
    assert size["fuse_lowres"] == 2_098_176
    assert convs == 6_488_064
    assert size["decoder"] - convs == 13_179_136
    assert size["head"] == 397_633
    assert size["fov"] - vits[2] == 519_649


def test_pyramid_levels_are_bilinear_samples():
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    for factor in (2, 4):
        top = np.arange(16 // factor) * factor + factor // 2 - 1  # of the two pixels around s
        rows = (images[:, top] + images[:, top + 1]) / 2
        expected = (rows[:, :, top] + rows[:, :, top + 1]) / 2
        np.testing.assert_allclose(windows_lib.shrink(images, factor), expected, atol=1e-6)


@pytest.mark.parametrize(("per_side", "padding"), [(5, 3), (3, 6), (1, 0)])
def test_merging_undoes_splitting(per_side, padding):
    """Windows that overlap by twice the padding, cut by the padding, tile the map again."""
    window = 24
    side = per_side * window - 2 * padding * (per_side - 1)
    image = np.random.default_rng(0).random((2, side, side, 4), np.float32)
    cut = windows_lib.split(image, window, per_side)
    assert cut.shape == (2, per_side**2, window, window, 4)
    np.testing.assert_array_equal(windows_lib.merge(cut, padding), image)


@pytest.mark.slow
def test_initial_parameters_follow_the_rules():
    config, _ = runs.micro()
    params = depth_pro.init_params(config, jax.random.key(0))
    assert jax.tree.all(
        jax.tree.map(lambda x, y: x.shape == y.shape, params, depth_pro.abstract_params(config))
    )
    encoders = [params["patch_encoder"], params["image_encoder"], params["fov"]["encoder"]]
    kernels = [encoder["patch_embed"]["kernel"] for encoder in encoders]
    assert not np.allclose(kernels[0], kernels[1]) and not np.allclose(kernels[1], kernels[2])
    for encoder in encoders:
        np.testing.assert_array_equal(encoder["norm"]["scale"], 1)
        np.testing.assert_array_equal(encoder["block_00"]["attention"]["qkv"]["bias"], 0)
        np.testing.assert_allclose(encoder["block_00"]["scale_mlp"], 1e-5)
        assert 0.01 < np.std(encoder["positions"]) < 0.03
    kernel = np.asarray(params["decoder"]["conv_1"]["kernel"])
    assert 0.5 < np.abs(kernel).max() * np.sqrt(np.prod(kernel.shape[:-1])) <= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": 100}, "multiple of 128"),
        ({"latent_blocks": (5, 24)}, "numbers from 0 to 23"),
        ({"latent_blocks": (5,)}, "two numbers"),
        ({"num_heads": 7}, "does not divide"),
    ],
)
def test_impossible_settings_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(depth_pro.DepthProConfig(), **change)


@pytest.mark.parametrize("shape", [(1, 256, 512, 3), (512, 512, 3), (1, 1, 1, 3)])
def test_images_of_another_size_are_refused(shape):
    config = depth_pro.DEPTH_PRO_PRESETS["tiny_depth_pro"]
    with pytest.raises(UserError, match="expected .B, 512, 512, 3."):
        jax.eval_shape(depth_pro.DepthPro(config).init, jax.random.key(0), jnp.zeros(shape))
