"""Names of CroCo v2, DUSt3R, MonST3R and Align3R checkpoints <-> our parameter paths."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from align3r_jax.config import NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.networks import align3r
from align3r_jax.weights import mapping
from align3r_jax.weights.mapping import Rule

_MLP = [("mlp.fc1", "mlp/fc1", "linear"), ("mlp.fc2", "mlp/fc2", "linear")]
_ENCODER_BLOCK = [
    ("norm1", "norm_attention", "norm"),
    ("attn.qkv", "attention/qkv", "linear"),
    ("attn.proj", "attention/out", "linear"),
    ("norm2", "norm_mlp", "norm"),
    *_MLP,
]
_DECODER_BLOCK = [
    *_ENCODER_BLOCK[:3],
    ("norm2", "norm_cross", "norm"),
    ("norm_y", "norm_other", "norm"),
    ("cross_attn.projq", "cross_attention/query", "linear"),
    ("cross_attn.projk", "cross_attention/key", "linear"),
    ("cross_attn.projv", "cross_attention/value", "linear"),
    ("cross_attn.proj", "cross_attention/out", "linear"),
    ("norm3", "norm_mlp", "norm"),
    *_MLP,
]
_HEAD = [
    ("proj", "project", "linear"),
    ("dpt.act_postprocess.0.0", "project_1", "conv"),
    ("dpt.act_postprocess.0.1", "resize_1", "conv_transpose"),
    ("dpt.act_postprocess.1.0", "project_2", "conv"),
    ("dpt.act_postprocess.1.1", "resize_2", "conv_transpose"),
    ("dpt.act_postprocess.2.0", "project_3", "conv"),
    ("dpt.act_postprocess.3.0", "project_4", "conv"),
    ("dpt.act_postprocess.3.1", "resize_4", "conv"),
    ("dpt.scratch.layer{i}_rn", "layer_{i}", "conv"),
    ("dpt.scratch.refinenet{i}.out_conv", "fusion_{i}/out", "conv"),
    ("dpt.scratch.refinenet{i}.resConfUnit1.conv{j}", "fusion_{i}/skip_unit/conv{j}", "conv"),
    ("dpt.scratch.refinenet{i}.resConfUnit2.conv{j}", "fusion_{i}/unit/conv{j}", "conv"),
    ("dpt.head.0", "output_1", "conv"),
    ("dpt.head.2", "output_2", "conv"),
    ("dpt.head.4", "output_3", "conv"),
]


def _under(source: str, path: str, rows: list[tuple[str, str, str]]) -> list[Rule]:
    return [Rule(f"{source}.{name}", f"{path}/{leaf}", kind) for name, leaf, kind in rows]


RULES: list[Rule] = [
    Rule("mask_token", "mask_token", "array"),
    Rule("patch_embed.proj", "encoder/patch_embed", "conv"),
    *_under("enc_blocks.{b}", "encoder/block_{b:02d}", _ENCODER_BLOCK),
    Rule("enc_norm", "encoder/norm", "norm"),
    Rule("decoder_embed", "decoder_embed", "linear"),
    *_under("dec_blocks.{b}", "decoder1/block_{b:02d}", _DECODER_BLOCK),
    *_under("dec_blocks2.{b}", "decoder2/block_{b:02d}", _DECODER_BLOCK),
    Rule("dec_norm", "decoder_norm", "norm"),
    Rule("patch_embed_point_cloud.proj", "prior_branch/patch_embed", "conv"),
    *_under("dec_blocks_pc.{b}", "prior_branch/block_{b:02d}", _ENCODER_BLOCK),
    Rule("zero_convs.{b}.0", "prior_branch/injection_{b}", "pointwise"),
    *_under("downstream_head1", "head1", _HEAD),
    *_under("downstream_head2", "head2", _HEAD),
]

_ALIAS = re.compile(r"(downstream_head[12]\.dpt\.scratch\.)layer_rn\.(\d)\.weight")
# Groups that a checkpoint of an earlier stage of training lacks as a whole: CroCo has no heads,
# DUSt3R no prior branch.
_LATER_GROUPS = ("prior_branch", "head1", "head2")


def _canonical(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state under one name per tensor, with a second decoder. UserError if aliases differ."""
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    canonical = {name: value for name, value in state.items() if not _ALIAS.fullmatch(name)}
    for name in state:
        alias = _ALIAS.fullmatch(name)
        if alias is None:
            continue
        kept = f"{alias[1]}layer{int(alias[2]) + 1}_rn.weight"
        if kept in canonical and not np.array_equal(canonical[kept], state[name]):
            raise UserError(
                f"{name} and {kept} must be the same tensor, but their values differ; the file is "
                "damaged or was edited. Remove one of the two."
            )
        canonical[kept] = state[name]
    if not any(name.startswith("dec_blocks2.") for name in canonical):
        for name in [name for name in canonical if name.startswith("dec_blocks.")]:
            canonical[name.replace("dec_blocks.", "dec_blocks2.", 1)] = canonical[name]
        # CroCo's head predicts pixels; nothing of ours is like it.
        canonical = {
            name: value
            for name, value in canonical.items()
            if not name.startswith("prediction_head.")
        }
    return canonical


def import_state(
    state: Mapping[str, np.ndarray],
    config: NetworkConfig,
    initial: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the float32 parameter tree of a state dict with the reference's names.

    Accepts `layer_rn` aliases beside or instead of `layer{i}_rn`, the prefix `module.`, and CroCo
    files with a single decoder (it starts both). initial: parameters that provide the heads or
    the prior branch if the state has none of them at all (training from an earlier stage).

    Raises UserError naming everything unknown, missing or mis-shaped.
    """
    return mapping.to_tree(
        _canonical(state),
        RULES,
        align3r.abstract_params(config),
        initial=initial,
        optional=_LATER_GROUPS,
    )


def export_state(params: Mapping[str, Any], config: NetworkConfig) -> dict[str, np.ndarray]:
    """Returns the state dict with the reference's names, one per tensor (no aliases).

    Raises UserError if `params` are not those of `config`.
    """
    state = mapping.from_tree(params, RULES)
    import_state(state, config)
    return state


def _shape(state: Mapping[str, np.ndarray], name: str) -> tuple[int, ...]:
    if name not in state:
        raise UserError(
            f"The weights hold no {name}, so they are not of a CroCo, DUSt3R, MonST3R or Align3R "
            "network; check the file."
        )
    return tuple(state[name].shape)


def _depth(state: Mapping[str, np.ndarray], stack: str) -> int:
    pattern = re.compile(rf"{stack}\.(\d+)\.")
    return 1 + max((int(m[1]) for name in state if (m := pattern.match(name))), default=-1)


def _heads(hints: Mapping[str, Any], name: str, dim: int) -> int:
    """The number of heads leaves no trace in the shapes; every published model is 64 wide."""
    if name in hints:
        return int(hints[name])
    if dim % 64:
        raise UserError(
            f"The number of heads of a {dim} channel stack cannot be read off its weights; give "
            f"{name} (a constructor argument of the original model)."
        )
    return dim // 64


def _mode(hints: Mapping[str, Any], name: str, default: tuple) -> tuple[Any, float, float]:
    mode, low, high = hints.get(name, default)
    return str(mode), float(low), float(high)


def _refuse_other(hints: Mapping[str, Any], name: str, *known: Any) -> None:
    if name in hints and hints[name] not in known:
        raise UserError(f"{name}={hints[name]!r} is not supported; expected one of {list(known)}.")


def infer_config(
    state: Mapping[str, np.ndarray], hints: Mapping[str, Any] | None = None
) -> NetworkConfig:
    """Returns the configuration that names and shapes of a state dict imply.

    hints: constructor arguments of the original model, for what shapes do not tell: numbers of
    heads (default: heads of 64 channels), img_size (default 512, linear heads 224), pos_embed,
    depth_mode, conf_mode. Arguments that change nothing at inference are not looked at.

    Raises UserError if a hint contradicts the weights or asks for what we do not compute.
    """
    hints = dict(hints or {})
    state = _canonical(state)
    enc_dim, _, patch, _ = _shape(state, "patch_embed.proj.weight")
    dec_dim = _shape(state, "decoder_embed.weight")[0]
    hidden = _shape(state, "enc_blocks.0.mlp.fc1.weight")[0]

    _refuse_other(hints, "output_mode", "pts3d")
    _refuse_other(hints, "norm_im2_in_dec", True)
    rope = re.fullmatch(r"RoPE(\d+(?:\.\d+)?)", str(hints.get("pos_embed", "RoPE100")))
    if rope is None:
        raise UserError(f"pos_embed={hints['pos_embed']!r} is not supported; expected 'RoPE100'.")
    depth_mode, *depth_bounds = _mode(hints, "depth_mode", ("exp", -math.inf, math.inf))
    if [abs(bound) for bound in depth_bounds] != [math.inf] * 2:
        raise UserError(f"depth_mode={hints['depth_mode']!r}: only infinite bounds are supported.")
    conf_mode, conf_min, conf_max = _mode(hints, "conf_mode", ("exp", 1.0, math.inf))

    linear = "downstream_head1.proj.weight" in state
    head: dict[str, Any] = {"head": "linear"}
    channels = 4
    if linear:
        channels = _shape(state, "downstream_head1.proj.weight")[0] // patch**2
    elif any(name.startswith("downstream_head1.dpt.") for name in state):
        dpt = "downstream_head1.dpt."
        head = {
            "head": "dpt",
            "dpt_layer_dims": tuple(
                _shape(state, f"{dpt}act_postprocess.{level}.0.weight")[0] for level in range(4)
            ),
            "dpt_feature_dim": _shape(state, f"{dpt}scratch.layer1_rn.weight")[0],
            "dpt_last_dim": _shape(state, f"{dpt}head.2.weight")[0],
        }
        channels = _shape(state, f"{dpt}head.4.weight")[0]
    else:
        head = {"head": str(hints.get("head_type", "dpt"))}
    if hints.get("head_type", head["head"]) != head["head"]:
        raise UserError(
            f"head_type={hints['head_type']!r}, but the weights are a {head['head']} head."
        )
    if channels == 5:
        head |= {"prior_encoding": "ray", "output": "anchored"}

    size = hints.get("img_size", 224 if linear else 512)
    config = NetworkConfig(
        enc_embed_dim=enc_dim,
        enc_depth=_depth(state, "enc_blocks"),
        enc_num_heads=_heads(hints, "enc_num_heads", enc_dim),
        dec_embed_dim=dec_dim,
        dec_depth=_depth(state, "dec_blocks"),
        dec_num_heads=_heads(hints, "dec_num_heads", dec_dim),
        mlp_ratio=hidden // enc_dim,
        patch_size=patch,
        rope_base=float(rope[1]),
        img_size=int(np.max(size)),
        prior_branch=any(name.startswith("zero_convs.") for name in state),
        depth_mode=depth_mode,
        conf_mode=conf_mode,
        conf_min=conf_min,
        conf_max=conf_max,
        **head,
    )
    for name in ("enc_embed_dim", "enc_depth", "dec_embed_dim", "dec_depth"):
        if name in hints and int(hints[name]) != getattr(config, name):
            raise UserError(
                f"{name}={hints[name]} contradicts the weights, which have {getattr(config, name)}."
            )
    align3r.check_config(config)
    return config
