"""The variants of `configs/ablation.py` with the small network: one start, one budget, one table.

    WORKDIR/start/        the pairwise network without prior that every variant starts from
    WORKDIR/VARIANT/      the work folder of its fine-tuning (docs/training.md)
    WORKDIR/results.json  budget, checksum of the batches, figures; table.md the same to read

Fine-tuning a common pre-trained network is what the papers' tables compare. All variants see the
same pairs with the same priors in the same order, which is checked, and are scored on the same
unseen pairs with unseen textures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from align3r_jax.errors import UserError
from align3r_jax.evaluation import tables
from align3r_jax.io import atomic
from align3r_jax.training import metrics, optimizer
from data import settings_text
from data.procedural import stream
from experiments import pair_scores, train_run, train_settings, train_setup
from experiments.configs import ablation

RESULTS = "results.json"
_START = "start"
_BASELINES = {"prior": "the prior itself", "constant": "constant depth, no rotation"}


@dataclasses.dataclass(frozen=True)
class Budget:
    """What all variants share. steps: of fine-tuning, start_steps: of what they start from, on
    pairs of another seed. evaluation: (batches, pairs of each). network: settings that differ."""

    steps: int = 1500
    start_steps: int = 1500
    seed: int = 0
    batch_size: int = 8
    resolution: tuple[int, int] = (128, 160)
    evaluation: tuple[int, int] = (4, 16)
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def check_variants(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names, all if there are none. Raises UserError for unknown ones."""
    for name in names:
        if name not in ablation.VARIANTS:
            raise UserError(settings_text.unknown(f"variant '{name}'", name, ablation.VARIANTS))
    return tuple(names) or ablation.VARIANTS


def configured(variant: str, budget: Budget, folder: Path) -> ConfigDict:
    """Returns the configuration of a variant, or of "start"."""
    config = ablation.get_config(f"small-{variant}")
    is_start = variant == _START
    steps = budget.start_steps if is_start else budget.steps
    config.network_settings = ConfigDict({**config.network_settings.to_dict(), **budget.network})
    config.resolutions = (budget.resolution,)
    config.batch_size = budget.batch_size
    config.steps = steps
    config.seed = budget.seed + is_start
    config.optimizer.warmup = steps // 15
    config.init_from = None if is_start else str(folder / _START)
    config.evaluate_every = config.images_every = 0
    config.tensorboard = False
    return config


def run(
    folder: Path, budget: Budget, variants: Sequence[str], say: Any = print
) -> dict[str, Any] | None:
    """Trains and scores what `folder` lacks; returns the results, None if a training was stopped.

    Raises UserError if the folder holds the results of another budget, or if a variant would see
    other pairs than those before it.
    """
    results = _read(folder, budget)
    batches = stream.validation_batches(*budget.resolution, *budget.evaluation)
    results.setdefault("baselines", pair_scores.baselines(batches))
    for name in (_START, *variants):
        if name in results["variants"]:
            continue
        say(f"{name}:")
        config = configured(name, budget, folder)
        values = config.to_dict()
        settings = train_settings.settings_from(values)
        if name != _START:
            found = data_checksum(settings)
            if results.setdefault("data", found) != found:
                raise UserError(
                    f"The variant '{name}' would be trained on other pairs than those in {folder}; "
                    "they were rendered by another machine or version. Choose a new --workdir."
                )
        trainer, final = train_run.train(settings, values, folder / name)
        if int(final.step) < settings.steps:
            return None
        results["variants"][name] = _scored(trainer, final, folder / name, batches)
        _write(folder, budget, results)
    _write(folder, budget, results)
    return results


def data_checksum(settings: train_settings.TrainSettings) -> str:
    """Returns a digest of the first and the last batch of a training, every array of them."""
    digest = hashlib.sha256()
    trainer = train_setup.make_trainer(settings)
    with train_setup.open_batches(trainer, 0) as batch_of:
        for step in (0, settings.steps - 1):
            for name, array in sorted(batch_of(step).items()):
                digest.update(name.encode() + np.asarray(array).tobytes())
    return digest.hexdigest()


def table(results: Mapping[str, Any]) -> tables.Table:
    """Returns the results as one table: baselines, the start, then the variants."""
    rows = [
        tables.Row(title, {f"{key}_with": v for key, v in results["baselines"][name].items()})
        for name, title in _BASELINES.items()
    ]
    for name, entry in results["variants"].items():
        values = {"trained": entry["trained_parameters"] / 1e6, "train_loss": entry["train_loss"]}
        for kind in ("with", "without"):
            scores = entry[f"{kind}_prior"] or {}
            values |= {f"{key}_{kind}": value for key, value in scores.items()}
        rows.append(tables.Row(name, values))
    columns = [
        tables.Column("trained", "trained, million", 3),
        tables.Column("train_loss", "training loss", 3),
    ]
    for kind in ("with", "without"):
        columns += [
            tables.Column(f"abs_rel_{kind}", f"Abs Rel {kind} prior", 4, "lower"),
            tables.Column(f"delta_1.25_{kind}", f"δ < 1.25 {kind}", 3, "higher"),
            tables.Column(f"point_error_{kind}", f"points {kind} [m]", 3, "lower"),
            tables.Column(f"rotation_deg_{kind}", f"rotation {kind} [deg]", 2, "lower"),
        ]
    budget = results["budget"]
    count, size = budget["evaluation"]
    height, width = budget["resolution"]
    note = (
        f"{count * size} unseen procedural pairs of {width}x{height}; one median scale per frame. "
        f"Every variant: {budget['steps']} steps of {budget['batch_size']} pairs from the network "
        f"'start' ({budget['start_steps']} steps without prior), seed {budget['seed']}, the same "
        f"batches (checksum {results.get('data', '')[:12]}). Points: mean distance up to scale and "
        "shift of z, both views together."
    )
    return tables.Table("Training ablation", "variant", tuple(columns), tuple(rows), (note,)).used()


def _scored(
    trainer: train_setup.Trainer, final: Any, folder: Path, batches: Sequence[Any]
) -> dict[str, Any]:
    """Figures of a finished training; networks that read no prior have those without alone."""
    network = trainer.task.network
    frozen = optimizer.frozen_patterns(trainer.settings.optimizer_config().frozen)
    trained = optimizer.split(final.params, frozen)[0]
    predict = pair_scores.make_predict(network)
    blind = pair_scores.without_prior(batches)
    return {
        "steps": int(final.step),
        "trained_parameters": sum(leaf.size for leaf in jax.tree.leaves(trained)),
        "train_loss": metrics.read(folder / "metrics.jsonl")[-1]["loss"],
        "with_prior": pair_scores.scores(predict, final.average, batches)
        if network.prior_branch
        else None,
        "without_prior": pair_scores.scores(predict, final.average, blind),
    }


def _read(folder: Path, budget: Budget) -> dict[str, Any]:
    path = folder / RESULTS
    if not path.is_file():
        return {"budget": budget.to_json(), "variants": {}}
    results = json.loads(path.read_text())
    if results["budget"] != budget.to_json():
        differing = [k for k, v in budget.to_json().items() if results["budget"].get(k) != v]
        raise UserError(
            f"{path} was made with other settings ({', '.join(differing)}); a table needs one "
            "budget for all. Give those, or a new --workdir."
        )
    return results


def _write(folder: Path, budget: Budget, results: dict[str, Any]) -> None:
    order = {name: k for k, name in enumerate((_START, *ablation.VARIANTS))}
    results["variants"] = dict(sorted(results["variants"].items(), key=lambda item: order[item[0]]))
    with atomic.told_to_user(folder):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, indent=1, default=float) + "\n"
        atomic.replace_file(folder / RESULTS, text.encode())
        atomic.replace_file(folder / "table.md", tables.to_markdown([table(results)]).encode())
