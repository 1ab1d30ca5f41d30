"""Masked pre-training of encoder and decoder by completing one view from another (CroCo).

L = mean over masked patches of  mean over their pixels of (p - t)^2,
t = (x - mean(x)) / sqrt(var(x) + 1e-6) of each patch x, unbiased variance, p the prediction.
Of 14 x 14 patches of view 1 int(0.9 * 196) = 176 are masked; view 2 is seen whole.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from align3r_jax.config import NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.networks import croco_pretrain
from align3r_jax.networks.layers import patch_embed
from align3r_jax.structs import Array
from align3r_jax.training import pair_batch
from align3r_jax.training.step import LossFn

MASKED = 0.9  # of the patches of view 1
# Of the pictures that the network reads; the pairwise networks later read (x - 0.5) / 0.5.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_EPSILON = 1e-6


def croco_loss(
    config: NetworkConfig,
    dtype: Any = jnp.float32,
    *,
    masked: float = MASKED,
    remat: bool = False,
) -> LossFn:
    """Returns loss_fn of `networks.croco_pretrain` on the images of a batch, all else unread.

    masked: share of the patches of view 1 that are hidden, drawn anew in every step.
    dtype, remat: as in `tasks.pairwise_loss`.
    """
    network = croco_pretrain.CroCo(config, dtype=dtype, remat=remat)

    def loss_fn(params: Any, batch: dict[str, Array], key: Array) -> tuple[Array, dict]:
        images = imagenet_normalised(pair_batch.images_of(batch))
        count, _, height, width, _ = images.shape
        patch = config.patch_size
        if height % patch or width % patch:
            raise UserError(
                f"Images of {height} x {width}: expected both sides to be multiples of {patch}."
            )
        visible, hidden = draw_mask(key, count, (height // patch) * (width // patch), masked)
        predicted: Any = network.apply({"params": params}, images[:, 0], images[:, 1], visible)
        loss = masked_error(predicted, target_patches(images[:, 0], patch), hidden)
        return loss, {"masked_error": loss}

    return loss_fn


def imagenet_normalised(images: Array) -> Array:
    """Returns images (..., 3) in [-1, 1] with the mean and deviation of ImageNet taken out."""
    return ((images + 1.0) / 2.0 - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)


def draw_mask(key: Array, count: int, patches: int, masked: float) -> tuple[Array, Array]:
    """Returns ((count, V) int32 visible patches in order, (count, patches) bool which are hidden).

    Exactly int(masked * patches) of each image are hidden, those with the largest random numbers.
    Raises UserError if that hides none or all.
    """
    num_hidden = int(masked * patches)
    if not 0 < num_hidden < patches:
        raise UserError(
            f"masked={masked} hides {num_hidden} of {patches} patches; choose a share between 0 "
            "and 1 that leaves some of both."
        )
    ranks = jnp.argsort(jax.random.uniform(key, (count, patches)), axis=1)
    visible = jnp.sort(ranks[:, : patches - num_hidden], axis=1)
    hidden = jax.vmap(lambda row, index: row.at[index].set(False))(
        jnp.ones((count, patches), bool), visible
    )
    return visible, hidden


def target_patches(images: Array, patch: int) -> Array:
    """Returns the patches (B, N, patch * patch * 3) of images (B, H, W, 3), each normalised."""
    pixels = patch_embed.patchify(images, patch)
    mean = jnp.mean(pixels, axis=-1, keepdims=True)
    variance = jnp.var(pixels, axis=-1, keepdims=True, ddof=1)
    return (pixels - mean) / jnp.sqrt(variance + _EPSILON)


def masked_error(predicted: Array, target: Array, hidden: Array) -> Array:
    """Returns the loss of the module's formula. predicted, target: (B, N, P); hidden: (B, N)."""
    error = jnp.mean(jnp.square(predicted - target), axis=-1)
    return jnp.sum(jnp.where(hidden, error, 0.0)) / jnp.sum(hidden)
