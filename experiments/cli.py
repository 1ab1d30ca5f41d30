"""What every script of `experiments` shares: errors as sentences, exit codes, compile cache, quiet.

    if __name__ == "__main__":
        cli.run(main)

| exit code | meaning |
|---|---|
| what `main` returns, 0 for None | done |
| 1 | unknown, missing or malformed flags: a sentence with the nearest right name or value |
| 2 | bad input (`UserError`), unreadable or unwritable files, a full disk: one sentence on stderr |
| 130 | interrupted with Ctrl-C |

Anything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from logging import WARNING, LogRecord
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from align3r_jax.errors import UserError
from align3r_jax.io import user_folder
from data import settings_text

FLAG_ERROR = 1
USER_ERROR = 2
INTERRUPTED = 130


def run(main: Callable[[Sequence[str]], int | None], arguments: int = 0) -> None:
    """Parses the flags, runs `main(argv)` and exits with the code of the table above.

    arguments: how many a script takes beside its flags, at most (argv[1], ...).
    """

    def guarded(argv: Sequence[str]) -> int:
        try:
            if len(argv) > 1 + arguments:
                raise UserError(
                    f"Unexpected argument {argv[1 + arguments]!r}: every setting is a flag, "
                    "written --name=value (--help lists them)."
                )
            use_compile_cache()
            quiet_libraries()
            return main(argv) or 0
        except UserError as error:
            print(f"Error: {error}", file=sys.stderr)
            return USER_ERROR
        except OSError as error:
            # The system's own sentence (no space left, permission denied, not a directory).
            print(f"Error: {_describe(error)}", file=sys.stderr)
            return USER_ERROR
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            return INTERRUPTED

    app.run(guarded, flags_parser=parse)


def parse(arguments: Sequence[str]) -> list[str]:
    """Returns what is left of the arguments once the flags are read.

    A wrong flag ends the program with a sentence: what was got, what is known, what is near.
    """
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        sentence = _missing(str(error), arguments) or _with_nearest(str(error))
        print(f"Error: {sentence}\n--help lists all flags.", file=sys.stderr)
        sys.exit(FLAG_ERROR)


def _missing(message: str, arguments: Sequence[str]) -> str:
    """The sentence for flags that must be given, "" if the message is about something else."""
    names = re.findall(r"flag --(\w+)=None: Flag --\w+ must have a value", message)
    if not names:
        return ""
    sentence = f"{' and '.join(f'--{name}=...' for name in names)} must be given."
    before = zip(arguments, arguments[1:])
    stray = [word for flag, word in before if not word.startswith("-") and not _takes_next(flag)]
    return f"{sentence} '{stray[0]}' belongs to no flag." if stray else sentence


def _takes_next(argument: str) -> bool:
    """Whether this is a flag whose value is the next argument (--name value)."""
    return argument.startswith("-") and "=" not in argument


def _with_nearest(message: str) -> str:
    """What absl says of a flag; it offers near names of flags, but no near values."""
    wrong = re.fullmatch(r"flag --(\w+)=(.*): value should be one of <(.*)>", message, re.DOTALL)
    if wrong is None:
        return re.sub(r"^flags (\w+=\S*,? ?)+: ", "", message)  # of validators that read several
    name, value, known = wrong.groups()
    return settings_text.unknown(f"value '{value}' of --{name}", value, known.split("|"))


def quiet_libraries() -> None:
    """Drops what libraries log below WARNING (Orbax: 20 lines a checkpoint), unless --verbosity=1.

    Our own messages pass.
    """
    if logging.get_verbosity() < logging.DEBUG:
        logging.get_absl_handler().addFilter(_is_ours_or_important)


def _is_ours_or_important(record: LogRecord) -> bool:
    installed = {"site-packages", "dist-packages"} & set(Path(record.pathname).parts)
    ours = not installed or "align3r_jax" in Path(record.pathname).parts
    return ours or record.levelno >= WARNING


def use_compile_cache() -> None:
    """Keeps compiled programs between runs, in `JAX_COMPILATION_CACHE_DIR` if that is set.

    The default is `align3r_jax/xla` in the user's cache folder. JAX's own settings in the
    environment win. The folder holds code that is run: it must belong to the user alone. Where it
    cannot be written a warning says so, and every run compiles again.
    """
    settings: dict[str, Any] = {
        # JAX's default of 1 s skips most programs of this project. The small ones together take
        # longer to compile than to read, so nothing is skipped.
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        settings["jax_compilation_cache_dir"] = _writable(user_folder.cache_folder("xla"))
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _writable(folder: Path) -> str | None:
    """The folder, made if need be; None, and a warning, if nothing can be written there."""
    reason = "it is not writable"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return str(folder)
    except OSError as error:
        reason = error.strerror or str(error)
    logging.warning(
        "Compiled programs cannot be kept in %s (%s): every run compiles again. Set "
        "JAX_COMPILATION_CACHE_DIR to a folder of your own that can be written.", folder, reason,
    )  # fmt: skip
    return None


def _describe(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}." if error.filename else f"{reason}."
