"""Names of SEA-RAFT checkpoints (S, M, L) <-> our parameter paths."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.networks.raft import build
from align3r_jax.networks.raft.config import SeaRaftConfig
from align3r_jax.weights import mapping
from align3r_jax.weights.mapping import Rule
from align3r_jax.weights.tables import raft

_REFINE = [
    ("dwconv", "depthwise", "conv"),  # (C, 1, 7, 7) -> (7, 7, 1, C), like any convolution
    ("norm", "norm", "norm"),
    ("pwconv1", "expand", "linear"),
    ("pwconv2", "shrink", "linear"),
    ("gamma", "gamma", "array"),
    ("final", "out", "conv"),
]
RULES: list[Rule] = [
    *raft.encoder_rules("fnet", "frame_encoder", "bn", True, "final_conv"),
    *raft.encoder_rules("cnet", "context_encoder", "bn", True, "final_conv"),
    Rule("init_conv", "start", "conv"),
    *raft.MOTION_RULES,
    *(
        Rule(f"update_block.refine.{{b}}.{name}", f"refine_{{b}}/{leaf}", kind)
        for name, leaf, kind in _REFINE
    ),
    Rule("flow_head.0", "flow_head/conv1", "conv"),
    Rule("flow_head.2", "flow_head/conv2", "conv"),
    Rule("upsample_weight.0", "mask_head/conv1", "conv"),
    Rule("upsample_weight.2", "mask_head/conv2", "conv"),
]


def recognise(names: Collection[str]) -> bool:
    """Whether a file with these parameter names is a SEA-RAFT."""
    return {"fnet.conv1.weight", "init_conv.weight"} <= set(raft.strip_prefix(names))


def infer_config(state: raft.State, arguments: Mapping[str, Any] | None = None) -> SeaRaftConfig:
    """Returns the configuration that names and shapes imply: M (also L) or S, by its blocks.

    arguments: `iters` of the original configuration, if there is one (L is M with 12). Raises
    UserError for names that SEA-RAFT does not have.
    """
    state = raft.canonical(state, "bn")
    if not recognise(state):
        raise UserError("These are no weights of SEA-RAFT: init_conv is missing in the file.")
    hidden = raft.shape(state, "flow_head.0.weight")[1]
    refine = {
        int(m[1]) for name in state if (m := re.match(r"update_block\.refine\.(\d+)\.", name))
    }
    inner = np.shape(state.get("update_block.refine.0.pwconv1.weight", ()))
    if len(inner) != 2 or inner[0] % hidden:
        raise UserError(
            "These weights look like SEA-RAFT, but update_block.refine.0.pwconv1.weight is missing "
            f"or has an odd shape {inner}; download the file again."
        )
    return SeaRaftConfig(
        **raft.encoder_settings(state, "final_conv", raft.motion_dims(state)),
        hidden_dim=hidden,
        context_dim=raft.shape(state, "init_conv.weight")[0] - hidden,
        head_dim=raft.shape(state, "flow_head.0.weight")[0],
        refine_blocks=1 + max(refine),
        refine_expansion=inner[0] // hidden,
        iterations=int((arguments or {}).get("iters", SeaRaftConfig.iterations)),
    )


def import_state(
    state: raft.State, config: SeaRaftConfig, initial: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the float32 parameter tree of a state dict with the official names.

    Accepts the prefix `module.` and, for norms with two names (`bn3`, `downsample.1`), either or
    both. initial: nothing may be missing, so it is not looked at.
    Raises UserError naming everything unknown, missing or mis-shaped.
    """
    del initial
    return mapping.to_tree(raft.canonical(state, "bn"), RULES, build.abstract_params(config))


def export_state(params: Mapping[str, Any], config: SeaRaftConfig) -> dict[str, np.ndarray]:
    """Returns the state dict of the official code: both names of shared norms, counters at 0.

    Raises UserError if `params` are not those of `config`.
    """
    state = mapping.from_tree(params, RULES)
    import_state(state, config)
    return raft.with_duplicates(state, "bn")
