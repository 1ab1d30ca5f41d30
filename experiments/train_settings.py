"""What a file in `experiments/configs` may say: names, types, defaults.

A configuration is data: `get_config(arg)` returns `complete({...})` with fields of `TrainSettings`;
sections that belong to other modules have the fields that these declare.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict, config_dict

from align3r_jax.errors import UserError
from align3r_jax.training import monitor as monitor_lib
from align3r_jax.training.optimizer import OptimizerConfig
from data import pipeline_settings
from data.procedural.pairs import PairOptions
from experiments import typed_settings

RENDERED = "procedural"  # data.source, and a set of `evaluate.sets`
_USED = (("pairwise", "symmetrise"), ("pairwise", "remat"), ("croco", "remat"))


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Devices: `data` x `fsdp`; data=-1: all. See `training.partitioning`.

    gather_dtype: in which parameters that are split over `fsdp` cross the wires; they are kept and
    updated in float32, gradients are summed in it. bfloat16 gathers them once per step.
    """

    data: int = -1
    fsdp: int = 1
    gather_dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True)
class RenderedData:
    """data.source="procedural": pairs rendered on the fly (`data.procedural.stream`)."""

    source: Literal["procedural"] = RENDERED
    prior_dropout: float = 0.35
    options: PairOptions = PairOptions()


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """Fixed sets to evaluate on: name -> mixture (`data.mixture_text`), or "procedural".

    Mixtures take roots, pairs, prior and hold_out of the data section where `roots` is empty.
    batches: of a rendered set. resolution: (height, width), None: the first one of training.
    """

    sets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    roots: Mapping[str, str] = dataclasses.field(default_factory=dict)
    batches: int = 4
    batch_size: int = 16
    resolution: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """One training. Counts named *_every are of updates, 0 turns them off.

    network: a preset; network_settings: fields of it that differ. init_from: weights to start from:
    official file, converted folder, shipped name, or the work folder of another training.
    data: fields of `RenderedData` (source="procedural") or of `data.pipeline.PipelineSettings`
    without resolutions, batch_size and seed. resolutions: (height, width), one is drawn for every
    step. batch_size: pairs of an update over all devices, before symmetrising. loss: keyword
    arguments of the task's loss. optimizer: fields of `OptimizerConfig` without total.
    average_decay: of the parameters' moving average, which is what evaluation and export see; 0:
    the parameters themselves. monitor: `training.monitor`. max_minutes: 0 for no limit.
    quick_compile: programs are compiled in half the time and run slower, for trials.
    """

    task: Literal["pairwise", "mono", "croco"]
    network: str
    data: Mapping[str, Any]
    resolutions: tuple[tuple[int, int], ...]
    batch_size: int
    steps: int
    network_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    loss: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    symmetrise: bool = False
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    mesh: MeshSettings = MeshSettings()
    seed: int = 0
    average_decay: float = 0.0
    log_every: int = 50
    save_every: int = 500
    keep: int = 2
    keep_best: int = 1
    evaluate_every: int = 0
    evaluate: EvaluateSettings = EvaluateSettings()
    monitor: str = monitor_lib.MEAN_OF_MEDIANS
    images_every: int = 0
    max_minutes: float = 0.0
    stop_on_non_finite: bool = True
    tensorboard: bool = True
    quick_compile: bool = False

    def optimizer_config(self) -> OptimizerConfig:
        """Returns the optimiser's settings; its schedule ends with the last step."""
        _refuse(self.optimizer, ("total",), "config.optimizer", "it is config.steps")
        values = {"total": self.steps, **self.optimizer}
        return typed_settings.build(OptimizerConfig, values, "config.optimizer")

    @property
    def rendered(self) -> RenderedData | None:
        """The data section if it is rendered, None if it comes from files."""
        if self.data.get("source") != RENDERED:
            return None
        return typed_settings.build(RenderedData, self.data, "config.data")

    def pipeline(self, **changes: Any) -> pipeline_settings.PipelineSettings:
        """Returns the settings of the pipeline that loads files, with `changes`."""
        _refuse(
            self.data, ("resolutions", "batch_size", "seed"), "config.data", "it stands beside data"
        )
        values = {
            **{name: value for name, value in self.data.items() if name != "source"},
            "resolutions": self.resolutions,
            "batch_size": self.batch_size,
            "seed": self.seed,
            **changes,
        }
        return pipeline_settings.settings_from(values)

    @property
    def position(self) -> dict[str, Any]:
        """What the batches depend on beside step, seed and batch size, as JSON types."""
        names = ("mixture", "pairs", "split", "prior", "hold_out", "order", "prior_dropout")
        return {
            "task": self.task,
            "resolutions": [list(size) for size in self.resolutions],
            "data": {name: self.data[name] for name in names if name in self.data},
        }


def complete(values: Mapping[str, Any]) -> ConfigDict:
    """Returns `values` with every default spelt out, so that flags can change any of them."""
    whole = {
        field.name: field.default
        if field.default_factory is dataclasses.MISSING
        else field.default_factory()
        for field in dataclasses.fields(TrainSettings)
        if field.name not in values and not _required(field)
    } | dict(values)
    optimizer = dataclasses.asdict(OptimizerConfig())
    del optimizer["total"]
    for name, defaults in (
        ("mesh", dataclasses.asdict(MeshSettings())),
        ("evaluate", dataclasses.asdict(EvaluateSettings())),
        ("optimizer", optimizer),
    ):
        given = whole[name]
        given = dataclasses.asdict(given) if dataclasses.is_dataclass(given) else given
        whole[name] = defaults | dict(given)
    empty = config_dict.placeholder
    whole["init_from"] = whole["init_from"] or empty(str)
    whole["evaluate"]["resolution"] = whole["evaluate"]["resolution"] or empty(tuple)
    return ConfigDict(whole)


def _required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def settings_from(values: Mapping[str, Any]) -> TrainSettings:
    """Returns the settings of a configuration, checked as far as they stand alone.

    Raises UserError that names the first setting that is unknown, missing or wrong.
    """
    settings = typed_settings.build(TrainSettings, values, "config")
    for name in ("batch_size", "steps", "keep"):
        if getattr(settings, name) < 1:
            raise UserError(f"config.{name} must be at least 1, got {getattr(settings, name)}.")
    for name in ("log_every", "save_every", "evaluate_every", "images_every", "seed", "keep_best"):
        if getattr(settings, name) < 0:
            raise UserError(f"config.{name} must not be negative, got {getattr(settings, name)}.")
    if not 0 <= settings.average_decay < 1:
        raise UserError(f"config.average_decay must lie in [0, 1), got {settings.average_decay}.")
    if not settings.resolutions:
        raise UserError("config.resolutions is empty; expected pairs (height, width).")
    if settings.evaluate_every and not settings.evaluate.sets:
        raise UserError(
            "config.evaluate_every asks for evaluation, but config.evaluate.sets names no set."
        )
    for name in ("symmetrise", "remat"):
        if getattr(settings, name) and (settings.task, name) not in _USED:
            raise UserError(f"config.{name} means nothing to the task {settings.task}; drop it.")
    settings.optimizer_config()
    if settings.data.get("source", "files") not in (RENDERED, "files"):
        raise UserError(
            f"config.data.source is '{settings.data['source']}'; known are {RENDERED} and files."
        )
    if settings.rendered is None:
        settings.pipeline()
    elif len(settings.resolutions) > 1:
        raise UserError(
            f"config.resolutions are {settings.resolutions}, but rendered data has one; drop the "
            "others."
        )
    monitor_lib.check(settings.monitor, settings.evaluate.sets)
    return settings


def _refuse(values: Mapping[str, Any], names: tuple[str, ...], where: str, why: str) -> None:
    for name in names:
        if name in values:
            raise UserError(f"{where}.{name} cannot be set there: {why}.")
