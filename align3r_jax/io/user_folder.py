"""The user's folder for what can be had again: compiled programs, cached priors, weights."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Returns `align3r_jax/NAME` in the user's cache folder (it need not exist)."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "align3r_jax" / name
