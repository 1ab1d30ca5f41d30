"""How a result can be made again: the command, and which software ran it."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def of_this_process() -> dict[str, Any]:
    """Returns `describe` of the running script; the command is None if it is none of ours."""
    module = getattr(sys.modules["__main__"].__spec__, "name", "")
    found = describe(module, sys.argv[1:])
    return found if module.startswith("experiments.") else found | {"command": None}


def describe(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Returns `command`, which a shell reads back as it was, and `software`, for summary.json.

    module: of the script, "experiments.reconstruct". arguments: what followed it, sys.argv[1:].
    """
    return {
        "command": shlex.join(["python", "-m", module, *arguments]),
        "software": {
            "align3r_jax": _own_version(),
            "revision": revision(ROOT),
            "jax": metadata.version("jax"),
            "python": platform.python_version(),
        },
    }


def revision(folder: Path) -> str | None:
    """Returns the git commit of a checkout, "+ changes" behind it if files differ; None without."""
    try:
        commit, changed = (
            subprocess.run(
                ["git", "-C", str(folder), *words],
                capture_output=True, text=True, check=True, timeout=10,
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + (" + changes" if changed else "")


def _own_version() -> str:
    """Of the installed package, else of the checkout."""
    try:
        return metadata.version("align3r_jax")
    except metadata.PackageNotFoundError:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        return project["project"]["version"]
