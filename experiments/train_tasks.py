"""What is trained: the network of a configuration with its loss, its score and its pictures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from align3r_jax import config as config_lib
from align3r_jax.config import NETWORK_PRESETS, NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.networks import align3r, croco_pretrain
from align3r_jax.networks.small_depth import SmallDepth, SmallDepthConfig
from align3r_jax.structs import Array
from align3r_jax.training import croco_task, initialise, panels, tasks
from align3r_jax.training.step import LossFn
from data import settings_text
from experiments import typed_settings
from experiments.train_settings import TrainSettings

ScoreFn = Callable[[Any, dict[str, Array]], dict[str, Array]]
_RESERVED = ("config", "dtype", "remat", "symmetrise")


@dataclasses.dataclass(frozen=True)
class Task:
    """network: its settings. init: key -> parameters. read: the parameters to start from, of
    `config.init_from`. loss: of `training.step`. score: (params,
    batch) -> scalars of an evaluation, among them "loss". maps: of `training.panels`, or None."""

    network: Any
    init: Callable[[Array], Any]
    read: Callable[[str], Any]
    loss: LossFn
    score: ScoreFn
    maps: panels.MapsFn | None


def make_task(settings: TrainSettings) -> Task:
    """Returns the task of a configuration. Raises UserError for unknown networks and settings."""
    return {"pairwise": _pairwise, "mono": _mono, "croco": _croco}[settings.task](settings)


def _network(settings: TrainSettings, kind: type, presets: dict[str, Any]) -> Any:
    if settings.network not in presets:
        what = f"config.network '{settings.network}'"
        raise UserError(settings_text.unknown(what, settings.network, sorted(presets)))
    values = config_lib.to_dict(presets[settings.network]) | dict(settings.network_settings)
    return typed_settings.build(kind, values, "config.network_settings")


def _pairwise(settings: TrainSettings) -> Task:
    network = _network(settings, NetworkConfig, NETWORK_PRESETS)
    align3r.check_config(network)
    dtype = jnp.dtype(settings.compute_dtype)
    words = typed_settings.keywords(tasks.pairwise_loss, settings.loss, "config.loss", _RESERVED)
    make = functools.partial(
        tasks.pairwise_loss, network, dtype=dtype, symmetrise=settings.symmetrise
    )
    shown = {"max_depth": words["max_depth"]} if "max_depth" in words else {}
    error = tasks.pairwise_error(network, dtype, symmetrise=settings.symmetrise, **shown)
    return Task(
        network,
        functools.partial(align3r.init_params, network),
        lambda source: initialise.from_weights(network, source, jax.random.key(settings.seed))[0],
        make(remat=settings.remat, **words),
        # Every prior there is is shown to a network that is evaluated.
        _score(make(**{**words, "prior_dropout": 0.0}), error),
        panels.pairwise_maps(network, dtype),
    )


def _mono(settings: TrainSettings) -> Task:
    network = _network(settings, SmallDepthConfig, {"small_depth": SmallDepthConfig()})
    dtype = jnp.dtype(settings.compute_dtype)
    words = typed_settings.keywords(tasks.mono_loss, settings.loss, "config.loss", _RESERVED)
    loss = tasks.mono_loss(network, dtype=dtype, **words)
    image = jnp.zeros((1, *settings.resolutions[0], 3))

    def init(key: Array) -> Any:
        return SmallDepth(network).init(key, image)["params"]

    def read(source: str) -> Any:
        raise UserError(f"config.init_from={source}: the monocular network starts from nothing.")

    return Task(network, init, read, loss, _score(loss, loss), panels.mono_maps(network, dtype))


def _croco(settings: TrainSettings) -> Task:
    network = _network(settings, NetworkConfig, NETWORK_PRESETS)
    words = typed_settings.keywords(croco_task.croco_loss, settings.loss, "config.loss", _RESERVED)
    make = functools.partial(
        croco_task.croco_loss, network, jnp.dtype(settings.compute_dtype), **words
    )

    def read(source: str) -> Any:
        raise UserError(f"config.init_from={source}: pre-training starts from nothing.")

    loss = make(remat=settings.remat)
    return Task(
        network,
        functools.partial(croco_pretrain.init_params, network),
        read,
        loss,
        _score(make(), make()),
        None,
    )


def _score(loss: LossFn, criterion: LossFn) -> ScoreFn:
    """Details of both; "loss" is the criterion, which decides which state is best."""

    def score(params: Any, batch: dict[str, Array]) -> dict[str, Array]:
        key = jax.random.key(0)
        trained, details = loss(params, batch, key)
        judged, errors = criterion(params, batch, key)
        return {**details, **errors, "train_loss": trained, "loss": judged}

    return score
