"""Names of a DINOv2 encoder, original and Hugging Face's, <-> our parameter paths.

Part of the tables of the networks that are built upon it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from align3r_jax.weights.mapping import Rule

_PART = re.compile(r"(.*attention\.attention\.)(query|key|value)(\.weight|\.bias)")
_ORIGINAL_BLOCK = [
    ("norm1", "norm_attention", "norm"),
    ("attn.qkv", "attention/qkv", "linear"),
    ("attn.proj", "attention/out", "linear"),
    ("ls1.gamma", "scale_attention", "array"),
    ("norm2", "norm_mlp", "norm"),
    ("mlp.fc1", "mlp/fc1", "linear"),
    ("mlp.fc2", "mlp/fc2", "linear"),
    ("ls2.gamma", "scale_mlp", "array"),
]
# Hugging Face keeps queries, keys and values apart; `join_attention` gives them this one name.
_JOINT = "attention.attention.(query,key,value)"
_HUB_BLOCK = [
    ("norm1", "norm_attention", "norm"),
    (_JOINT, "attention/qkv", "linear"),
    ("attention.output.dense", "attention/out", "linear"),
    ("layer_scale1.lambda1", "scale_attention", "array"),
    ("norm2", "norm_mlp", "norm"),
    ("mlp.fc1", "mlp/fc1", "linear"),
    ("mlp.fc2", "mlp/fc2", "linear"),
    ("layer_scale2.lambda1", "scale_mlp", "array"),
]


def under(source: str, path: str, rows: list[tuple[str, str, str]]) -> list[Rule]:
    """Rules for the modules of one block: (name, path, kind) below `source` and `path`."""
    return [Rule(f"{source}.{name}", f"{path}/{leaf}", kind) for name, leaf, kind in rows]


def original_encoder(source: str, path: str) -> list[Rule]:
    """Rules for a DINOv2 encoder with its original names."""
    return [
        Rule(f"{source}.cls_token", f"{path}/class_token", "array"),
        Rule(f"{source}.pos_embed", f"{path}/positions", "array"),
        Rule(f"{source}.patch_embed.proj", f"{path}/patch_embed", "conv"),
        *under(f"{source}.blocks.{{b}}", f"{path}/block_{{b:02d}}", _ORIGINAL_BLOCK),
        Rule(f"{source}.norm", f"{path}/norm", "norm"),
    ]


def hub_encoder(source: str, path: str) -> list[Rule]:
    """Rules for a DINOv2 encoder with Hugging Face's names, after `join_attention`."""
    patches = f"{source}.embeddings.patch_embeddings.projection"
    return [
        Rule(f"{source}.embeddings.cls_token", f"{path}/class_token", "array"),
        Rule(f"{source}.embeddings.position_embeddings", f"{path}/positions", "array"),
        Rule(patches, f"{path}/patch_embed", "conv"),
        *under(f"{source}.encoder.layer.{{b}}", f"{path}/block_{{b:02d}}", _HUB_BLOCK),
        Rule(f"{source}.layernorm", f"{path}/norm", "norm"),
    ]


def join_attention(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a state with Hugging Face's names in which queries, keys, values are one array.

    The joint name has `(query,key,value)` for the part; what lacks a part is left out and so
    reported as missing.
    """
    joined: dict[str, np.ndarray] = {}
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, value in state.items():
        match = _PART.fullmatch(name)
        if match is None:
            joined[name] = value
        else:
            parts.setdefault(f"{match[1]}(query,key,value){match[3]}", {})[match[2]] = value
    for name, found in parts.items():
        if len(found) < 3:
            continue
        three = [np.asarray(found[part]) for part in ("query", "key", "value")]
        alike = len({part.shape for part in three}) == 1 and three[0].ndim
        joined[name] = np.concatenate(three) if alike else three[0]
    return joined
