"""Which depth network and which flow network a run uses, and where their weights come from.

A setting names them (`prior="depth_pro"`, `flow.source="sea_raft"`); weights come from the path
that is given with it, else from the search path of `weights.published`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from align3r_jax.config import FlowConfig, ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.priors import cache, optical_flow, shipped
from align3r_jax.priors.mono_depth import DepthMaps, DepthModel
from align3r_jax.priors.optical_flow import FlowSource
from align3r_jax.structs import Array, Frames
from align3r_jax.weights import kinds, published, store
from align3r_jax.weights.store import LoadedNetwork

DEPTH_KINDS = ("depth_anything", "depth_pro")
FLOW_KINDS = ("raft", "sea_raft")
_PLAIN_PRIORS = ("auto", "small", "plane", "none")
_PLAIN_FLOWS = ("dis", "none")
_TOLD = ("focal", "compute_dtype")  # settings that change the depth


class NetworkPrior:
    """A monocular network as a `DepthModel`: its weights are read when needed, then let go.

    name: of published weights, or "auto" for whatever network the weights are of. source: their
    file or folder. settings: see `depth_model`.
    """

    def __init__(self, name: str, source: str | Path, **settings: Any):
        self._source = source
        self._settings = settings
        self._loaded: LoadedNetwork | None = None
        self._name = name
        self._checksum = store.stored_checksum(source)

    @property
    def name(self) -> str:
        """What the network is called in results."""
        if self._name == "auto":
            self._name = _name_of(self._network())
        return self._name

    @property
    def checksum(self) -> str:
        """Of weights and settings: results are cached under it."""
        if self._checksum is None:
            self._checksum = self._network().checksum
        told = [self._settings[name] for name in _TOLD if self._settings.get(name) is not None]
        return cache.content_key(self._checksum, *told) if told else self._checksum

    def __call__(self, images: Array) -> DepthMaps:
        """Returns the depth of images (T, H0, W0, 3) uint8 RGB."""
        return DepthMaps(*self.open(self.load())(images))

    def load(self) -> LoadedNetwork:
        """Returns the network; it is not kept here."""
        network, self._loaded = self._network(), None
        return network

    def open(self, network: LoadedNetwork, **settings: Any) -> DepthModel:
        """Returns a network of `load` as a model; settings: instead of those given at first."""
        return depth_model(network, **{**self._settings, **settings})

    def _network(self) -> LoadedNetwork:
        if self._loaded is None:
            self._loaded = load_depth_network(self._name, self._source)
        return self._loaded


def load_depth_network(name: str, source: str | Path) -> LoadedNetwork:
    """Returns the depth network that `source` holds.

    name: of published weights, or "auto" for any. Raises UserError if the file is of another
    network than `name`.
    """
    entry = published.PUBLISHED.get(name)
    wanted = DEPTH_KINDS if entry is None else (entry.kind,)
    loaded = store.load(source, kind=wanted, arguments=None if entry is None else entry.arguments)
    found = published.name_of(loaded.kind, loaded.config)
    if entry is not None and found != name:
        raise UserError(
            f"{source} holds {found or 'a network of no published size'}, but --prior={name} was "
            "asked for; --prior=auto takes what the file holds."
        )
    return loaded


def depth_model(
    network: LoadedNetwork,
    *,
    focal: Array | float | None = None,
    compute_dtype: str | None = None,
    max_memory: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> DepthModel:
    """Returns a loaded depth network as a `DepthModel`.

    focal: of the images in pixels, if known, one or (T,); Depth Pro then need not guess it.
    compute_dtype: of its matrix products. max_memory: bytes that the activations of a batch may
    take. sharding: of the images of a batch over devices. None: the network's own default. Raises
    UserError if it is no depth network.
    """
    given = {"compute_dtype": compute_dtype, "max_memory": max_memory, "sharding": sharding}
    settings: dict[str, Any] = {k: value for k, value in given.items() if value is not None}
    if network.kind == "depth_anything":
        from align3r_jax.priors import depth_anything

        return depth_anything.DepthAnythingModel(network, **settings)
    if network.kind == "depth_pro":
        from align3r_jax.priors import depth_pro

        return depth_pro.DepthProModel(network, focal=focal, **settings)
    raise UserError(
        f"{network.name} is {kinds.get(network.kind).title}; a depth prior needs Depth Anything or "
        "Depth Pro."
    )


def open_prior(config: ReconstructConfig, **settings: Any) -> NetworkPrior | None:
    """Returns the depth network that the settings name; None if they name another source.

    settings: see `depth_model`; the compute type is that of `config` if not given. Raises UserError
    if the name is unknown, or its weights are found nowhere.
    """
    spec, weights = config.prior, config.prior_weights
    known = published.names_of(*DEPTH_KINDS)
    if spec.startswith("files:") or (spec in _PLAIN_PRIORS and not (spec == "auto" and weights)):
        if weights is not None:
            raise UserError(
                f"--prior_weights={weights} was given, but --prior={spec} uses no such weights; "
                f"use --prior=auto or one of {', '.join(known)}."
            )
        return None
    if spec not in (*known, "auto"):
        raise UserError(
            f"The depth prior '{spec}' is unknown; known are {', '.join(_PLAIN_PRIORS)}, "
            f"files:DIR, {', '.join(known)}."
        )
    if config.compute_dtype != "float32":
        settings.setdefault("compute_dtype", config.compute_dtype)
    return NetworkPrior(spec, weights or published.locate(spec, "--prior_weights"), **settings)


def open_flow(config: FlowConfig) -> LoadedNetwork | None:
    """Returns the flow network that the settings name; None if they name another source.

    Raises UserError if its weights are found nowhere or are those of another network.
    """
    source, weights = config.source, config.weights
    known = published.names_of(*FLOW_KINDS)
    if source not in known:
        if not source.startswith("files:") and source not in _PLAIN_FLOWS:
            names = ", ".join([*_PLAIN_FLOWS, *known, "files:DIR"])
            raise UserError(f"Flow source '{source}' is unknown; known are {names}.")
        if weights is not None:
            raise UserError(
                f"--flow_weights={weights} was given, but --flow={source} uses no weights; use "
                f"--flow={' or --flow='.join(known)}."
            )
        return None
    return store.load(weights or published.locate(source, "--flow_weights"), kind=source)


def prior_source(
    config: ReconstructConfig,
    model: LoadedNetwork | None,
    given: LoadedNetwork | DepthModel | None,
    note: Callable[[str], None],
) -> tuple[str, Mapping[str, DepthModel]]:
    """Returns the depth prior's name for `mono_depth.estimate_depth` and the models it may need.

    model: the pairwise network. given: a depth network instead of the one that `config` names.
    note: receives plain sentences about the choice.
    """
    if given is None:
        given = open_prior(config)
    if given is None:
        return shipped.prior_spec(config, model, note), shipped.mono_models()
    if isinstance(given, LoadedNetwork):
        name, given = _name_of(given), depth_model(given)
    else:
        name = str(getattr(given, "name", "given"))
    note(f"Depth prior: {name}." + _licence(name))
    return name, {name: given}


def flow_source(
    config: FlowConfig,
    frames: Frames,
    given: LoadedNetwork | FlowSource | None,
    note: Callable[[str], None],
    **settings: Any,
) -> FlowSource | None:
    """Returns where optical flow comes from: `given`, or what the settings name; None for none.

    settings: of `flow_network.NetworkFlow`, should it be one.
    """
    if given is None:
        given = open_flow(config)
    if given is None:
        return optical_flow.make_source(config, frames)
    if not isinstance(given, LoadedNetwork):
        return given
    if given.kind not in FLOW_KINDS:
        raise UserError(
            f"{given.name} is {kinds.get(given.kind).title}; optical flow needs RAFT or SEA-RAFT."
        )
    from align3r_jax.priors import flow_network

    note(f"Optical flow: {given.name}, {given.kind} with {config.iterations} iterations.")
    return flow_network.NetworkFlow(config, given, **settings)


def _licence(name: str) -> str:
    notice = published.licence_notice(name)
    return f" {notice}" if notice else ""


def _name_of(network: LoadedNetwork) -> str:
    return published.name_of(network.kind, network.config) or network.name
