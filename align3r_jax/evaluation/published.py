"""Numbers that others published, each with its source: `published.json`, the rows beside ours.

A value that could not be found is null there and `n.f.` in tables; nothing is filled in. Numbers
of different protocols stand beside each other only because the protocol is named with them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from importlib import resources

from align3r_jax.evaluation import protocols

NOT_FOUND = "n.f."


@dataclasses.dataclass(frozen=True)
class Published:
    """One row of a paper for one data set, or for one sequence (`dataset` = "sintel/alley_2").

    metrics: name -> value, None = not found. variant: which of a method's variants. source: where
    it is printed, and who quotes it if the original was not at hand. note: what a reader must know.
    """

    method: str
    variant: str
    task: str
    dataset: str
    protocol: str
    metrics: dict[str, float | None]
    source: str
    note: str

    @property
    def title(self) -> str:
        """Method and variant."""
        return f"{self.method} ({self.variant})" if self.variant else self.method

    @property
    def is_ablation(self) -> bool:
        """Whether it is a variant that was published to explain the method."""
        return self.note.startswith("ablation")


@functools.cache
def everything() -> tuple[Published, ...]:
    """All published rows."""
    text = resources.files("align3r_jax.evaluation").joinpath("published.json").read_text()
    rows = tuple(Published(**entry) for entry in json.loads(text))
    for row in rows:
        if row.task not in protocols.TASKS or row.protocol not in protocols.PROTOCOLS:
            raise ValueError(f"published.json: {row.title} names no task or protocol of ours.")
    return rows


def rows(task: str, dataset: str, *, ablations: bool = False) -> tuple[Published, ...]:
    """Rows of a task on a data set (or sequence) for which at least one number was found.

    Rows with nothing found come too if the same method has no other there, so that the gap shows.
    """
    there = [
        row
        for row in everything()
        if row.task == task and row.dataset == dataset and row.is_ablation == ablations
    ]
    known = {row.method for row in there if _has_numbers(row)}
    return tuple(row for row in there if _has_numbers(row) or row.method not in known)


def _has_numbers(row: Published) -> bool:
    return any(value is not None for value in row.metrics.values())
