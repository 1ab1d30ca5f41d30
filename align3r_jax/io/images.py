"""Still pictures: finding them in natural order and reading any of them as 8-bit RGB."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from align3r_jax.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
_PICTURE, _MASK = "_rgb.jpg", "_mask.png"  # of one prepared training frame


def natural_key(text: str) -> list[str | int]:
    """Sort key in which frame2 comes before frame10."""
    parts = re.split(r"([0-9]+)", text.casefold())
    return [int(part) if part.isdecimal() else part for part in parts]


def is_glob(path: str | Path) -> bool:
    """Whether `path` is a pattern and not the name of something that exists."""
    return any(mark in str(path) for mark in "*?[") and not Path(path).expanduser().exists()


def list_images(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """Returns the pictures of a folder or a glob in natural order, or a given list as it stands.

    Hidden files, files of other kinds and the masks of prepared training frames (ID_mask.png
    beside ID_rgb.jpg) are left out of folders and globs.
    Raises UserError if the folder is missing or holds no pictures, or a listed file is missing.
    """
    if isinstance(path, (str, Path)):
        if is_glob(path):
            matches = glob.glob(str(Path(path).expanduser()), recursive=True)
            candidates = [Path(match) for match in matches]
            where = f"The pattern '{path}' matches"
        else:
            folder = Path(path).expanduser()
            if not folder.is_dir():
                raise UserError(f"'{path}' does not exist. Give a video, a folder or a glob.")
            candidates = list(folder.iterdir())
            where = f"The folder '{path}' holds"
        found = [candidate for candidate in candidates if _is_image(candidate)]
        found = _without_masks(found)
        if not found:
            raise UserError(f"{where} no pictures ({', '.join(sorted(SUFFIXES))}).")
        return sorted(found, key=lambda image: natural_key(str(image)))
    paths = [Path(item).expanduser() for item in path]
    for item in paths:
        if not item.is_file():
            raise UserError(f"The picture '{item}' does not exist.")
    return paths


def frame_names(paths: Sequence[Path]) -> list[str]:
    """Returns one unique name per picture: its stem, more of its path if stems repeat."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    folder = os.path.commonpath([path.absolute().parent for path in paths])
    full = ["_".join(path.absolute().relative_to(folder).parts) for path in paths]
    if len(set(full)) != len(full):
        repeated = next(name for name in full if full.count(name) > 1)
        raise UserError(f"The same picture is listed twice: '{repeated}'.")
    return full


def load_image(path: str | Path) -> np.ndarray:
    """Returns a picture as (H, W, 3) uint8 RGB, upright by its EXIF orientation.

    Grey becomes three equal channels, alpha is dropped, 16 bits are scaled to 8 (v / 257) and
    floats in [0, 1] to 255. Raises UserError if the file is unreadable or of another range.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image), path)
    except UserError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"The picture '{path}' cannot be read ({error}).") from error


def _without_masks(pictures: list[Path]) -> list[Path]:
    there = set(pictures)
    return [
        path
        for path in pictures
        if not path.name.endswith(_MASK)
        or path.with_name(path.name.removesuffix(_MASK) + _PICTURE) not in there
    ]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _to_rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_deep_to_8bit(np.asarray(image), image.mode, path)[..., None], 3, axis=-1)
    return np.array(image.convert("RGB"))


def _deep_to_8bit(values: np.ndarray, mode: str, path: str | Path) -> np.ndarray:
    """One channel of more than 8 bits; Pillow's own conversion would clip it at 255."""
    low, high = float(np.min(values)), float(np.max(values))
    if mode == "F" and low >= 0 and high <= 1:
        scale = 255.0
    elif mode != "F" and low >= 0 and high <= 65535:
        scale = 1 / 257
    else:
        raise UserError(
            f"The picture '{path}' has values from {low:g} to {high:g}; expected 8 bits, 16 bits "
            "or floats in [0, 1]. Convert it to PNG or JPEG first."
        )
    return np.round(values.astype(np.float64) * scale).astype(np.uint8)
