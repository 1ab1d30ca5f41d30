"""The pairwise network: two frames -> two point maps in the camera of the first, and confidences.

    features_i = encode_frames(image_i, prior_i)        once per frame
    pair       = decode_pairs(features_1, features_2)   once per ordered pair

The split is exact: the image encoder and the whole prior branch see one frame only. Sources:
CroCo v2 (encoder, decoder), DUSt3R (heads, output), Align3R (prior branch). With
`prior_branch=False` this is DUSt3R, and MonST3R.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct, traverse_util

from align3r_jax.config import NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.networks import croco, heads, initial, prior_branch
from align3r_jax.networks.frame_features import FrameFeatures, Reuse
from align3r_jax.networks.layers import attention, blocks, patch_embed, rope2d
from align3r_jax.networks.layers.attention import Dtype


@struct.dataclass
class PairOutput:
    """pointmap1, pointmap2: (B, H, W, 3) points of either view, both in the camera of view 1;
    confidence1, confidence2: (B, H, W) >= conf_min. raw1, raw2: (B, H, W, 4 or 5) head output.
    intermediates: name -> array, if asked for."""

    pointmap1: jax.Array
    pointmap2: jax.Array
    confidence1: jax.Array
    confidence2: jax.Array
    raw1: jax.Array
    raw2: jax.Array
    intermediates: dict[str, jax.Array] | None = None


def check_config(config: NetworkConfig) -> None:
    """Raises UserError if the settings do not describe a network."""
    for name in ("enc", "dec"):
        dim, count = getattr(config, f"{name}_embed_dim"), getattr(config, f"{name}_num_heads")
        if dim % count or (dim // count) % 4:
            raise UserError(
                f"{name}_embed_dim={dim} with {name}_num_heads={count}: expected heads of a width "
                "that is a whole multiple of 4; change one of the two."
            )
    if config.output == "anchored" and not (config.prior_branch and config.prior_encoding == "ray"):
        raise UserError(
            'output="anchored" needs the camera-frame points of prior_encoding="ray" and '
            'prior_branch=True; set both, or use output="direct".'
        )
    injected = config.prior_branch and config.prior_injection == "zero_conv"
    if injected and config.dec_depth < 4:
        raise UserError(
            f"dec_depth={config.dec_depth} leaves no room for the prior branch (dec_depth // 2 - 2 "
            "blocks); use at least 4, or prior_branch=False."
        )
    if config.conf_mode == "sigmoid" and config.conf_max == float("inf"):
        raise UserError('conf_mode="sigmoid" needs a finite conf_max.')


class Align3R(nn.Module):
    """The network of `config`. Parameters, residual streams, heads and outputs are float32.

    dtype: what the matrix products of encoder, prior branch and decoders compute in.
    precision: of float32 products on accelerators ("highest" for parity), None = the default.
    remat: compute block activations again in the backward pass (less memory, training only).
    head_form: of dense heads, see `layers.dpt.Dpt`; the cheap one has the dearer gradient.
    """

    config: NetworkConfig
    dtype: Dtype = jnp.float32
    precision: str | None = None
    remat: bool = False
    head_form: str = "direct"

    def setup(self) -> None:
        config = self.config
        check_config(config)
        common: dict[str, Any] = {
            "mlp_ratio": config.mlp_ratio,
            "dtype": self.dtype,
            "remat": self.remat,
        }
        cut: dict[str, Any] = {"patch": config.patch_size, "rope_base": config.rope_base}
        self.encoder = croco.Encoder(
            config.enc_embed_dim, config.enc_depth, config.enc_num_heads, **common, **cut
        )
        self.decoder_embed = attention.dense(config.dec_embed_dim, self.dtype)
        if config.prior_branch and config.prior_injection == "zero_conv":
            self.prior_branch = prior_branch.PriorBranch(
                config.dec_embed_dim,
                config.num_prior_blocks,
                config.dec_num_heads,
                **common,
                **cut,
            )
        self.decoder1 = croco.DecoderStack(config.dec_depth, config.dec_num_heads, **common)
        self.decoder2 = croco.DecoderStack(config.dec_depth, config.dec_num_heads, **common)
        self.decoder_norm = blocks.layer_norm(jnp.float32)
        self.head1 = heads.make_head(config, self.head_form)
        self.head2 = heads.make_head(config, self.head_form)
        # parity: a token of CroCo's pre-training that nothing reads, kept for round trips.
        self.mask_token = self.param(
            "mask_token", nn.initializers.normal(0.02), (1, 1, config.dec_embed_dim)
        )

    def encode_frames(
        self,
        images: jax.Array,
        prior_maps: jax.Array | None = None,
        has_prior: jax.Array | None = None,
        true_shape: jax.Array | None = None,
        landscape_only: bool = False,
        return_intermediates: bool = False,
        reuse: Reuse = "tokens",
    ) -> FrameFeatures:
        """Runs the encoder and the prior branch on B frames.

        images: (B, H, W, 3) float in [-1, 1], H and W multiples of the patch size.
        prior_maps: (B, H, W, 3) as `config.prior_encoding` says: "minmax" point maps scaled to
        [0, 1] per axis, "ray" point maps in the camera frame, any scale common to the video,
        NaN where missing. None: no frame has a prior, nothing is added to the decoder.
        has_prior: (B,) bool, frames whose prior is to be used; None: all.
        landscape_only: frames are stored with W >= H; those whose true_shape (B, 2) (height,
        width) is higher than wide are stored transposed, and so come the outputs back.
        reuse: what else is computed here rather than in every pair, see `Reuse`.
        """
        config = self.config
        batch, height, width = self._check_images(images, prior_maps, landscape_only)
        portrait = None
        if landscape_only:
            if true_shape is None:
                raise ValueError("landscape_only needs true_shape (B, 2), height and width.")
            portrait = jnp.asarray(true_shape)[:, 1] < jnp.asarray(true_shape)[:, 0]
        grid = (height // config.patch_size, width // config.patch_size)
        positions = patch_embed.positions(batch, grid, portrait)

        with attention.precision_context(self.precision):
            ray = None
            if config.prior_branch and config.prior_encoding == "ray":
                ray = prior_branch.encode_ray(
                    prior_maps, has_prior, (batch, height, width), portrait
                )
                has_prior = ray.has_prior
                prior_maps = None if prior_maps is None else ray.encoding
            concatenated = config.prior_branch and config.prior_injection == "concat"
            if concatenated:
                images = prior_branch.with_depth(images, prior_maps, has_prior)

            tokens, patches = self.encoder(images, positions, portrait)
            decoder_tokens = self.decoder_embed(tokens).astype(jnp.float32)
            intermediates = {"patches": patches}
            if prior_maps is None or concatenated:
                # Still of known width, so that frames with and without a prior can be paired.
                added = jnp.zeros((batch, 0, *decoder_tokens.shape[1:]), jnp.float32)
                if prior_maps is None:
                    has_prior = jnp.zeros((batch,), jnp.float32) if config.prior_branch else None
                elif has_prior is None:
                    has_prior = jnp.ones((batch,), jnp.float32)
            else:
                added, intermediates["prior_tokens"] = self.prior_branch(
                    prior_maps, positions, portrait
                )
                if has_prior is None:
                    has_prior = jnp.ones((batch,), jnp.float32)
                has_prior = has_prior.astype(jnp.float32)
                added = added * has_prior[:, None, None, None]
                decoder_tokens = decoder_tokens + added[:, 0]

        anchored = config.output == "anchored"
        features = FrameFeatures(
            tokens=tokens,
            decoder_tokens=decoder_tokens,
            injections=added[:, 1:],
            positions=positions,
            portrait=portrait,
            has_prior=has_prior,
            anchor=ray.anchor if ray is not None and anchored else None,
            log_median=ray.log_median if ray is not None and anchored else None,
            grid=grid,
            intermediates=intermediates if return_intermediates else None,
        )
        return features if reuse == "tokens" else self._with_views(features, reuse)

    def decode_pairs(
        self,
        features1: FrameFeatures,
        features2: FrameFeatures,
        return_intermediates: bool = False,
    ) -> PairOutput:
        """Runs both decoders and heads on B ordered pairs; the views may differ in size.

        intermediates: "decoder1", "decoder2" (L + 1, B, N, D), the decoder's input and its
        tokens behind each block, the last normed.
        """
        config = self.config
        with attention.precision_context(self.precision):
            by1, by2 = self._rotation(features1), self._rotation(features2)
            stream1, stream2 = [features1.decoder_tokens], [features2.decoder_tokens]
            for index in range(config.dec_depth):
                before1, before2 = stream1[-1], stream2[-1]
                begun1, begun2 = (None, None) if index else (features1.begun1, features2.begun2)
                after1 = self.decoder1(index, before1, before2, by1, by2, begun1)
                after2 = self.decoder2(index, before2, before1, by2, by1, begun2)
                stream1.append(_inject(after1, features1.injections, index))
                stream2.append(_inject(after2, features2.injections, index))
            stream1[-1] = self.decoder_norm(stream1[-1])
            stream2[-1] = self.decoder_norm(stream2[-1])
            raw1 = self._run_head(self.head1, features1, stream1, features1.shallow1)
            raw2 = self._run_head(self.head2, features2, stream2, features2.shallow2)

        if config.output == "anchored":
            anchor1, anchor2 = _anchors(features1, features2)
            points1, confidence1 = heads.anchored(raw1, anchor1, config)
            points2, confidence2 = heads.anchored(raw2, anchor2, config)
        else:
            points1, confidence1 = heads.direct(raw1, config)
            points2, confidence2 = heads.direct(raw2, config)

        intermediates = None
        if return_intermediates:
            intermediates = {"decoder1": jnp.stack(stream1), "decoder2": jnp.stack(stream2)}
        return PairOutput(points1, points2, confidence1, confidence2, raw1, raw2, intermediates)

    def __call__(
        self,
        images1: jax.Array,
        images2: jax.Array,
        prior1: jax.Array | None = None,
        prior2: jax.Array | None = None,
        *,
        has_prior1: jax.Array | None = None,
        has_prior2: jax.Array | None = None,
        true_shape1: jax.Array | None = None,
        true_shape2: jax.Array | None = None,
        landscape_only: bool = False,
    ) -> PairOutput:
        """decode_pairs of the two encoded views; see there and `encode_frames`.

        Views of equal shape are encoded as one batch.
        """
        names = ("images", "prior_maps", "has_prior", "true_shape")
        view1: dict[str, Any] = dict(zip(names, (images1, prior1, has_prior1, true_shape1)))
        view2: dict[str, Any] = dict(zip(names, (images2, prior2, has_prior2, true_shape2)))
        alike = images1.shape == images2.shape and all(
            (view1[name] is None) == (view2[name] is None) for name in names
        )
        if not alike:
            return self.decode_pairs(
                self.encode_frames(**view1, landscape_only=landscape_only),
                self.encode_frames(**view2, landscape_only=landscape_only),
            )
        both: dict[str, Any] = {
            name: None if view1[name] is None else jnp.concatenate([view1[name], view2[name]])
            for name in names
        }
        features = self.encode_frames(**both, landscape_only=landscape_only)
        batch = images1.shape[0]
        return self.decode_pairs(features.take(slice(batch)), features.take(slice(batch, None)))

    def _with_views(self, features: FrameFeatures, reuse: Reuse) -> FrameFeatures:
        """Adds what depends on the frame and on its place in a pair."""
        by, tokens, grid = self._rotation(features), features.decoder_tokens, features.grid
        with attention.precision_context(self.precision):
            features = dataclasses.replace(
                features,
                begun1=self.decoder1.begin(tokens, by),
                begun2=self.decoder2.begin(tokens, by),
            )
            if reuse == "block" or self.config.head == "linear":
                return features
            if features.portrait is not None:
                raise ValueError('reuse="head" needs frames that are all stored upright.')
            return dataclasses.replace(
                features,
                shallow1=self.head1.shallow(features.tokens, grid),
                shallow2=self.head2.shallow(features.tokens, grid),
            )

    def _rotation(self, features: FrameFeatures) -> rope2d.Rotation:
        """Of the decoders' tokens; constants of the program unless some frames are portrait."""
        positions = features.positions
        if features.portrait is None:
            positions = patch_embed.positions(1, features.grid, None)
        head_dim = self.config.dec_embed_dim // self.config.dec_num_heads
        return rope2d.rotation(positions, head_dim, self.config.rope_base)

    def _run_head(
        self,
        head: Any,
        features: FrameFeatures,
        stream: list[jax.Array],
        shallow: jax.Array | None,
    ) -> jax.Array:
        hooks = [features.tokens if hook == 0 else stream[hook] for hook in self.config.dpt_hooks]
        if shallow is not None:
            return head(hooks, features.grid, shallow)
        upright = head(hooks, features.grid)
        if features.portrait is None:
            return upright
        # The second pass only where a frame needs it: most batches have landscape frames alone.
        turned = nn.cond(
            jnp.any(features.portrait),
            lambda head, hooks: head(hooks, features.grid[::-1]).swapaxes(1, 2),
            lambda head, hooks: jnp.zeros_like(upright),
            head,
            hooks,
        )
        return jnp.where(features.portrait[:, None, None, None], turned, upright)

    def _check_images(
        self, images: jax.Array, prior_maps: jax.Array | None, landscape_only: bool
    ) -> tuple[int, int, int]:
        batch, height, width, _ = images.shape
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise UserError(
                f"Images of {height} x {width}: expected both sides to be multiples of {patch}; "
                "resize or crop the frames first."
            )
        if landscape_only and height > width:
            raise UserError(
                f"landscape_only expects frames stored with width >= height, got {height} x "
                f"{width}; transpose them, or turn landscape_only off."
            )
        if prior_maps is not None:
            if not self.config.prior_branch:
                raise UserError("This network has no prior branch; pass prior_maps=None.")
            if prior_maps.shape != images.shape:
                raise UserError(
                    f"prior_maps are {prior_maps.shape}, expected the images' {images.shape}."
                )
        return batch, height, width


def _anchors(first: FrameFeatures, second: FrameFeatures) -> tuple[jax.Array, jax.Array]:
    """The anchors of a pair in one unit, the median depth of view 1's prior.

    A frame without a prior has no unit; then the two anchors keep their own.
    """
    (has1, log1), (has2, log2) = (
        (jnp.asarray(view.has_prior), jnp.asarray(view.log_median)) for view in (first, second)
    )
    ratio = jnp.exp(has1 * has2 * (log2 - log1))
    anchor2 = jnp.asarray(second.anchor) * ratio[:, None, None, None]
    return jnp.asarray(first.anchor), anchor2


def _inject(tokens: jax.Array, injections: jax.Array, index: int) -> jax.Array:
    return tokens + injections[:, index] if index < injections.shape[1] else tokens


@functools.lru_cache(maxsize=16)
def _flat_shapes(config: NetworkConfig) -> dict[str, jax.ShapeDtypeStruct]:
    image = jax.ShapeDtypeStruct((1, config.patch_size, config.patch_size, 3), jnp.float32)
    prior = image if config.prior_branch else None
    init = Align3R(config).init
    params = jax.eval_shape(init, jax.random.key(0), image, image, prior, prior)["params"]
    return traverse_util.flatten_dict(params, sep="/")


def abstract_params(config: NetworkConfig) -> dict[str, Any]:
    """The parameter tree as shapes and types, without memory."""
    return traverse_util.unflatten_dict(_flat_shapes(config), sep="/")


def init_params(config: NetworkConfig, key: jax.Array) -> dict[str, Any]:
    """Parameters to train from scratch, by the rules of `networks.initial`."""
    return initial.fill(abstract_params(config), config, key)


def parameter_count(config: NetworkConfig) -> int:
    """How many numbers the network learns."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
