"""Names of Depth Pro checkpoints <-> our parameter paths: Apple's own file, and the hub's.

| naming | file |
|---|---|
| original | `depth_pro.pt`, a bare state dict, float16 |
| hub | `model.safetensors` of `apple/DepthPro-hf`, with `config.json` |
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from align3r_jax.errors import UserError
from align3r_jax.networks import depth_pro
from align3r_jax.networks.depth_pro import DepthProConfig
from align3r_jax.weights import mapping
from align3r_jax.weights.mapping import Rule
from align3r_jax.weights.tables import dinov2

_ENCODERS = (
    ("encoder.patch_encoder", "depth_pro.encoder.patch_encoder.model", "patch_encoder"),
    ("encoder.image_encoder", "depth_pro.encoder.image_encoder.model", "image_encoder"),
    ("fov.encoder.0", "fov_model.fov_encoder.model", "fov/encoder"),
)
_NECK = "depth_pro.neck.feature_upsample"
# (original, hub, path) of the upsamplings: a projection, then doublings, this many.
_UPSAMPLES = (
    ("upsample_latent0", f"{_NECK}.intermediate.1", 3),
    ("upsample_latent1", f"{_NECK}.intermediate.0", 2),
    ("upsample0", f"{_NECK}.scaled_images.2", 1),
    ("upsample1", f"{_NECK}.scaled_images.1", 1),
    ("upsample2", f"{_NECK}.scaled_images.0", 1),
)
_FUSIONS = ("final", "intermediate.3", "intermediate.2", "intermediate.1", "intermediate.0")
# (original, hub, path, kind of layer); the hub counts from the coarsest level.
_LAYERS: list[tuple[str, str, str, str]] = [
    *(
        (f"encoder.{name}.0", f"{hub}.layers.0", f"{name}/project", "conv")
        for name, hub, _ in _UPSAMPLES
    ),
    *(
        (
            f"encoder.{name}.{step}",
            f"{hub}.layers.{step}",
            f"{name}/enlarge_{step}",
            "conv_transpose",
        )
        for name, hub, steps in _UPSAMPLES
        for step in range(1, steps + 1)
    ),
    (
        "encoder.upsample_lowres",
        f"{_NECK}.image_block.layers.0",
        "upsample_lowres",
        "conv_transpose",
    ),
    ("encoder.fuse_lowres", "depth_pro.neck.fuse_image_with_low_res", "fuse_lowres", "conv"),
    *(
        (
            f"decoder.convs.{level}",
            f"depth_pro.neck.feature_projection.projections.{4 - level}",
            f"decoder/conv_{level}",
            "conv",
        )
        for level in range(1, 5)
    ),
    *(
        (
            f"decoder.fusions.{level}.{original}",
            f"fusion_stage.{stage}.{hub}",
            f"decoder/fusion_{level}/{path}",
            kind,
        )
        for level, stage in enumerate(_FUSIONS)
        for original, hub, path, kind in (
            ("resnet1.residual.1", "residual_layer1.convolution1", "skip_unit/conv1", "conv"),
            ("resnet1.residual.3", "residual_layer1.convolution2", "skip_unit/conv2", "conv"),
            ("resnet2.residual.1", "residual_layer2.convolution1", "unit/conv1", "conv"),
            ("resnet2.residual.3", "residual_layer2.convolution2", "unit/conv2", "conv"),
            ("deconv", "deconv", "enlarge", "conv_transpose"),
            ("out_conv", "projection", "out", "conv"),
        )
    ),
    ("head.0", "head.layers.0", "head/conv_0", "conv"),
    ("head.1", "head.layers.1", "head/enlarge", "conv_transpose"),
    ("head.2", "head.layers.2", "head/conv_1", "conv"),
    ("head.4", "head.layers.4", "head/out", "conv"),
    ("fov.encoder.1", "fov_model.fov_encoder.neck", "fov/project", "linear"),
    ("fov.downsample.0", "fov_model.conv", "fov/downsample", "conv"),
    ("fov.head.0", "fov_model.head.layers.0", "fov/head_0", "conv"),
    ("fov.head.2", "fov_model.head.layers.2", "fov/head_1", "conv"),
    ("fov.head.4", "fov_model.head.layers.4", "fov/head_2", "conv"),
]
ORIGINAL_RULES: list[Rule] = [
    *(rule for name, _, path in _ENCODERS for rule in dinov2.original_encoder(name, path)),
    *(Rule(original, path, kind) for original, _, path, kind in _LAYERS),
]
HUB_RULES: list[Rule] = [
    *(rule for _, hub, path in _ENCODERS for rule in dinov2.hub_encoder(hub, path)),
    *(Rule(hub, path, kind) for _, hub, path, kind in _LAYERS),
]
_ORIGINAL = ("encoder.", "decoder.", "fov.")
_HUB = ("depth_pro.", "fusion_stage.", "fov_model.", "head.layers.")
_FIELD_OF_VIEW = ("fov.", "fov_model.")
_MARKS = ("encoder.patch_encoder.", "depth_pro.encoder.patch_encoder.")
# The deepest fusion has nothing to add: this unit of it is never used, and files may lack it.
_UNUSED = re.compile(r"decoder/fusion_4/skip_unit/.*")


def recognise(names: Collection[str]) -> bool:
    """Whether parameters of these names, of either naming, are those of Depth Pro."""
    return any(name.removeprefix("module.").startswith(_MARKS) for name in names)


def _canonical(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[Rule]]:
    """The used part of the state, and the rules of its naming. UserError if it mixes two."""
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    hub = [name for name in state if name.startswith(_HUB)]
    original = [name for name in state if name.startswith(_ORIGINAL) or name.startswith("head.")]
    original = [name for name in original if not name.startswith(_HUB)]
    if hub and original:
        raise UserError(
            f"The weights mix two namings: {original[0]} (original, {len(original)} names) and "
            f"{hub[0]} (Hugging Face, {len(hub)} names). Give a file with one of them."
        )
    # Some conversions keep the token of DINOv2's pre-training.
    state = {name: value for name, value in state.items() if not name.endswith(".mask_token")}
    return (dinov2.join_attention(state), HUB_RULES) if hub else (state, ORIGINAL_RULES)


def import_state(
    state: Mapping[str, np.ndarray],
    config: DepthProConfig,
    initial: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the float32 parameter tree of a state dict with original or Hugging Face's names.

    Accepts the prefix `module.`, mask tokens (not used), and files without the unit that the
    deepest fusion does not use (it becomes 0). initial: parameters that provide the field of view
    if the state has nothing of it. Raises UserError naming everything unknown, missing or
    mis-shaped.
    """
    state, rules = _canonical(state)
    expected = depth_pro.abstract_params(config)
    if initial is None and not any(name.startswith(_FIELD_OF_VIEW) for name in state):
        raise UserError(
            "These weights of Depth Pro have no part that estimates the field of view, so depth "
            "would have no scale (transformers' use_fov_model=False). Give a complete file."
        )
    idle = {
        path: np.zeros(leaf.shape, leaf.dtype)
        for path, leaf in traverse_util.flatten_dict(expected, sep="/").items()
        if _UNUSED.fullmatch(path)
    }
    zeros = mapping.from_tree(traverse_util.unflatten_dict(idle, sep="/"), rules)
    return mapping.to_tree({**zeros, **state}, rules, expected, initial=initial, optional=("fov",))


def export_state(params: Mapping[str, Any], config: DepthProConfig) -> dict[str, np.ndarray]:
    """Returns the state dict with the original names.

    Raises UserError if `params` are not those of `config`.
    """
    state = mapping.from_tree(params, ORIGINAL_RULES)
    import_state(state, config)
    return state


def infer_config(
    state: Mapping[str, np.ndarray], arguments: Mapping[str, Any] | None = None
) -> DepthProConfig:
    """Returns the configuration that names and shapes of a state dict imply.

    arguments: for what shapes do not tell, under our names (num_heads, latent_blocks) or as the
    hub's `config.json`; without them heads are 64 channels wide and the latent blocks those of
    the released model. Raises UserError for arguments that ask for another network, and shapes
    that are not of Depth Pro.
    """
    arguments = _own_arguments(arguments or {})
    state, rules = _canonical(state)

    def shape(path: str, rank: int) -> tuple[int, ...]:
        name = mapping.source_name(path, rules)
        if name not in state or np.ndim(state[name]) != rank:
            raise UserError(
                f"The weights hold no usable {name}, so they are not of Depth Pro; check the file."
            )
        return np.shape(state[name])

    embed_dim, _, patch, _ = shape("patch_encoder/patch_embed/kernel", 4)
    tokens = shape("patch_encoder/positions", 3)[1] - 1
    hidden = shape("patch_encoder/block_00/mlp/fc1/kernel", 2)[0]
    depth = 1
    while mapping.source_name(f"patch_encoder/block_{depth:02d}/norm_mlp/scale", rules) in state:
        depth += 1
    if "num_heads" not in arguments and embed_dim % 64:
        raise UserError(
            f"The number of heads of a {embed_dim} channel encoder cannot be read off its weights; "
            "give num_heads."
        )
    released = DepthProConfig()
    if "latent_blocks" not in arguments and depth != released.depth:
        raise UserError(
            f"Which of the {depth} blocks are decoded cannot be read off the weights; give "
            "latent_blocks (two numbers from 0), or the hub's config.json beside the file."
        )
    conv1, conv2, conv3, conv4 = (shape(f"decoder/conv_{k}/kernel", 4) for k in range(1, 5))
    config = DepthProConfig(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=int(arguments.get("num_heads", embed_dim // 64)),
        mlp_ratio=hidden // embed_dim,
        patch_size=patch,
        window=math.isqrt(tokens) * patch,
        latent_blocks=arguments.get("latent_blocks", released.latent_blocks),
        dims=(conv1[1], conv2[1], conv3[1], conv4[1]),
        decoder_dim=conv4[0],
        last_dim=shape("head/conv_1/kernel", 4)[0],
    )
    padding = arguments.get("merge_padding", config.merge_padding)
    if padding != config.merge_padding:
        raise UserError(
            f"merge_padding={padding}, but windows of {config.grid} tokens only meet with "
            f"{config.merge_padding}."
        )
    return config


# Settings of the hub's configuration that must be these, if given.
_HUB_FIXED: dict[str, Any] = {
    "use_batch_norm_in_fusion_residual": False,
    "use_bias_in_fusion_residual": True,
    "scaled_images_ratios": [0.25, 0.5, 1],
    "scaled_images_overlap_ratios": [0.0, 0.5, 0.25],
    "num_fov_head_layers": 2,
}
_HUB_ENCODERS = ("patch_model_config", "image_model_config", "fov_model_config")


def _own_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Our names for the settings of the hub's `config.json`; ours stay."""
    for name, value in _HUB_FIXED.items():
        given = arguments.get(name)
        if given is not None and _plain(given) != _plain(value):
            raise UserError(f"{name}={given!r} is not supported; expected {value!r}.")
    heads = {
        int(encoder["num_attention_heads"])
        for name in _HUB_ENCODERS
        if isinstance(encoder := arguments.get(name), Mapping) and "num_attention_heads" in encoder
    }
    if len(heads) > 1:
        raise UserError(
            f"The encoders have {sorted(heads)} attention heads; expected one number for all three."
        )
    own: dict[str, Any] = {"num_heads": heads.pop()} if heads else {}
    if "intermediate_hook_ids" in arguments:  # the later one first
        own["latent_blocks"] = arguments["intermediate_hook_ids"][::-1]
    if "merge_padding_value" in arguments:
        own["merge_padding"] = int(arguments["merge_padding_value"])
    names = ("num_heads", "latent_blocks", "merge_padding")
    own |= {name: arguments[name] for name in names if name in arguments}
    if "latent_blocks" in own:
        own["latent_blocks"] = tuple(int(block) for block in own["latent_blocks"])
    return own


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
