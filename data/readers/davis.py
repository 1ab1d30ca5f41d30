"""DAVIS: real videos with masks of what moves; no depth, no cameras.

`JPEGImages/480p/SEQ/00000.jpg`, `Annotations/480p/SEQ/00000.png`.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from align3r_jax.errors import UserError
from data.readers import files
from data.readers.sequence import DatasetReader, EvaluationSequence, FrameSlice, ReaderOptions

# The validation split of DAVIS 2016.
VALIDATION = (
    "blackswan", "bmx-trees", "breakdance", "camel", "car-roundabout", "car-shadow", "cows",
    "dance-twirl", "dog", "drift-chicane", "drift-straight", "goat", "horsejump-high", "kite-surf",
    "libby", "motocross-jump", "paragliding-launch", "parkour", "scooter-black", "soapbox",
)  # fmt: skip


def _base(root: Path) -> Path:
    return root / "DAVIS" if (root / "DAVIS").is_dir() else root


def found(root: Path, options: ReaderOptions) -> list[str]:
    """Names of the sequences."""
    return files.subfolders(_base(root) / "JPEGImages" / "480p")


def read(
    root: Path, name: str, task: str, options: ReaderOptions, frames: FrameSlice
) -> EvaluationSequence:
    """Returns one sequence; every frame must have its annotation. Raises UserError."""
    base = _base(root)
    every = files.listed(base / "JPEGImages" / "480p" / name, (".jpg",), "pictures")
    files.check_no_gaps(every)
    annotations = base / "Annotations" / "480p" / name
    files.same_count(every, files.listed(annotations, (".png",), "annotations"), "annotations")
    pictures = files.chosen(every, frames)
    masks = files.partners(pictures, lambda path: annotations / f"{path.stem}.png", "annotation")
    size = files.picture_size(pictures)
    return EvaluationSequence(
        name, "davis", tuple(pictures), size,
        dynamic_mask=functools.partial(_masks, masks, size),
        prior_files=files.priors(pictures, "davis"),
        notes=("The annotated objects count as what moves; other movers are not annotated.",),
    ).check()  # fmt: skip


def _masks(paths: tuple[Path, ...], size: tuple[int, int]) -> np.ndarray:
    """Any object: 255 in the files of 2016, indices 1, 2, ... of the palette in those of 2017."""
    masks = np.zeros((len(paths), *size), bool)
    for k, path in enumerate(paths):
        try:
            with Image.open(path) as picture:
                values = np.asarray(picture)
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise UserError(f"The mask '{path}' cannot be read ({error}).") from error
        labels = values > 0 if values.ndim == 2 else (values[..., :3] > 0).any(-1)
        if labels.shape != size:
            raise UserError(f"The mask '{path}' is {labels.shape}, its picture {size}.")
        masks[k] = labels
    return masks


READER = DatasetReader(
    name="davis",
    tasks=("motion",),
    layout="JPEGImages/480p/bear/00000.jpg and Annotations/480p/bear/00000.png",
    found=found,
    read=read,
    lists={"validation": VALIDATION},
    default_list={"": "found"},
)
