"""The kinds of networks whose weights can be read, and how to tell them apart.

A kind is recognised by the names of its parameters, never by the name of the file. Modules are
imported when first needed: reading pairwise weights imports no other network.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

from align3r_jax.errors import UserError

PAIRWISE = "pairwise"
_PACKAGE = "align3r_jax"
# What names say about files of networks that are not read; the first match speaks.
_UNSUPPORTED = (
    ("aggregator.", "VGGT weights"),
    ("downstream_head1.head_local_features.", "MASt3R weights (its heads also predict features)"),
)
_PAIRWISE_STACK = "enc_blocks."
_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of network.

    title: in words, as sentences name it. flag: what takes its weights. purpose: what it does
    ("pairs", "depth", "flow"). config: "module:class" of its settings, presets: the
    dictionary of known ones in the same module. network, table: modules.

    The network module has `init_params(config, key)` and `abstract_params(config)`. The table has
    `infer_config(state, arguments)`, `import_state(state, config, initial)`,
    `export_state(params, config)` and, except the pairwise one, `recognise(names)`.
    """

    name: str
    title: str
    flag: str
    purpose: str
    config: str
    presets: str
    network: str
    table: str

    @property
    def config_class(self) -> type:
        module, _, name = self.config.partition(":")
        return getattr(_module(module), name)

    @property
    def known_configs(self) -> Mapping[str, Any]:
        presets = getattr(_module(self.config.partition(":")[0]), self.presets)
        own = self.config_class
        return {name: config for name, config in presets.items() if type(config) is own}

    @property
    def network_module(self) -> ModuleType:
        return _module(self.network)

    @property
    def table_module(self) -> ModuleType:
        return _module(self.table)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            PAIRWISE, "a pairwise network (DUSt3R, MonST3R, Align3R, CroCo v2)", "--weights",
            "pairs", "config:NetworkConfig", "NETWORK_PRESETS", "networks.align3r",
            "weights.tables.align3r",
        ),
        Kind(
            "depth_anything", "a depth network, Depth Anything V2",
            "--prior=auto --prior_weights", "depth",
            "networks.depth_anything:DepthAnythingConfig", "DEPTH_ANYTHING_PRESETS",
            "networks.depth_anything", "weights.tables.depth_anything",
        ),
        Kind(
            "depth_pro", "a depth network, Depth Pro", "--prior=depth_pro --prior_weights",
            "depth", "networks.depth_pro:DepthProConfig", "DEPTH_PRO_PRESETS",
            "networks.depth_pro", "weights.tables.depth_pro",
        ),
        Kind(
            "sea_raft", "an optical flow network, SEA-RAFT", "--flow=sea_raft --flow_weights",
            "flow", "networks.raft.config:SeaRaftConfig", "FLOW_PRESETS", "networks.raft.build",
            "weights.tables.sea_raft",
        ),
        Kind(
            "raft", "an optical flow network, RAFT", "--flow=raft --flow_weights", "flow",
            "networks.raft.config:RaftConfig", "FLOW_PRESETS", "networks.raft.build",
            "weights.tables.raft",
        ),
    )
}  # fmt: skip


def get(name: str) -> Kind:
    """Returns the kind called `name`. UserError if this version knows none."""
    if name not in KINDS:
        raise UserError(f"The kind of network '{name}' is unknown; known are {', '.join(KINDS)}.")
    return KINDS[name]


def of_config(config: Any) -> Kind:
    """Returns the kind whose settings `config` are. TypeError if it is of none."""
    for kind in KINDS.values():
        module, _, name = kind.config.partition(":")
        if type(config).__module__ == f"{_PACKAGE}.{module}" and type(config).__name__ == name:
            return kind
    raise TypeError(f"{type(config).__name__} are the settings of no known kind of network.")


def recognise(names: Collection[str], source: str) -> Kind:
    """Returns the kind of network that has parameters of these names (prefix `module.` or not).

    source: names the file in the message. Raises UserError if no network that is read has them.
    """
    plain = [name.removeprefix("module.") for name in names]
    for prefix, description in _UNSUPPORTED:
        if any(name.startswith(prefix) for name in plain):
            raise UserError(
                f"{source} holds {description}, which cannot be used here; the networks that can "
                f"are {', '.join(kind.title for kind in KINDS.values())}."
            )
    if any(name.startswith(_PAIRWISE_STACK) for name in plain):
        return KINDS[PAIRWISE]
    for kind in KINDS.values():
        if kind.name != PAIRWISE and kind.table_module.recognise(names):
            return kind
    more = f" and {len(plain) - _SHOWN} more" if len(plain) > _SHOWN else ""
    raise UserError(
        f"{source} holds no weights of a network that can be used here "
        f"({', '.join(kind.title for kind in KINDS.values())}); its names are "
        f"{', '.join(plain[:_SHOWN])}{more}."
    )


def check_wanted(kind: Kind, wanted: str | Sequence[str] | None, source: str) -> None:
    """Raises UserError if weights of `kind` were given where `wanted` ones are needed.

    wanted: a name or several of KINDS; None accepts all.
    """
    if wanted is None:
        return
    names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    if kind.name not in names:
        needed = " or ".join(get(name).title for name in names)
        raise UserError(
            f"{source} holds the weights of {kind.title}, but here those of {needed} are needed. "
            f"This file belongs to {kind.flag}=FILE."
        )


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{_PACKAGE}.{name}")
