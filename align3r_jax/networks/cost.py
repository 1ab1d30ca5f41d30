"""What the pairwise network costs, by formula: operations and the bytes of a frame's features.

Operations are those of matrix products and convolutions as the network runs them, a multiply-add as
two; taps on the zeros around a map count. All sizes are pixels of one frame. A clip of T frames and
P ordered pairs costs T * encode + P * decode; at 288 x 512 that is 423 T + 580 P GFLOP for Align3R
with everything of the pair computed in the pair and the heads in their direct form.
"""

from __future__ import annotations

import math

from align3r_jax.config import NetworkConfig
from align3r_jax.networks import heads
from align3r_jax.networks.frame_features import Reuse
from align3r_jax.networks.layers import doubled_conv


def encode(config: NetworkConfig, height: int, width: int, reuse: Reuse = "tokens") -> float:
    """Returns the operations of `encode_frames` for one frame with a prior."""
    tokens = _tokens(config, height, width)
    enc, dec, ratio = config.enc_embed_dim, config.dec_embed_dim, config.mlp_ratio
    concatenated = config.prior_branch and config.prior_injection == "concat"
    patch = config.patch_size**2
    total = 2 * tokens * patch * (4 if concatenated else 3) * enc
    total += config.enc_depth * _block(tokens, enc, ratio) + 2 * tokens * enc * dec
    if config.prior_branch and not concatenated:
        blocks = config.num_prior_blocks
        total += 2 * tokens * patch * 3 * dec + blocks * _block(tokens, dec, ratio)
        total += (blocks + 1) * 2 * tokens * dec * dec
    return float(total + 2 * _moved(config, height, width, reuse))


def decode(
    config: NetworkConfig,
    height: int,
    width: int,
    reuse: Reuse = "tokens",
    head_form: str = "direct",
) -> float:
    """Returns the operations of `decode_pairs` for one ordered pair, both heads included."""
    tokens, dim = _tokens(config, height, width), config.dec_embed_dim
    # A decoder block is a block with a second attention, whose queries are its own.
    block = _block(tokens, dim, config.mlp_ratio) + _attention(tokens, dim)
    view = config.dec_depth * block + head(config, height, width, head_form)
    return float(2 * (view - _moved(config, height, width, reuse)))


def head(config: NetworkConfig, height: int, width: int, form: str = "direct") -> float:
    """Returns the operations of one head for one view. form: "direct" or "cheap", of `Dpt`."""
    tokens, dec = _tokens(config, height, width), config.dec_embed_dim
    out = heads.out_channels(config)
    if config.head == "linear":
        return float(2 * tokens * dec * out * config.patch_size**2)
    rows, columns = height // config.patch_size, width // config.patch_size
    coarse = math.ceil(rows / 2) * math.ceil(columns / 2)
    first, second, third, fourth = config.dpt_layer_dims
    dim, last = config.dpt_feature_dim, config.dpt_last_dim
    total = _shallow(config, tokens)
    total += 2 * tokens * second * (dec + 4 * second) + 2 * tokens * third * dec
    total += 2 * tokens * fourth * dec + 2 * coarse * 9 * fourth**2
    total += 2 * 9 * dim * (4 * tokens * second + tokens * third + coarse * fourth)
    unit, join = 2 * 2 * 9 * dim**2, 2 * dim**2  # per pixel: a residual unit, the 1x1 behind it
    total += coarse * (unit + join) + (tokens + 4 * tokens) * (2 * unit + join)
    total += 16 * tokens * (unit + join)  # the other unit of this one is in the shallow part
    half, full = 64 * tokens, 256 * tokens
    if form == "cheap":
        half, full = doubled_conv.products(4 * rows, 4 * columns)
    total += 2 * 9 * half * dim * (dim // 2) + 2 * 9 * full * (dim // 2) * last
    return float(total + 2 * 256 * tokens * last * out)


def feature_bytes(config: NetworkConfig, height: int, width: int, reuse: Reuse = "tokens") -> int:
    """Returns the bytes of one frame's features, float32."""
    tokens = _tokens(config, height, width)
    branch = config.prior_branch and config.prior_injection == "zero_conv"
    channels = config.enc_embed_dim + config.dec_embed_dim + 2  # and the position
    channels += config.num_prior_blocks * config.dec_embed_dim if branch else 0
    if reuse != "tokens":
        channels += 2 * config.dec_embed_dim
    if reuse == "head" and config.head == "dpt":
        channels += 2 * 16 * config.dpt_feature_dim
    return 4 * (tokens * channels + (3 * height * width if config.output == "anchored" else 0))


def reuses_within(size: float, config: NetworkConfig, height: int, width: int) -> list[Reuse]:
    """Returns the levels whose features of a frame take up to `size` bytes, most first.

    "tokens" is always among them.
    """
    levels: tuple[Reuse, ...] = ("head", "block")
    found = [level for level in levels if feature_bytes(config, height, width, level) <= size]
    return [*found, "tokens"]


def _tokens(config: NetworkConfig, height: int, width: int) -> int:
    return (height // config.patch_size) * (width // config.patch_size)


def _attention(tokens: int, dim: int) -> int:
    """Queries, keys, values and output; products with keys and values."""
    return 2 * (4 * tokens * dim**2 + 2 * tokens**2 * dim)


def _block(tokens: int, dim: int, ratio: int) -> int:
    return _attention(tokens, dim) + 2 * 2 * ratio * tokens * dim**2


def _shallow(config: NetworkConfig, tokens: int) -> int:
    """Reassembly of the encoder's tokens, its 3x3 layer and the residual unit behind it."""
    first, dim = config.dpt_layer_dims[0], config.dpt_feature_dim
    reassembly = 2 * tokens * first * (config.enc_embed_dim + 16 * first)
    return reassembly + 2 * 16 * tokens * 9 * dim * (first + 2 * dim)


def _moved(config: NetworkConfig, height: int, width: int, reuse: Reuse) -> int:
    """Operations of one view that are done once per frame instead of in the pair."""
    tokens = _tokens(config, height, width)
    moved = 0 if reuse == "tokens" else _attention(tokens, config.dec_embed_dim)
    return moved + (_shallow(config, tokens) if reuse == "head" and config.head == "dpt" else 0)
