"""Files and folders that appear whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from align3r_jax.errors import UserError


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that it is never seen half-written.

    Raises OSError; the temporary file is gone then.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a hidden sibling of `path` to fill, which takes its place if all goes well."""
    hidden = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    with told_to_user(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden.mkdir()
        try:
            yield hidden
            _replace(path, hidden)
        # Also Ctrl-C, which is no Exception, must leave nothing half-written.
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
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


def _replace(path: Path, hidden: Path) -> None:
    """Renames `hidden` to `path`; what was there is put back if that fails, else removed."""
    old = hidden.with_suffix(".old")
    try:
        if path.exists():
            path.rename(old)
        hidden.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
