"""Names of RAFT checkpoints <-> our parameter paths, and what SEA-RAFT's share with them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.networks.raft import build
from align3r_jax.networks.raft.config import RaftConfig
from align3r_jax.weights import mapping
from align3r_jax.weights.mapping import Rule

State = Mapping[str, np.ndarray]

_COUNTER = "num_batches_tracked"  # of batch norms in training; says nothing about the weights
_WINDOW = 81  # samples of a look-up on one level, radius 4


def encoder_rules(source: str, path: str, norm: str, batch_norm: bool, out: str) -> list[Rule]:
    """The rules of one residual encoder, whose norms are called `norm`, its last layer `out`."""
    block, ours = f"{source}.layer{{l}}.{{b}}.", f"{path}/layer{{l}}_{{b}}/"
    rules = [
        Rule(f"{source}.conv1", f"{path}/stem", "conv"),
        Rule(f"{block}conv{{j}}", f"{ours}conv{{j}}", "conv"),
        Rule(f"{block}downsample.0", f"{ours}shortcut", "conv"),
        Rule(f"{source}.{out}", f"{path}/out", "conv"),
    ]
    if batch_norm:
        rules += [
            Rule(f"{source}.{norm}1", f"{path}/stem_norm", "batch_norm"),
            Rule(f"{block}downsample.1", f"{ours}shortcut_norm", "batch_norm"),
            Rule(f"{block}{norm}{{j}}", f"{ours}norm{{j}}", "batch_norm"),
        ]
    return rules


MOTION_RULES: list[Rule] = [
    Rule("update_block.encoder.convc{j}", "motion_encoder/corr{j}", "conv"),
    Rule("update_block.encoder.convf{j}", "motion_encoder/flow{j}", "conv"),
    Rule("update_block.encoder.conv", "motion_encoder/out", "conv"),
]
RULES: list[Rule] = [
    *encoder_rules("fnet", "frame_encoder", "norm", False, "conv2"),
    *encoder_rules("cnet", "context_encoder", "norm", True, "conv2"),
    *MOTION_RULES,
    *(Rule(f"update_block.gru.conv{g}{{j}}", f"gru/{g}{{j}}", "conv") for g in "zrq"),
    Rule("update_block.flow_head.conv{j}", "flow_head/conv{j}", "conv"),
    Rule("update_block.mask.0", "mask_head/conv1", "conv"),
    Rule("update_block.mask.2", "mask_head/conv2", "conv"),
]


def strip_prefix(names: Collection[str]) -> list[str]:
    """The names without `module.`, which files of parallel training have on all of them."""
    if names and all(name.startswith("module.") for name in names):
        return [name.removeprefix("module.") for name in names]
    return list(names)


def recognise(names: Collection[str]) -> bool:
    """Whether a file with these parameter names is a RAFT (large, or small, which is refused)."""
    known = set(strip_prefix(names))
    gru = any(name.startswith("update_block.gru.") for name in known)
    return "fnet.conv1.weight" in known and gru and "init_conv.weight" not in known


def infer_config(state: State, arguments: Mapping[str, Any] | None = None) -> RaftConfig:
    """Returns the configuration that names and shapes imply; RAFT has no `arguments`.

    Raises UserError for RAFT small and for names that RAFT does not have.
    """
    del arguments
    state = canonical(state, "norm")
    if "update_block.gru.convz.weight" in state:
        raise UserError(
            "These are the weights of RAFT small, which is not supported; take raft-things.pth or "
            "raft-sintel.pth of the same archive."
        )
    if not recognise(state):
        raise UserError("These are no weights of RAFT: its update block is missing in the file.")
    gate = shape(state, "update_block.gru.convz1.weight")
    motion = motion_dims(state)
    return RaftConfig(
        **encoder_settings(state, "conv2", motion),
        hidden_dim=gate[0],
        context_dim=gate[1] - gate[0] - motion[-1],
        head_dim=shape(state, "update_block.flow_head.conv1.weight")[0],
    )


def import_state(
    state: State, config: RaftConfig, initial: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the float32 parameter tree of a state dict with the official names.

    Accepts the prefix `module.` and, for norms with two names (`norm3`, `downsample.1`), either
    or both. initial: nothing may be missing, so it is not looked at.
    Raises UserError naming everything unknown, missing or mis-shaped.
    """
    del initial
    return mapping.to_tree(canonical(state, "norm"), RULES, build.abstract_params(config))


def export_state(params: Mapping[str, Any], config: RaftConfig) -> dict[str, np.ndarray]:
    """Returns the state dict of the official code: both names of shared norms, counters at 0.

    Raises UserError if `params` are not those of `config`.
    """
    state = mapping.from_tree(params, RULES)
    import_state(state, config)
    return with_duplicates(state, "norm")


# ---- shared with SEA-RAFT


def canonical(state: State, norm: str) -> dict[str, np.ndarray]:
    """The state under one name per tensor, without counters.

    norm: what the file calls its norms; `<norm>3` of a block is `downsample.1` of it. Raises
    UserError if the two differ.
    """
    found = dict(zip(strip_prefix(state), state.values(), strict=True))
    found = {name: value for name, value in found.items() if not name.endswith(_COUNTER)}
    tied = re.compile(rf"(.*\.layer\d+\.\d+\.){norm}3(\.\w+)")
    kept = {name: value for name, value in found.items() if not tied.fullmatch(name)}
    for name in found:
        if not (match := tied.fullmatch(name)):
            continue
        twin = f"{match[1]}downsample.1{match[2]}"
        if twin in kept and not np.array_equal(kept[twin], found[name]):
            raise UserError(
                f"{name} and {twin} must be the same tensor, but their values differ; the file is "
                "damaged or was edited. Remove one of the two."
            )
        kept[twin] = found[name]
    return kept


def with_duplicates(state: State, norm: str) -> dict[str, np.ndarray]:
    """The state with the second names of shared norms and the counters, as PyTorch wants it."""
    full = dict(state)
    for name, value in state.items():
        if ".downsample.1." in name:
            full[name.replace("downsample.1", f"{norm}3")] = value
    for name in [name for name in full if name.endswith(".running_var")]:
        full[name.replace("running_var", _COUNTER)] = np.zeros((), np.int64)
    return full


def shape(state: State, name: str) -> tuple[int, ...]:
    """The shape of a convolution's weight. Raises UserError if it is missing or none."""
    if name not in state or np.ndim(state[name]) != 4:
        found = "is missing" if name not in state else f"has the shape {np.shape(state[name])}"
        raise UserError(
            f"These weights look like a flow network, but {name} {found}; expected the weights of "
            "a convolution. Download the file again."
        )
    return tuple(np.shape(state[name]))


def motion_dims(state: State) -> tuple[int, int, int, int, int]:
    """The widths of the motion encoder."""
    corr1, corr2, flow1, flow2, out = (
        shape(state, f"update_block.encoder.{name}.weight")[0]
        for name in ("convc1", "convc2", "convf1", "convf2", "conv")
    )
    return corr1, corr2, flow1, flow2, out + 2  # the flow itself is appended


def encoder_settings(state: State, out: str, motion: tuple[int, ...]) -> dict[str, Any]:
    """Settings that both networks read off the shapes in the same way."""
    stages = range(1, 4)
    indices = [
        {int(m[1]) for name in state if (m := re.match(rf"fnet\.layer{stage}\.(\d+)\.", name))}
        for stage in stages
    ]
    samples = shape(state, "update_block.encoder.convc1.weight")[1]
    if samples % _WINDOW:
        raise UserError(
            f"update_block.encoder.convc1.weight reads {samples} correlations; expected a multiple "
            f"of {_WINDOW} (look-ups of radius 4). Other radii are not supported."
        )
    return {
        "widths": tuple(shape(state, f"fnet.layer{s}.0.conv1.weight")[0] for s in stages),
        "blocks": tuple(1 + max(found, default=0) for found in indices),
        "feature_dim": shape(state, f"fnet.{out}.weight")[0],
        "motion_dims": motion,
        "corr_levels": samples // _WINDOW,
    }
