"""Files and folders that appear whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from align3r_jax.errors import UserError


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Gives a hidden sibling of `path`, open for writing, which takes its place if all goes well.

    Raises OSError; the hidden file is gone then.
    """
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with hidden.open("wb") as file:
            yield file
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file that is never seen half-written. Raises OSError."""
    with new_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a hidden sibling of `path` to fill, which takes its place if all goes well."""
    with told_to_user(path), replacing(path) as hidden:
        hidden.mkdir()
        yield hidden


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the name of a hidden sibling of `path` to create, as a file or a folder.

    It takes the place of `path` if all goes well, and only then whatever was there is removed.
    After any failure, Ctrl-C included, `path` is as it was and nothing is left beside it.
    """
    hidden = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    old = hidden.with_suffix(".old")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield hidden
        if path.exists():
            path.rename(old)
        hidden.rename(path)
        _remove(old)
    # Ctrl-C, which is no Exception, must leave nothing either.
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        _remove(old)
        _remove(hidden)
        raise


@contextlib.contextmanager
def told_to_user(path: Path) -> Iterator[None]:
    """Turns failures of the file system into a sentence about the output."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason = "the disk is full or a quota is reached; free some space or name another disk"
        else:
            reason = f"{error.strerror or error}; name a folder that can be written"
        raise UserError(f"The result could not be written to {path}: {reason}.") from error


def _remove(path: Path) -> None:
    if path.is_file():
        path.unlink()
    # More than once: threads of a failed writer may still be adding files for a moment.
    for _ in range(20):
        if not path.exists():
            return
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.05)
