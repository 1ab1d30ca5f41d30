"""All training sets by name, and the scenes of one of them."""

from __future__ import annotations

import importlib
from pathlib import Path

from align3r_jax.errors import UserError
from data.prepare import settings
from data.readers.training import SkippedScene, TrainingOptions, TrainingReader, TrainingScene

# Name -> module of `data.readers` with TRAINING; imported when it is asked for.
TRAINING_SETS = {
    "sceneflow": "sceneflow",
    "vkitti2": "vkitti2",
    "tartanair": "tartanair",
    "spring": "spring",
    "pointodyssey": "pointodyssey_training",
    "waymo": "waymo",
    "folder": "own_folder",
    "records": "records",
}
_PREPARED = "records"


def reader(name: str) -> TrainingReader:
    """Returns how a set is read. Raises UserError if the name is unknown."""
    if name not in TRAINING_SETS:
        raise UserError(
            f"The training set '{name}' is unknown; known are {', '.join(TRAINING_SETS)}."
        )
    return importlib.import_module(f"data.readers.{TRAINING_SETS[name]}").TRAINING


def scenes(
    name: str, root: str | Path, options: TrainingOptions = TrainingOptions()
) -> tuple[list[TrainingScene], list[SkippedScene]]:
    """Returns the scenes of a set, and those that are left out with the sentence that says why.

    Pictures and depth are not opened here; a scene's `load` does that and raises UserError that
    names the file.

    Raises:
        UserError: the set, its variant or the split is unknown, the root does not exist or holds
            no such data, or not one scene of it can be trained on.
    """
    options.check()
    chosen = reader(name)
    if options.variant is not None and options.variant not in chosen.variants:
        known = "; ".join(f"{key} ({meaning})" for key, meaning in chosen.variants.items())
        raise UserError(f"{name} has no variant '{options.variant}'; known are: {known or 'none'}.")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"The folder '{root}' of the training set {name} does not exist.")
    # Its conventions are not those of the folders that the readers know by their looks.
    by_us = [folder for folder in (root, root.parent) if (folder / settings.FILE).is_file()]
    if name != _PREPARED and by_us:
        raise UserError(
            f"'{by_us[0]}' was written by experiments.prepare_data: read it as '{_PREPARED}', "
            f"not as '{name}'."
        )
    found, skipped = chosen.scenes(root, options)
    if found:
        return found, skipped
    reasons = " ".join(f"'{scene.name}': {scene.reason}" for scene in skipped[:3])
    if skipped:
        raise UserError(
            f"No scene of {name} below '{root}' can be used (split '{options.split}'); "
            f"{len(skipped)} are left out. {reasons}"
        )
    raise UserError(
        f"'{root}' holds no {options.split} scenes of {name}: expected {chosen.layout}."
    )
