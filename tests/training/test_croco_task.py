"""Masked pre-training: what is hidden stays hidden, and only that is scored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.networks import croco_pretrain
from align3r_jax.networks.layers import patch_embed
from align3r_jax.training import croco_task
from tests.networks import micro
from tests.training import tiny

NETWORK = tiny.PLAIN
SIDE, PATCHES = 48, 9


@pytest.fixture(scope="module")
def params():
    return tiny.parameters(croco_pretrain.abstract_params(NETWORK))


def test_exactly_the_share_is_hidden():
    visible, hidden = jax.jit(lambda key: croco_task.draw_mask(key, 5, 196, 0.9))(jax.random.key(0))
    assert visible.shape == (5, 20) and np.all(np.sum(hidden, 1) == 176)
    for row in range(5):
        np.testing.assert_array_equal(np.flatnonzero(~np.asarray(hidden[row])), visible[row])
    assert len({tuple(row) for row in np.asarray(visible)}) == 5, "another draw for every image"
    for share in (0.001, 1.0):
        with pytest.raises(UserError, match="some of both"):
            croco_task.draw_mask(jax.random.key(0), 1, 196, share)


def test_the_target_is_each_patch_without_its_mean_and_unbiased_deviation():
    images = micro.images(2, SIDE, SIDE)
    target = croco_task.target_patches(jnp.asarray(images), 16)
    pixels = images[1, 16:32, 32:48].reshape(-1)  # row 1, column 2, channel last
    expected = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
    np.testing.assert_allclose(target[1, 5], expected, rtol=1e-4, atol=1e-5)
    flat = croco_task.target_patches(jnp.ones((1, 16, 16, 3)), 16)
    np.testing.assert_array_equal(flat, 0)
    white = croco_task.imagenet_normalised(jnp.ones((1, 1, 3)))
    expected = (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(white[0, 0], expected, rtol=1e-5)


def test_only_hidden_patches_are_scored():
    rng = np.random.default_rng(0)
    target = jnp.asarray(rng.normal(size=(2, PATCHES, 12)), jnp.float32)
    predicted = target + jnp.asarray(rng.normal(size=target.shape), jnp.float32)
    _, hidden = croco_task.draw_mask(jax.random.key(0), 2, PATCHES, 0.6)
    assert croco_task.masked_error(target, target, hidden) == 0
    loss, gradient = jax.value_and_grad(croco_task.masked_error)(predicted, target, hidden)
    error = np.square(predicted - target).mean(-1)
    np.testing.assert_allclose(loss, error[np.asarray(hidden)].mean(), rtol=1e-5)
    np.testing.assert_array_equal(np.any(gradient != 0, -1), hidden)


def test_hidden_pixels_are_never_seen(params):
    images = jnp.asarray(micro.images(2, SIDE, SIDE))
    visible, hidden = croco_task.draw_mask(jax.random.key(0), 1, PATCHES, 0.6)
    network = croco_pretrain.CroCo(NETWORK, dtype=jnp.float32)

    @jax.jit
    def run(first, second):
        return network.apply({"params": params}, first, second, visible)

    first, second = images[:1], images[1:]
    out = run(first, second)
    assert out.shape == (1, PATCHES, 16 * 16 * 3) and out.dtype == jnp.float32
    pixels = jnp.repeat(jnp.repeat(hidden.reshape(1, 3, 3), 16, 1), 16, 2)[..., None]
    np.testing.assert_array_equal(run(jnp.where(pixels, 7.0, first), second), out)
    assert np.all(np.any(run(jnp.where(pixels, first, 7.0), second) != out, -1))
    assert np.all(np.any(run(first, -second) != out, -1))
    # A masked token knows its place: no two predictions are alike.
    assert len(np.unique(np.asarray(out)[0, :, 0])) == PATCHES


def test_images_of_other_sizes_are_refused(params):
    with pytest.raises(UserError, match="multiples of 16"):
        croco_task.croco_loss(NETWORK)(
            params, {"images": np.zeros((1, 2, 40, 48, 3), np.uint8)}, jax.random.key(0)
        )


@pytest.mark.slow
def test_everything_learns(params):
    batch = {"images": np.random.default_rng(0).integers(0, 256, (2, 2, SIDE, SIDE, 3), np.uint8)}
    loss_fn = croco_task.croco_loss(NETWORK, masked=0.6)
    (loss, details), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
        params, batch, jax.random.key(1)
    )
    assert np.isfinite(loss) and loss == details["masked_error"]
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))


def test_patches_go_row_by_row():
    image = jnp.arange(32 * 32 * 3.0).reshape(1, 32, 32, 3)
    np.testing.assert_array_equal(
        patch_embed.patchify(image, 16)[0, 2], image[0, 16:, :16].reshape(-1)
    )


def test_training_starts_from_noise_of_the_right_size():
    start = croco_pretrain.init_params(NETWORK, jax.random.key(0))
    assert jax.tree.structure(start) == jax.tree.structure(croco_pretrain.abstract_params(NETWORK))
    kernel = np.asarray(start["prediction_head"]["kernel"])
    bound = np.sqrt(6 / sum(kernel.shape))  # Xavier
    assert 0.95 * bound < np.abs(kernel).max() <= bound
    assert np.asarray(start["mask_token"]).std() < 0.05
