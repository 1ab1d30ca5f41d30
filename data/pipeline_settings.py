"""Every setting of the training pipeline, and how a plain dictionary becomes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from align3r_jax.errors import UserError
from data import augment, mixture, mixture_text, pairs, settings_text
from data.readers.training import SPLITS, TrainingOptions

ORDERS = ("walk", "reference")
_DEFAULT_PAIRS = "align3r"
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (float, int), "bool": (bool,),
    "str | None": (str, type(None)), "Mapping[str, str]": (Mapping,),
    "str | Mapping[str, str]": (str, Mapping),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PipelineSettings:
    """What is trained on, and how it is loaded. Batches depend on all fields but the last three.

    mixture: text of `data.mixture_text`; a set's options there (root, pairs, split, prior,
    parity, variant, hold_out) win over the fields of that name here.
    roots: set -> folder. pairs: a rule of `data.pairs` for all sets, or set -> rule; a set whose
    scenes prescribe pairs keeps to them unless it is named. split, prior, parity: as in
    `TrainingOptions`; prior None: no depth prior. hold_out: every n-th scene (all its
    cameras together) of the split "train" is kept from training for evaluation, 0: none.
    resolutions: (height, width), height <= width, one is drawn for every step; portrait views
    are stored transposed. batch_size: pairs of a step, over all processes.
    order: "walk" or "reference" (`data.mixture`). max_unreadable: share of samples that may be
    replaced because a file cannot be read; above it training stops. seed: of everything drawn.
    workers: processes that load, 0: threads alone. threads: that load batches, of every worker.
    prefetch: batches kept ready by every worker (by the process, without workers). Workers hand
    them over in shared memory (/dev/shm), which containers may limit.
    """

    mixture: str
    roots: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pairs: str | Mapping[str, str] = _DEFAULT_PAIRS
    split: str = "train"
    prior: str | None = None
    parity: bool = False
    hold_out: int = 0
    resolutions: tuple[tuple[int, int], ...] = ((288, 512), (336, 512), (256, 512))
    batch_size: int = 16
    augmentation: augment.Augmentation = augment.PRESETS["align3r"]
    order: mixture.Order = "walk"
    max_unreadable: float = 0.01
    seed: int = 0
    workers: int = 0
    threads: int = 4
    prefetch: int = 4

    def check(self) -> PipelineSettings:
        """Returns self. Raises UserError that names the first setting that is wrong."""
        mixture_text.parse(self.mixture)
        if self.order not in ORDERS:
            raise UserError(settings_text.unknown(f"order '{self.order}'", self.order, ORDERS))
        if self.split not in SPLITS:
            raise UserError(settings_text.unknown(f"split '{self.split}'", self.split, SPLITS))
        for name, least in (
            ("batch_size", 1), ("hold_out", 0), ("seed", 0), ("workers", 0), ("threads", 0),
            ("prefetch", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.hold_out == 1:
            raise UserError("hold_out=1 would leave no scene to train on; 10 keeps every tenth.")
        if not 0 <= self.max_unreadable <= 1:
            raise UserError(f"max_unreadable must lie in [0, 1], got {self.max_unreadable}.")
        if not self.resolutions:
            raise UserError("resolutions is empty; expected pairs (height, width).")
        for height, width in self.resolutions:
            if not 0 < height <= width:
                raise UserError(
                    f"The resolution {(height, width)} is not (height, width) of a landscape "
                    "picture, height <= width; portrait pictures are stored transposed."
                )
        rules = [self.pairs] if isinstance(self.pairs, str) else self.pairs.values()
        for rule in rules:
            pairs.parse_rule(rule)
        self.augmentation.check()
        return self


@dataclasses.dataclass(frozen=True)
class SourceSettings:
    """One set of the mixture with its options resolved. rule None: as the scenes prescribe, else
    the default of the settings.
    """

    name: str
    root: str
    options: TrainingOptions
    rule: str | None
    default_rule: str
    hold_out: int


def settings_from(values: Mapping[str, Any]) -> PipelineSettings:
    """Returns the settings of a dictionary, e.g. of a configuration file, checked.

    augmentation: a preset's name or its fields (`data.augment.augmentation`).
    Raises UserError for unknown names (with the nearest known one) and wrong values.
    """
    values = dict(values)
    settings_text.check_names(values, PipelineSettings, "the data pipeline")
    if "mixture" not in values:
        raise UserError("The data pipeline needs a mixture, e.g. mixture='10_000 @ pointodyssey'.")
    if not isinstance(values.get("augmentation", augment.NONE), augment.Augmentation):
        values["augmentation"] = augment.augmentation(values["augmentation"])
    if "resolutions" in values:
        try:
            sizes = [(int(height), int(width)) for height, width in values["resolutions"]]
        except (TypeError, ValueError) as error:
            raise UserError(
                f"resolutions must be pairs (height, width), got {values['resolutions']}."
            ) from error
        values["resolutions"] = tuple(sizes)
    for field in dataclasses.fields(PipelineSettings):
        kinds = _KINDS.get(str(field.type))
        value = values.get(field.name)
        if field.name not in values or kinds is None:
            continue
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = str(field.type).replace("Mapping[str, str]", "a mapping of names to texts")
            raise UserError(f"{field.name} must be {expected}, got {value!r}.")
    for name in ("roots", "pairs"):
        if isinstance(values.get(name), Mapping):
            values[name] = dict(values[name])
    return PipelineSettings(**values).check()


def source_settings(settings: PipelineSettings, source: mixture.Source) -> SourceSettings:
    """Returns one set of the mixture with its options. Raises UserError for unknown options."""
    given = dict(source.options)
    known = ("root", "pairs", "hold_out", "split", "prior", "parity", "variant")
    for name in given:
        if name not in known:
            raise UserError(settings_text.unknown(f"option '{name}' of {source.name}", name, known))
    root = given.get("root", settings.roots.get(source.name))
    if root is None:
        raise UserError(
            f"The folder of the set '{source.name}' is not known: give "
            f"roots={{'{source.name}': FOLDER}} or {source.name}(root=FOLDER)."
        )
    named = {} if isinstance(settings.pairs, str) else settings.pairs
    rule = given.get("pairs", named.get(source.name))
    if rule is not None:
        pairs.parse_rule(rule)
    prior = given.get("prior", settings.prior)
    return SourceSettings(
        source.name,
        str(root),
        TrainingOptions(
            split=given.get("split", settings.split),
            prior=None if prior == "none" else prior,
            parity=_flag(source, "parity", given) if "parity" in given else settings.parity,
            variant=given.get("variant"),
        ).check(),
        rule,
        settings.pairs if isinstance(settings.pairs, str) else _DEFAULT_PAIRS,
        _count(source, "hold_out", given) if "hold_out" in given else settings.hold_out,
    )


def _flag(source: mixture.Source, name: str, given: Mapping[str, str]) -> bool:
    if given[name].lower() not in ("true", "false"):
        raise UserError(f"{source.name}({name}={given[name]}): expected true or false.")
    return given[name].lower() == "true"


def _count(source: mixture.Source, name: str, given: Mapping[str, str]) -> int:
    if not given[name].isdecimal() or given[name] == "1":
        raise UserError(f"{source.name}({name}={given[name]}): expected 0 or a number above 1.")
    return int(given[name])
