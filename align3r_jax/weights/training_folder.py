"""Weights inside the work folder of a training: the newest checkpoint, its averaged parameters.

    WORKDIR/checkpoints/STEP/   an Orbax checkpoint of `training.state.TrainState`; its custom
                                metadata is the `meta` of `training.checkpoint`

A checkpoint gets its name, a number, when it is complete; a half-written one is never looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from align3r_jax.errors import UserError

FORMAT = "align3r_jax training, version 1"
CHECKPOINTS = "checkpoints"  # the folder within the work folder
STATE = "state"  # the entry of the Orbax checkpoint
_MARK = "_CHECKPOINT_METADATA"  # Orbax writes it into every checkpoint


def find(path: Path) -> Path | None:
    """Returns the checkpoint that `path` means, None if it holds none.

    path: a work folder or its `checkpoints` (the newest counts), or one checkpoint.
    """
    if path.name.isdigit() and (path / _MARK).is_file():
        return path
    for folder in (path / CHECKPOINTS, path):
        if folder.is_dir():
            steps = [p for p in folder.iterdir() if p.name.isdigit() and (p / _MARK).is_file()]
            if steps:
                return max(steps, key=lambda p: int(p.name))
    return None


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """Returns the `meta` that was saved with a checkpoint. UserError if it is not of a training."""
    try:
        meta = ocp.checkpointables_metadata(checkpoint.absolute()).custom_metadata
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The checkpoint {checkpoint} cannot be read ({str(error)[:200]}); name another one."
        ) from error
    return check_meta(meta, checkpoint)


def check_meta(meta: Any, checkpoint: Path) -> dict[str, Any]:
    """Returns `meta`. Raises UserError unless this version wrote it."""
    found = meta.get("format") if isinstance(meta, dict) else None
    if found != FORMAT:
        raise UserError(
            f"The checkpoint {checkpoint} was written as '{found}', this version reads '{FORMAT}'; "
            "export its weights with the version that wrote it."
        )
    return dict(meta)


def restore_average(checkpoint: Path, abstract: Any) -> dict[str, Any]:
    """Returns the moving average of the parameters as NumPy arrays; nothing else is read.

    abstract: their tree of shapes. Raises UserError if the checkpoint holds other parameters or is
    damaged.
    """
    # NumPy targets load whatever devices wrote the checkpoint.
    abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            loaded = ocp.load_checkpointables(checkpoint.absolute(), {STATE: {"average": abstract}})
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The weights in the checkpoint {checkpoint} cannot be read "
            f"({str(error).splitlines()[0][:200]}); it is damaged or of another network."
        ) from error
    return loaded[STATE]["average"]
