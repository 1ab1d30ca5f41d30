"""Evaluation in the loop: fixed sets by name, and the one number that says which state is best.

    mean_of_medians   mean over the sets of the median loss (default)
    min_over_sets     the smallest median loss of any set: the easiest set decides
    NAME              the median loss of that set

Medians over batches are lower medians: the element floor((n - 1) / 2) of n sorted ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.structs import Array

MEAN_OF_MEDIANS = "mean_of_medians"
MIN_OVER_SETS = "min_over_sets"  # parity: how the reference implementation chooses its best
Sets = Mapping[str, Iterable[Any]]
Results = dict[str, dict[str, float]]


def lower_median(values: Iterable[float]) -> float:
    """Returns the element floor((n - 1) / 2) of the sorted values; NaN if there are none."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2] if ordered else math.nan


def evaluate(compute: Callable[[Any, Any], dict[str, Array]], params: Any, sets: Sets) -> Results:
    """Returns set -> {detail: mean over its batches, detail_med: lower median}.

    compute: jitted (params, batch) -> scalars, among them "loss". The batches of a set are the same
    at every call. Raises UserError for a set without batches.
    """
    results = {}
    for name, batches in sets.items():
        details = [jax.device_get(compute(params, batch)) for batch in batches]
        if not details:
            raise UserError(
                f"The evaluation set '{name}' gives no batch: it has fewer samples than the "
                "evaluation's batch size; lower config.evaluate.batch_size or name another set."
            )
        columns = {key: [float(entry[key]) for entry in details] for key in details[0]}
        results[name] = {key: float(np.mean(column)) for key, column in columns.items()}
        results[name] |= {f"{key}_med": lower_median(column) for key, column in columns.items()}
    return results


def check(monitor: str, sets: Iterable[str]) -> None:
    """Raises UserError unless `monitor` is one of the module's names for these sets."""
    known = [MEAN_OF_MEDIANS, MIN_OVER_SETS, *sets]
    if monitor not in known:
        raise UserError(f"config.monitor is '{monitor}'; known are {', '.join(known)}.")


def value(results: Results, monitor: str) -> float:
    """Returns the number that decides which state is best, smaller is better."""
    medians = {name: scores["loss_med"] for name, scores in results.items()}
    if monitor == MEAN_OF_MEDIANS:
        return float(np.mean(list(medians.values())))
    if monitor == MIN_OVER_SETS:
        return min(medians.values())
    return medians[monitor]


def lines(results: Results) -> dict[str, float]:
    """Returns the results as names of the log: eval/SET/DETAIL."""
    return {
        f"eval/{name}/{key}": number
        for name, scores in results.items()
        for key, number in scores.items()
    }
