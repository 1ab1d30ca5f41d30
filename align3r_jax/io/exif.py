"""The focal that a camera wrote into a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from align3r_jax.errors import UserError

_FILM_DIAGONAL = math.hypot(36, 24)  # millimetres of a 35 mm frame
_FOCAL_IN_35MM = 0xA405


def read_focal(path: str | Path) -> float | None:
    """focal = f35 sqrt(W^2 + H^2) / sqrt(36^2 + 24^2), in pixels of the picture; None if unknown.

    f35: the 35 mm equivalent in the EXIF data. Whichever way up the picture is stored, this is the
    focal of what `io.images.load_image` returns, which turns it upright. Damaged EXIF data counts
    as none. Raises UserError if the file is no picture.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            equivalent = _equivalent(image)
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"The picture '{path}' cannot be read ({error}).") from error
    if equivalent is None:
        return None
    return equivalent * math.hypot(width, height) / _FILM_DIAGONAL


def _equivalent(image: Image.Image) -> float | None:
    """The 35 mm equivalent focal in millimetres."""
    try:
        exif = image.getexif()
        nested: Mapping[int, Any] = exif.get_ifd(ExifTags.IFD.Exif)
        value = float(nested.get(_FOCAL_IN_35MM, exif.get(_FOCAL_IN_35MM)))
    except (SyntaxError, ValueError, TypeError, ZeroDivisionError, KeyError):
        return None
    return value if math.isfinite(value) and value > 0 else None
