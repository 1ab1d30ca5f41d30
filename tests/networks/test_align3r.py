"""What must hold of the pairwise network whatever its weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.config import NETWORK_PRESETS, NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.networks import align3r
from tests.networks import micro

SHALLOW = dataclasses.replace(micro.ALIGN3R, dec_depth=4)  # compiles faster
ANCHORED = dataclasses.replace(SHALLOW, prior_encoding="ray", output="anchored")


def _assert_same(one, two, tolerance=1e-5):
    for name in ("pointmap1", "pointmap2", "confidence1", "confidence2"):
        a, b = np.asarray(getattr(one, name)), np.asarray(getattr(two, name))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize(
    "preset, count, tensors",
    [
        ("align3r_vitl_512_dpt", 603_066_248, 1061),
        ("dust3r_vitl_512_dpt", 571_171_208, 1001),
        ("monst3r_vitl_512_dpt", 571_171_208, 1001),
        ("dust3r_vitl_224_linear", 532_342_784, 877),
    ],
)
def test_parameter_counts(preset, count, tensors):
    config = NETWORK_PRESETS[preset]
    assert align3r.parameter_count(config) == count
    assert len(jax.tree.leaves(align3r.abstract_params(config))) == tensors


def test_shipped_preset_is_small():
    assert align3r.parameter_count(NETWORK_PRESETS["align3r_small"]) <= 8_000_000


def test_parameter_groups_of_the_full_network():
    tree = align3r.abstract_params(NetworkConfig())
    sizes = {name: sum(x.size for x in jax.tree.leaves(group)) for name, group in tree.items()}
    assert sizes == {
        "mask_token": 768,
        "encoder": 787_456 + 302_309_376 + 2_048,
        "decoder_embed": 787_200,
        "decoder1": 113_439_744,
        "decoder2": 113_439_744,
        "decoder_norm": 1_536,
        "prior_branch": 590_592 + 28_351_488 + 2_952_960,
        "head1": 20_201_668,
        "head2": 20_201_668,
    }
    shape = tree["encoder"]["block_03"]["attention"]["qkv"]["kernel"].shape
    assert shape == (1024, 3 * 1024)


def test_zero_injections_make_dust3r():
    config = micro.ALIGN3R
    params = micro.parameters(config)
    first, second = micro.images(seed=1), micro.images(seed=2)
    priors = np.abs(micro.images(seed=3)), np.abs(micro.images(seed=4))

    plain = {name: value for name, value in params.items() if name != "prior_branch"}
    dust3r = micro.run(dataclasses.replace(config, prior_branch=False), plain, first, second)

    branch = params["prior_branch"]
    silent = {k: jax.tree.map(jnp.zeros_like, v) for k, v in branch.items() if "injection" in k}
    silenced = {**params, "prior_branch": {**branch, **silent}}
    same = micro.run(config, silenced, first, second, *priors)
    _assert_same(same, dust3r)
    _assert_same(micro.run(config, params, first, second), dust3r)  # no prior given

    heard = micro.run(config, params, first, second, *priors)
    assert np.abs(heard.pointmap1 - dust3r.pointmap1).max() > 1e-2


def test_has_prior_masks_single_frames():
    config = micro.ALIGN3R
    params = micro.parameters(config)
    first, second = micro.images(seed=1), micro.images(seed=2)
    prior = np.abs(micro.images(seed=3))
    has = np.array([True, False])
    masked = micro.run(config, params, first, second, prior, prior, has_prior1=has, has_prior2=has)
    with_prior = micro.run(config, params, first, second, prior, prior)
    without = micro.run(config, params, first, second)
    _assert_same(jax.tree.map(lambda x: x[:1], masked), jax.tree.map(lambda x: x[:1], with_prior))
    _assert_same(jax.tree.map(lambda x: x[1:], masked), jax.tree.map(lambda x: x[1:], without))


@pytest.mark.slow
def test_frames_encoded_once_serve_all_their_pairs():
    """decode_pairs of features by frame number = the network on each pair of images."""
    config = micro.ALIGN3R
    params = micro.parameters(config)
    frames, priors = micro.images(3, seed=1), np.abs(micro.images(3, seed=2))
    pairs = np.array([[0, 1], [1, 0], [2, 0], [1, 2]])
    net = align3r.Align3R(config, precision="highest")

    @jax.jit
    def split(params):
        features = net.apply({"params": params}, frames, priors, method="encode_frames")
        views = (features.take(pairs[:, view]) for view in (0, 1))
        return net.apply({"params": params}, *views, method="decode_pairs")

    i, j = pairs.T
    joint = micro.run(config, params, frames[i], frames[j], priors[i], priors[j])
    _assert_same(split(params), joint)


def test_views_of_unequal_size():
    config = SHALLOW
    params = micro.parameters(config)
    first, second = micro.images(height=32, width=48, seed=1), micro.images(height=48, width=16)
    pair = micro.run(config, params, first, second, np.abs(first), np.abs(second))
    assert pair.pointmap1.shape == first.shape and pair.pointmap2.shape == second.shape
    # Both views matter to both outputs.
    other = micro.run(config, params, first, second + 0.5, np.abs(first), np.abs(second))
    assert np.abs(pair.pointmap1 - other.pointmap1).max() > 1e-4
    assert np.all(np.isfinite(pair.pointmap2)) and np.all(np.asarray(pair.confidence2) > 1)


def test_anchored_network_starts_at_its_prior():
    params = align3r.init_params(ANCHORED, jax.random.key(0))
    first, second = micro.images(seed=1), micro.images(seed=2)
    points1 = micro.camera_points(seed=1, scale=3.0)
    points2 = micro.camera_points(seed=2, scale=6.0)
    pair = micro.run(ANCHORED, params, first, second, points1, points2)
    # One unit for both views, the median depth of the first.
    unit = np.median(points1[..., 2], axis=(1, 2))[:, None, None, None]
    np.testing.assert_allclose(pair.pointmap1, points1 / unit, rtol=1e-5)
    np.testing.assert_allclose(pair.pointmap2, points2 / unit, rtol=1e-5)
    np.testing.assert_allclose(pair.confidence1, 2.0)


def test_anchored_network_with_portrait_frames_in_a_landscape_batch():
    params = micro.parameters(ANCHORED)
    upright, points = micro.images(1, 48, 32), micro.camera_points(1, 48, 32)
    points[:, 3:9, 5:20] = np.nan  # filled from the frame's own rays
    alone = micro.run(ANCHORED, params, upright, upright, points, points)
    shapes = np.array([[48, 32], [32, 48]])
    stored = np.concatenate([upright.swapaxes(1, 2), micro.images(1, 32, 48, seed=5)])
    maps = np.concatenate([points.swapaxes(1, 2), micro.camera_points(1, 32, 48, seed=5)])
    mixed = micro.run(
        ANCHORED, params, stored, stored, maps, maps,
        true_shape1=shapes, true_shape2=shapes, landscape_only=True,
    )  # fmt: skip
    _assert_same(jax.tree.map(lambda x: x[:1].swapaxes(1, 2), mixed), alone)


@pytest.mark.slow
def test_gradient_is_finite_at_zero_and_the_same_with_remat():
    config = SHALLOW
    params = micro.parameters(config)
    zero_head = jax.tree.map(jnp.zeros_like, params["head1"])
    params = {**params, "head1": zero_head, "head2": zero_head}
    image, prior = micro.images(1), np.abs(micro.images(1))

    def gradient(remat):
        net = align3r.Align3R(config, remat=remat, precision="highest")

        @jax.jit
        @jax.grad
        def run(params):
            pair = net.apply({"params": params}, image, image[:, :, ::-1], prior, prior)
            return jnp.sum(pair.pointmap1**2) + jnp.sum(pair.pointmap2[..., 2] * pair.confidence2)

        return run(params)

    plain, remat = gradient(False), gradient(True)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, remat)
    assert np.abs(plain["mask_token"]).max() == 0


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"enc_num_heads": 3}, "enc_num_heads"),
        ({"output": "anchored"}, "anchored"),
        ({"conf_mode": "sigmoid"}, "conf_max"),
        ({"dec_depth": 3}, "dec_depth"),
    ],
)
def test_impossible_settings_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        align3r.check_config(dataclasses.replace(micro.ALIGN3R, **changes))


def test_bad_inputs_are_refused():
    config = dataclasses.replace(micro.ALIGN3R, prior_branch=False)
    params = align3r.abstract_params(config)
    net = align3r.Align3R(config)

    def encode(*args, **options):
        apply = lambda p: net.apply({"params": p}, *args, method="encode_frames", **options)  # noqa: E731
        return jax.eval_shape(apply, params)

    with pytest.raises(UserError, match="multiples of 16"):
        encode(np.zeros((1, 30, 48, 3), np.float32))
    with pytest.raises(UserError, match="no prior branch"):
        encode(np.zeros((1, 32, 48, 3), np.float32), np.zeros((1, 32, 48, 3), np.float32))
    with pytest.raises(UserError, match="width >= height"):
        shapes = np.array([[48, 32]])
        encode(np.zeros((1, 48, 32, 3), np.float32), None, None, shapes, landscape_only=True)
