"""Starting a training from the weights of another network: what fits is taken, the rest is fresh.

| from | to | taken | fresh |
|---|---|---|---|
| DUSt3R, MonST3R | Align3R | all | prior branch (adds nothing at first) |
| Align3R | DUSt3R, MonST3R | all but its prior branch | - |
| CroCo v2, `croco_task` | any | encoder, decoder for both views | heads, prior branch |
| DUSt3R, MonST3R | depth as a fourth channel | all; the channel adds nothing at first | - |
| 224, linear heads | 512, DPT heads | all but the heads | heads |

Encoder and decoders must fit exactly. Heads and prior branch are taken whole or not at all: their
weights mean nothing for another output or another encoding of the prior.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from align3r_jax.config import NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.networks import align3r, croco_pretrain, initial
from align3r_jax.weights import kinds, store, training_folder
from align3r_jax.weights import settings as settings_lib

# Settings that must agree for encoder and decoders to be of use.
_STACKS = (
    "enc_embed_dim", "enc_depth", "enc_num_heads", "dec_embed_dim", "dec_depth", "dec_num_heads",
    "mlp_ratio", "patch_size", "rope_base",
)  # fmt: skip
# Groups (first parts of a path) that may be fresh, and the settings they depend on.
_HEAD = ("head", "output", "depth_mode", "conf_mode", "conf_min", "conf_max")
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "prior_branch": ("prior_encoding",),
    "head1": _HEAD,
    "head2": _HEAD,
    "mask_token": (),
}
_PATCHES = "encoder/patch_embed/kernel"
_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Report:
    """Where the parameters of a start came from, as sorted paths.

    taken: from `source`. copied: decoder 2, from decoder 1 of a source with one decoder. fresh:
    drawn. unused: of the source, by its own paths.
    """

    source: str
    taken: tuple[str, ...]
    copied: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def summary(self) -> str:
        """Returns one line per kind of origin: how many parameters, of which parts."""
        lines = [f"Start from {self.source}:"]
        for title, paths in (
            ("taken", self.taken),
            ("decoder 2, copied from decoder 1", self.copied),
            ("fresh", self.fresh),
            ("not used", self.unused),
        ):
            if paths:
                parts = sorted({path.split("/")[0] for path in paths})
                lines.append(f"  {title}: {len(paths)} arrays ({', '.join(parts)})")
        return "\n".join(lines)


def from_weights(
    config: NetworkConfig,
    source: str | Path,
    key: jax.Array,
    say: Callable[[str], None] = print,
) -> tuple[dict[str, Any], Report]:
    """Returns (parameters as NumPy arrays, where they came from), and says a short summary.

    source: what `weights.store.load` reads, files of CroCo v2 and work folders of masked
    pre-training included. key: of what is fresh.
    Raises UserError if there are no such weights or they do not fit.
    """
    values, report = from_params(config, *_read(Path(source)), key, Path(source).name)
    if jax.process_index() == 0:
        say(report.summary())
    return values, report


def _read(source: Path) -> tuple[Mapping[str, Any], NetworkConfig]:
    """Returns the parameters that really are in `source`, and their configuration."""
    checkpoint = training_folder.find(source)
    if checkpoint is not None:
        meta = training_folder.read_meta(checkpoint)
        if meta["network"]["kind"] == "croco":
            settings = meta["network"]["settings"]
            config = settings_lib.decode_network(settings, str(source), kinds.get(kinds.PAIRWISE))
            abstract = croco_pretrain.abstract_params(config)
            return training_folder.restore_average(checkpoint, abstract), config
    loaded = store.load(source, initialise_missing=True)
    drawn = loaded.meta.get("initialised", ())
    return {k: value for k, value in loaded.params.items() if k not in drawn}, loaded.config


def from_params(
    config: NetworkConfig,
    params: Mapping[str, Any],
    params_config: NetworkConfig,
    key: jax.Array,
    source: str = "other parameters",
) -> tuple[dict[str, Any], Report]:
    """Returns the same for parameters in memory, those of `networks.croco_pretrain` included.

    Raises UserError if `params` are not of the architecture of `config`.
    """
    _check_stacks(config, params_config, source)
    expected = traverse_util.flatten_dict(align3r.abstract_params(config), sep="/")
    given = traverse_util.flatten_dict(dict(params), sep="/")
    copied: list[str] = []
    if "decoder2" not in params:
        copied = [path for path in expected if path.startswith("decoder2/")]
        given |= {p: given[q] for p in copied if (q := p.replace("2", "1", 1)) in given}

    given = _with_depth_channel(given, config, params_config)
    fresh_groups = {
        group
        for group, settings in _OPTIONAL.items()
        if any(getattr(config, name) != getattr(params_config, name) for name in settings)
        or not _fits(group, given, expected)
    }
    fresh = {path for path in expected if path.split("/")[0] in fresh_groups}
    wrong = [
        f"{path} is {tuple(np.shape(given[path])) if path in given else 'missing'}, expected "
        f"{tuple(leaf.shape)}"
        for path, leaf in expected.items()
        if path not in fresh and np.shape(given.get(path, 0)) != tuple(leaf.shape)
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"{source} cannot start this network: {'; '.join(wrong[:_SHOWN])}{more}. Choose the "
            "network of the weights, or other weights."
        )

    drawn: dict[str, Any] = {}
    if fresh:
        shapes = traverse_util.unflatten_dict({p: expected[p] for p in fresh}, sep="/")
        drawn = traverse_util.flatten_dict(initial.fill(shapes, config, key), sep="/")
    values = {
        path: np.asarray(drawn[path] if path in fresh else given[path], leaf.dtype)
        for path, leaf in expected.items()
    }
    taken = set(expected) - fresh - set(copied)
    unused = set(traverse_util.flatten_dict(dict(params), sep="/")) - taken
    report = Report(source, *(tuple(sorted(p)) for p in (taken, copied, fresh, unused)))
    return traverse_util.unflatten_dict(values, sep="/"), report


def _with_depth_channel(
    given: dict[str, Any], config: NetworkConfig, other: NetworkConfig
) -> dict[str, Any]:
    """The parameters with a fourth channel of zeros in the patch embedding, if it is new."""
    wanted, had = (c.prior_branch and c.prior_injection == "concat" for c in (config, other))
    if not wanted or had or _PATCHES not in given:
        return given
    kernel = np.asarray(given[_PATCHES])
    return given | {_PATCHES: np.pad(kernel, [(0, 0), (0, 0), (0, 1), (0, 0)])}


def _check_stacks(config: NetworkConfig, other: NetworkConfig, source: str) -> None:
    wrong = [
        f"{name} is {getattr(other, name)}, expected {getattr(config, name)}"
        for name in _STACKS
        if getattr(config, name) != getattr(other, name)
    ]
    if wrong:
        raise UserError(
            f"{source} cannot start this network, their architectures differ: {'; '.join(wrong)}. "
            "Choose the network of the weights, or other weights."
        )


def _fits(group: str, given: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Whether all of a group is there in the right shapes, and there is nothing else in it."""

    def shapes(flat: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {p: tuple(np.shape(v)) for p, v in flat.items() if p.split("/")[0] == group}

    return shapes(given) == shapes(expected)
