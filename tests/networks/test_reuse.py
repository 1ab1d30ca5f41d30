"""What is computed once per frame: equal to the pair alone, and it costs what the formula says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.config import NETWORK_PRESETS, NetworkConfig
from align3r_jax.networks import align3r, cost
from align3r_jax.networks.layers import attention, doubled_conv, resample
from align3r_jax.predictors import network_programs
from align3r_jax.training import flops
from tests.networks import micro

DENSE = dataclasses.replace(micro.ALIGN3R, dec_depth=4, head="dpt")
HEIGHT, WIDTH = 48, 80  # an odd grid: 3 x 5


def _abstract_pair(config, height, width, reuse, head_form, batch=1):
    """The two programs and the shapes of their arguments; no weights."""
    params = align3r.abstract_params(config)
    shape = (batch, height, width, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    maps = jax.ShapeDtypeStruct(shape, jnp.float32) if config.prior_branch else None
    encode = network_programs.encode_program(config, reuse=reuse)
    decode = network_programs.decode_program(config, head_form=head_form)
    features = jax.eval_shape(encode, params, images, maps, None)
    views = features.as_view(1), features.as_view(2)
    return (encode, (params, images, maps, None)), (decode, (params, *views))


@pytest.fixture(scope="module")
def predictions():
    """(reuse, form of the heads) -> raw outputs of two pairs of three frames."""
    params = micro.parameters(DENSE)
    images, maps = micro.images(3, HEIGHT, WIDTH), micro.camera_points(3, HEIGHT, WIDTH)

    def run(reuse, form):
        net = align3r.Align3R(DENSE, precision="highest", head_form=form)

        @jax.jit
        def both(params, images, maps):
            features = net.apply(
                {"params": params}, images, maps, reuse=reuse, method="encode_frames"
            )
            first = features.as_view(1).take(jnp.array([0, 2]))
            second = features.as_view(2).take(jnp.array([1, 0]))
            pair = net.apply({"params": params}, first, second, method="decode_pairs")
            return pair.raw1, pair.raw2

        return both(params, images, maps)

    cases = [("tokens", "direct"), ("head", "cheap")]
    return {case: run(*case) for case in cases}


def test_parts_computed_once_give_the_same_pair(predictions):
    for got, expected in zip(predictions["head", "cheap"], predictions["tokens", "direct"]):
        bar = 1e-5 * float(jnp.abs(expected).max())
        np.testing.assert_allclose(got, expected, atol=bar)


@pytest.mark.parametrize("shape", [(1, 8, 1, 3), (2, 12, 5, 3), (1, 16, 2, 3)])
def test_a_convolution_behind_a_doubling_costs_a_quarter(shape):
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 4)), jnp.float32)
    bias = jnp.arange(4.0)
    expected = jax.lax.conv_general_dilated(
        resample.upsample2(features), kernel, (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
    ) + bias  # fmt: skip
    with jax.default_matmul_precision("highest"):
        whole = doubled_conv.conv(features, kernel, bias)
        strips = doubled_conv.conv_in_strips(features, kernel, bias, then=lambda m: 2 * m[..., :1])
    np.testing.assert_allclose(whole, expected, atol=2e-5)
    np.testing.assert_allclose(strips, 2 * expected[..., :1], atol=4e-5)


@pytest.mark.parametrize(
    "preset, reuse",
    [
        ("align3r_small", "tokens"),
        ("align3r_small", "block"),
        ("tiny_align3r", "head"),
        pytest.param("align3r_vitl_512_dpt", "head", marks=pytest.mark.slow),
    ],
)
def test_operations_are_those_of_the_formula(preset, reuse):
    """Counted on the programs as written, forms direct and cheap, and the memory of a frame."""
    config, height, width = NETWORK_PRESETS[preset], 96, 160
    for form in ("direct", "cheap"):
        encode, decode = _abstract_pair(config, height, width, reuse, form)
        counted = _operations(*encode)
        assert counted == pytest.approx(cost.encode(config, height, width, reuse), rel=2e-3)
        counted = _operations(*decode)
        expected = cost.decode(config, height, width, reuse, form)
        assert counted == pytest.approx(expected, rel=2e-3)
    features = jax.eval_shape(encode[0], *encode[1])
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(features))
    assert size == pytest.approx(cost.feature_bytes(config, height, width, reuse), rel=1e-3)


def _operations(program, args):
    """`flops.step_flops` of a program of any arguments."""
    return flops.step_flops(lambda state, batch, key: program(*state), args, None, 0)


def test_the_formula_at_full_size():
    """The network of the paper at 288 x 512: GFLOP per frame and per ordered pair."""
    config = NetworkConfig()
    assert cost.encode(config, 288, 512) == pytest.approx(423e9, rel=3e-3)
    assert cost.decode(config, 288, 512) == pytest.approx(590e9, rel=0.03)
    # The shallow part of either head is 26 GFLOP, the first self-attention 3.7.
    saved = cost.decode(config, 288, 512) - cost.decode(config, 288, 512, "head")
    assert saved == pytest.approx(2 * (26.1e9 + 3.74e9), rel=5e-3)
    dust3r = dataclasses.replace(config, prior_branch=False)
    assert cost.encode(dust3r, 288, 512) == pytest.approx((381.4 + 0.9) * 1e9, rel=2e-3)
    linear = dataclasses.replace(config, head="linear")
    assert cost.head(linear, 288, 512) == pytest.approx(0.9e9, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("reuse", ["tokens", "head"])
def test_operations_of_a_clip_as_compiled(reuse):
    """ViT-L at 288 x 512, 50 frames, window 5: what the compiler counts in the batches that run."""
    config, frames, pairs = NetworkConfig(), 50, 470
    encode, decode = _abstract_pair(config, 288, 512, reuse, "direct")
    total = 0.0
    for (program, args), count in ((encode, frames), (decode, pairs)):
        total += count * jax.jit(program).lower(*args).compile().cost_analysis()["flops"]
    moved = 2 * (26.1 + 3.74) if reuse == "head" else 0.0
    formula = ((423 + moved) * frames + (590 - moved) * pairs) * 1e9
    print(f"{reuse}: compiled {total / 1e12:.1f} TFLOP, formula {formula / 1e12:.1f} TFLOP")
    assert total == pytest.approx(formula, rel=0.03)


class _Device:
    def __init__(self, platform, capability):
        self.platform, self.compute_capability = platform, capability


def test_the_fused_kernel_is_asked_for_where_it_exists(monkeypatch):
    """Only its choice and its layout: no GPU is at hand."""
    hopper = _Device("gpu", "9.0")
    assert attention.has_fused_kernel(jnp.bfloat16, 64, hopper)
    assert attention.has_fused_kernel(jnp.float16, 128, hopper)
    assert not attention.has_fused_kernel(jnp.float32, 64, hopper)
    assert not attention.has_fused_kernel(jnp.bfloat16, 60, hopper)
    assert not attention.has_fused_kernel(jnp.bfloat16, 64, _Device("gpu", "7.5"))
    assert not attention.has_fused_kernel(jnp.bfloat16, 64, _Device("gpu", "gfx90a"))
    assert not attention.has_fused_kernel(jnp.bfloat16, 64, _Device("cpu", None))

    rng = np.random.default_rng(0)
    parts = jnp.asarray(rng.normal(size=(3, 2, 4, 9, 8)), jnp.bfloat16)
    plain = attention.attend(*parts)
    xla = jax.nn.dot_product_attention
    asked = []

    def fused(*moved, implementation):
        asked.append((implementation, moved[0].shape))
        return xla(*moved)

    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    monkeypatch.setattr(attention, "has_fused_kernel", lambda *_: True)
    got = attention.attend(*parts)
    assert asked == [("cudnn", (2, 9, 4, 8))]  # (B, N, heads, d)
    np.testing.assert_allclose(got.astype(float), plain.astype(float), atol=2e-2)


def test_portrait_frames_are_not_shared_by_heads():
    net, params = align3r.Align3R(DENSE), align3r.abstract_params(DENSE)
    shapes = np.array([[32, 48], [48, 32]])

    def encode(params, images, maps):
        return net.apply(
            {"params": params}, images, maps, None, shapes, True, reuse="head",
            method="encode_frames",
        )  # fmt: skip

    with pytest.raises(ValueError, match="upright"):
        jax.eval_shape(encode, params, micro.images(), micro.camera_points())


def test_weights_in_half_the_memory_give_the_same_bits():
    config = dataclasses.replace(DENSE, dec_depth=4, enc_depth=1)
    params = micro.parameters(config)
    stored = network_programs.stored_weights(params, "bfloat16")
    assert stored["encoder"]["block_00"]["mlp"]["fc1"]["kernel"].dtype == jnp.bfloat16
    for exact in (stored["head1"], stored["encoder"]["norm"], stored["decoder_norm"]):
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(exact))
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), np.uint8)
    encode = jax.jit(network_programs.encode_program(config, "bfloat16"))
    one, other = (encode(p, images, micro.camera_points(1), None) for p in (params, stored))
    jax.tree.map(np.testing.assert_array_equal, one, other)
