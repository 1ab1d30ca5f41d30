"""All data sets for evaluation, and the sequences of one of them."""

from __future__ import annotations

from pathlib import Path

from align3r_jax.errors import UserError
from data.readers import (
    bonn,
    davis,
    flyingthings,
    kitti,
    nyu,
    pointodyssey,
    scannet,
    sintel,
    tum,
)
from data.readers.sequence import (
    TASKS,
    DatasetReader,
    EvaluationSequence,
    FailedSequence,
    ReaderOptions,
)

DATASETS: dict[str, DatasetReader] = {
    module.READER.name: module.READER
    for module in (sintel, bonn, tum, kitti, nyu, scannet, davis, pointodyssey, flyingthings)
}


def sequence_names(
    dataset: str, root: str | Path, task: str, options: ReaderOptions = ReaderOptions()
) -> list[str]:
    """Returns the names of the sequences that `sequences` reads, missing ones included.

    "default" is the list that the papers evaluate the task on; if the root has none of it, all
    that it has.

    Raises:
        UserError: the data set, the task or a list is unknown, or the root holds no sequence.
    """
    options.check()
    reader = _reader(dataset, task)
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"The folder '{root}' of the data set {dataset} does not exist.")
    there = reader.found(root, options)
    if not there:
        raise UserError(f"'{root}' holds no sequence of {dataset}: expected {reader.layout}.")
    wanted = options.sequences
    if not isinstance(wanted, str):
        return list(wanted)
    by_default = wanted == "default"
    if by_default:
        wanted = reader.list_name(task)
    if wanted == "found":
        return there
    if wanted not in reader.lists:
        known = ", ".join(("default", "found", *reader.lists))
        raise UserError(f"{dataset} has no list of sequences '{wanted}'; known are {known}.")
    chosen = reader.lists[wanted]
    names = list(chosen(there)) if callable(chosen) else list(chosen)
    return there if by_default and not set(names) & set(there) else names


def sequences(
    dataset: str, root: str | Path, task: str, options: ReaderOptions = ReaderOptions()
) -> list[EvaluationSequence | FailedSequence]:
    """Returns the sequences of a data set, with the reason in place of those that fail.

    Pictures and truth are not decoded here; the functions of a sequence do that and raise
    UserError that names the file.

    Raises:
        UserError: as `sequence_names`.
    """
    return [
        read_sequence(dataset, root, name, task, options)
        for name in sequence_names(dataset, root, task, options)
    ]


def read_sequence(
    dataset: str,
    root: str | Path,
    name: str,
    task: str,
    options: ReaderOptions = ReaderOptions(),
) -> EvaluationSequence | FailedSequence:
    """Returns one sequence by name, or why it cannot be read."""
    reader = _reader(dataset, task)
    root = Path(root).expanduser()
    try:
        return reader.read(root, name, task, options, reader.frames(name, task, options))
    except UserError as error:
        return FailedSequence(name, str(error))


def _reader(dataset: str, task: str) -> DatasetReader:
    if dataset not in DATASETS:
        raise UserError(f"The data set '{dataset}' is unknown; known are {', '.join(DATASETS)}.")
    if task not in TASKS:
        raise UserError(f"The task '{task}' is unknown; known are {', '.join(TASKS)}.")
    reader = DATASETS[dataset]
    if task not in reader.tasks:
        able = [name for name, other in DATASETS.items() if task in other.tasks]
        raise UserError(
            f"{dataset} has no truth for {task}, only for {', '.join(reader.tasks)}; data sets "
            f"that have are {', '.join(able)}."
        )
    return reader
