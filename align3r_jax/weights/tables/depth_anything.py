"""Names of Depth Anything V2 checkpoints, original and Hugging Face's, <-> our parameter paths."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from align3r_jax.errors import UserError
from align3r_jax.networks import depth_anything
from align3r_jax.networks.depth_anything import DepthAnythingConfig
from align3r_jax.weights import mapping
from align3r_jax.weights.mapping import Rule
from align3r_jax.weights.tables import dinov2

_SCRATCH = "depth_head.scratch"
ORIGINAL_RULES: list[Rule] = [
    Rule("pretrained.mask_token", "mask_token", "array"),
    *dinov2.original_encoder("pretrained", "encoder"),
    *(Rule(f"depth_head.projects.{k}", f"head/project_{k + 1}", "conv") for k in range(4)),
    Rule("depth_head.resize_layers.0", "head/resize_1", "conv_transpose"),
    Rule("depth_head.resize_layers.1", "head/resize_2", "conv_transpose"),
    Rule("depth_head.resize_layers.3", "head/resize_4", "conv"),
    Rule(f"{_SCRATCH}.layer{{k}}_rn", "head/layer_{k}", "conv"),
    Rule(f"{_SCRATCH}.refinenet{{k}}.out_conv", "head/fusion_{k}/out", "conv"),
    *(
        Rule(
            f"{_SCRATCH}.refinenet{{k}}.resConfUnit{unit}.conv{{c}}",
            f"head/fusion_{{k}}/{ours}/conv{{c}}",
            "conv",
        )
        for unit, ours in ((1, "skip_unit"), (2, "unit"))
    ),
    Rule(f"{_SCRATCH}.output_conv1", "head/output_1", "conv"),
    Rule(f"{_SCRATCH}.output_conv2.0", "head/output_2", "conv"),
    Rule(f"{_SCRATCH}.output_conv2.2", "head/output_3", "conv"),
]

_STAGE, _FUSION = "neck.reassemble_stage.layers", "neck.fusion_stage.layers"
HUB_RULES: list[Rule] = [
    Rule("backbone.embeddings.mask_token", "mask_token", "array"),
    *dinov2.hub_encoder("backbone", "encoder"),
    *(Rule(f"{_STAGE}.{k}.projection", f"head/project_{k + 1}", "conv") for k in range(4)),
    Rule(f"{_STAGE}.0.resize", "head/resize_1", "conv_transpose"),
    Rule(f"{_STAGE}.1.resize", "head/resize_2", "conv_transpose"),
    Rule(f"{_STAGE}.3.resize", "head/resize_4", "conv"),
    *(Rule(f"neck.convs.{k}", f"head/layer_{k + 1}", "conv") for k in range(4)),
    *(
        rule
        for k in range(4)  # their deepest fusion comes first
        for rule in dinov2.under(
            f"{_FUSION}.{k}",
            f"head/fusion_{4 - k}",
            [
                ("projection", "out", "conv"),
                ("residual_layer1.convolution{c}", "skip_unit/conv{c}", "conv"),
                ("residual_layer2.convolution{c}", "unit/conv{c}", "conv"),
            ],
        )
    ),
    Rule("head.conv1", "head/output_1", "conv"),
    Rule("head.conv2", "head/output_2", "conv"),
    Rule("head.conv3", "head/output_3", "conv"),
]

_UNUSED = re.compile(r"mask_token|head/fusion_4/skip_unit/.*")  # parameters that nothing reads
_ORIGINAL, _HUB = ("pretrained.", "depth_head."), ("backbone.", "neck.", "head.")
# Blocks read by the head, by number of blocks: Small and Base, Large, Giant.
_HOOKS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}


def recognise(names: Collection[str]) -> bool:
    """Whether these are names of a Depth Anything network, in either naming."""
    plain = [name.removeprefix("module.") for name in names]

    def has(*prefixes: str) -> bool:
        return all(any(name.startswith(prefix) for name in plain) for prefix in prefixes)

    return has("pretrained.", "depth_head.") or has("backbone.", "neck.reassemble_stage.")


def arguments_from_name(file_name: str) -> dict[str, Any]:
    """What the name of an official file tells and its weights do not: `max_depth`, or nothing.

    `depth_anything_v2_metric_hypersim_vitl.pth` is indoor, `..._vkitti_...` outdoor; Hugging
    Face's folders are called Metric-Indoor and Metric-Outdoor (and have a config.json).
    """
    name = file_name.lower()
    if "metric" in name:
        for words, max_depth in (
            (("hypersim", "indoor"), depth_anything.INDOOR_DEPTH),
            (("vkitti", "outdoor"), depth_anything.OUTDOOR_DEPTH),
        ):
            if any(word in name for word in words):
                return {"max_depth": max_depth}
    return {}


def _canonical(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[Rule]]:
    """The state without `module.`, and the rules of its naming. UserError if it mixes two."""
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    original = [name for name in state if name.startswith(_ORIGINAL)]
    hub = [name for name in state if name.startswith(_HUB)]
    if original and hub:
        raise UserError(
            f"The weights mix two namings: {original[0]} (original, {len(original)} names) and "
            f"{hub[0]} (Hugging Face, {len(hub)} names). Give a file with one of them."
        )
    return (dinov2.join_attention(state), HUB_RULES) if hub else (dict(state), ORIGINAL_RULES)


def import_state(
    state: Mapping[str, np.ndarray],
    config: DepthAnythingConfig,
    initial: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the float32 parameter tree of a state dict with original or Hugging Face's names.

    Accepts the prefix `module.`; parameters that nothing reads (mask token, first unit of the
    deepest fusion) may be missing and are then 0. initial: as in other tables; every file of this
    network is complete, so it is not used. Raises UserError naming everything unknown, missing or
    mis-shaped.
    """
    del initial
    state, rules = _canonical(state)
    expected = depth_anything.abstract_params(config)
    idle = {
        path: np.zeros(leaf.shape, leaf.dtype)
        for path, leaf in traverse_util.flatten_dict(expected, sep="/").items()
        if _UNUSED.fullmatch(path)
    }
    zeros = mapping.from_tree(traverse_util.unflatten_dict(idle, sep="/"), rules)
    return mapping.to_tree({**zeros, **state}, rules, expected)


def export_state(params: Mapping[str, Any], config: DepthAnythingConfig) -> dict[str, np.ndarray]:
    """Returns the state dict with the original names.

    Raises UserError if `params` are not those of `config`.
    """
    state = mapping.from_tree(params, ORIGINAL_RULES)
    import_state(state, config)
    return state


def _heads(hints: Mapping[str, Any], dim: int) -> int:
    """Leaves no trace in the shapes; every published model is 64 wide."""
    heads = hints.get("num_heads", dim // 64 if dim % 64 == 0 else None)
    if heads is None:
        raise UserError(
            f"The number of heads of a {dim} channel encoder cannot be read off its weights; keep "
            "the config.json beside the file, or give num_heads."
        )
    return int(heads)


def _hooks(hints: Mapping[str, Any], depth: int) -> tuple[int, ...]:
    hooks = hints.get("hooks", _HOOKS.get(depth))
    if hooks is None:
        raise UserError(
            f"Which of the {depth} blocks the head reads cannot be read off the weights; keep the "
            "config.json beside the file, or give hooks."
        )
    return tuple(int(hook) for hook in hooks)


def _plain_hints(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Our names for the content of Hugging Face's config.json; other arguments as they are."""
    hints = dict(arguments)
    backbone = hints.get("backbone_config")
    if not isinstance(backbone, Mapping):
        return hints
    if backbone.get("use_swiglu_ffn"):
        raise UserError("Encoders with SwiGLU (the giant one) are not supported.")
    if "num_attention_heads" in backbone:
        hints["num_heads"] = backbone["num_attention_heads"]
    stages = backbone.get("out_indices")
    if stages is None and backbone.get("out_features"):
        stages = [str(name).removeprefix("stage") for name in backbone["out_features"]]
    if stages is not None:
        hints["hooks"] = tuple(int(stage) - 1 for stage in stages)  # theirs count the input as 0
    if hints.get("depth_estimation_type", "relative") != "metric":
        hints.pop("max_depth", None)  # written into the files of relative models too
    return hints


def infer_config(
    state: Mapping[str, np.ndarray], arguments: Mapping[str, Any] | None = None
) -> DepthAnythingConfig:
    """Returns the configuration that names and shapes of a state dict imply.

    arguments: for what shapes do not tell, the content of Hugging Face's config.json, or any of
    num_heads (default: heads of 64 channels), hooks (default: those of the released model of that
    many blocks), max_depth (default: relative), pos_embed_mode. A metric model has the names and
    shapes of a relative one: without arguments it is taken for relative.

    Raises UserError if the weights are of another network or the arguments are unusable.
    """
    hints = _plain_hints(arguments or {})
    state, rules = _canonical(state)

    def shape(path: str, rank: int) -> tuple[int, ...]:
        name = mapping.source_name(path, rules)
        if name not in state or np.ndim(state[name]) != rank:
            raise UserError(
                f"The weights hold no usable {name}, so they are not of a Depth Anything network; "
                "check the file."
            )
        return tuple(state[name].shape)

    dim, _, patch, _ = shape("encoder/patch_embed/kernel", 4)
    number = re.compile(r"(?:pretrained\.blocks|backbone\.encoder\.layer)\.(\d+)\.")
    depth = 1 + max((int(m[1]) for name in state if (m := number.match(name))), default=-1)
    hidden = shape("encoder/block_00/mlp/fc1/kernel", 2)[0]
    side = math.isqrt(shape("encoder/positions", 3)[1] - 1)
    max_depth = hints.get("max_depth")
    widths: dict[str, Any] = {
        "hooks": _hooks(hints, depth),
        "layer_dims": tuple(shape(f"head/project_{k}/kernel", 4)[0] for k in (1, 2, 3, 4)),
    }
    return DepthAnythingConfig(
        embed_dim=dim,
        depth=depth,
        num_heads=_heads(hints, dim),
        mlp_ratio=hidden // dim,
        patch_size=patch,
        grid=side,
        pos_embed_mode=hints.get("pos_embed_mode", "offset"),
        feature_dim=shape("head/layer_1/kernel", 4)[0],
        last_dim=shape("head/output_2/kernel", 4)[0],
        max_depth=None if max_depth is None else float(max_depth),
        **widths,
    )
