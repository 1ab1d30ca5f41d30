"""Depth Pro against recorded runs: every intermediate of three sizes, chunks, counts, messages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.networks import depth_pro
from align3r_jax.networks import depth_pro_windows as windows_lib
from tests.networks import recorded
from tests.networks.depth_pro_runs import RECORDINGS, load_run

TOLERANCE = 1e-5
# bfloat16 keeps 8 bits (4e-3). Measured on the recorded inputs, relative to the largest value:
# inverse depth 1.6e-2 at most (3e-3 r.m.s.), the field of view 0.005 degrees.
BFLOAT16_TOLERANCE = 4e-2


def thin(name, out):
    """The arrays of an output, ordered and thinned out as the recording has them."""
    how = RECORDINGS[name]
    named = {key: np.asarray(value, np.float32) for key, value in out.intermediates.items()}
    cut = named.pop("windows")
    fine, middle = windows_lib.FINE**2, windows_lib.MIDDLE**2
    quarter = cut.shape[2] // 4
    pixels = (slice(quarter // 2, None, quarter), slice(quarter // 3, None, quarter))
    arrays = {}
    for key, part in (("split0", cut[:, :fine]), ("split1", cut[:, fine : fine + middle])):
        arrays[key] = _window_major(part).transpose(0, 3, 1, 2)[:, :, *pixels]
    for key, value in named.items():
        if key in ("patch_tokens", "hook0", "hook1", "patch_encoder"):
            value = _window_major(value)
        if value.ndim == 3 and key != "logits":
            arrays[key] = value[:, :: how.tokens[0], :: how.tokens[1]]
        elif value.ndim == 4:
            value = value.transpose(0, 3, 1, 2)
            if key.startswith("merge"):
                value = value[:, :: how.merged, ::5, ::5]
            elif key == "fov_downsample_pre_relu":
                value = value[:, :: how.channels]
            elif not key.startswith("fov_"):
                step = max(1, value.shape[2] // how.divisor)
                value = value[:, :: how.channels, ::step, ::step]
            arrays[key] = value
    arrays["logits"] = named["logits"][:, :: how.pixels, :: how.pixels]
    arrays["canonical_inverse_depth"] = np.asarray(out.inverse_depth)[
        :, :: how.pixels, :: how.pixels
    ]
    return arrays


def _window_major(array):
    """(B, K, ...) -> (K B, ...), the order of the recordings."""
    return np.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])


def check_run(name, run, tolerance, depth_tolerance, fov_tolerance):
    """Compares all that was recorded."""
    network = depth_pro.DepthPro(run.config, precision="highest")
    out = jax.jit(lambda p, x: network.apply({"params": p}, x, return_intermediates=True))(
        run.params, run.images
    )
    step = run.config.image_size // 8
    sample = run.images.transpose(0, 3, 1, 2)[:, :, ::step, ::step]
    recorded.assert_close(sample, run.file["input_sample"], 1e-6, "input")
    compared = set()
    for key, array in thin(name, out).items():
        if key in run.file:
            recorded.assert_close(array, run.file[key], tolerance, key)
            compared.add(key)
    missing = set(run.file) - compared
    known = {"head_bias", "fov_bias", "fov_deg", "inverse_stats", "input_sample"}
    assert missing <= known, missing - known
    inverse = np.asarray(out.inverse_depth, np.float64)
    got = inverse[:, :: RECORDINGS[name].pixels, :: RECORDINGS[name].pixels]
    assert np.abs(got - run.file["canonical_inverse_depth"]).max() <= depth_tolerance
    stats = [inverse.min(), inverse.max(), inverse.mean(), inverse.std()]
    np.testing.assert_allclose(stats, run.file["inverse_stats"], atol=depth_tolerance, rtol=0)
    np.testing.assert_allclose(out.fov, run.file["fov_deg"], atol=fov_tolerance, rtol=0)
    return out


@pytest.fixture(scope="module")
def toy(golden_dir, golden_weights):
    return load_run(golden_dir, golden_weights, "toy")


@pytest.fixture(scope="module")
def toy_output(toy):
    return check_run("toy", toy, TOLERANCE, 1e-5, 1e-3)


@pytest.mark.golden
def test_small_windows_match_the_recorded_run(toy_output):
    assert toy_output.inverse_depth.dtype == jnp.float32


@pytest.mark.golden
def test_released_geometry_matches_the_recorded_run(golden_dir, golden_weights):
    run = load_run(golden_dir, golden_weights, "reduced")
    assert run.config.window == depth_pro.DepthProConfig().window
    check_run("reduced", run, TOLERANCE, 1e-5, 1e-3)


@pytest.mark.slow
@pytest.mark.golden
def test_released_model_matches_the_recorded_run(golden_dir, golden_weights):
    """19 TFLOP and about 10 GB."""
    check_run("full", load_run(golden_dir, golden_weights, "full"), 1e-4, 5e-4, 1e-2)


def test_windows_in_chunks_are_the_same_as_in_one_batch(toy, toy_output):
    """8 does not divide 35; the images are another batch size too."""
    network = depth_pro.DepthPro(toy.config, precision="highest", window_chunk=8)
    out = jax.jit(lambda p, x: network.apply({"params": p}, x, estimate_fov=False))(
        toy.params, toy.images[-1:]
    )
    assert out.fov is None and out.intermediates is None
    np.testing.assert_allclose(out.inverse_depth, toy_output.inverse_depth[-1:], atol=1e-6)


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


def test_initial_parameters_follow_the_rules():
    config = dataclasses.replace(
        depth_pro.DEPTH_PRO_PRESETS["tiny_depth_pro"], embed_dim=16, num_heads=2, depth=1,
        latent_blocks=(0, 0), dims=(8, 8, 8, 8), decoder_dim=8, last_dim=4,
    )  # fmt: skip
    params = depth_pro.init_params(config, jax.random.key(0))
    assert params["patch_encoder"]["norm"]["scale"].min() == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    kernels = [params[name]["patch_embed"]["kernel"] for name in ("patch_encoder", "image_encoder")]
    assert np.std(kernels[0]) > 0 and not np.allclose(*kernels)


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
