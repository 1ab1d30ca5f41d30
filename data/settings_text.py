"""Names in settings that users write: unknown ones are refused with the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from align3r_jax.errors import UserError


def check_names(given: Mapping[str, Any], kind: type, where: str) -> None:
    """Raises UserError if a key is no field of the dataclass `kind`. where: for the message."""
    known = [field.name for field in dataclasses.fields(kind)]
    for name in given:
        if name not in known:
            raise UserError(unknown(f"setting '{name}' of {where}", name, known))


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Returns the sentence for an unknown name, with the nearest known one if there is one."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"The {what} is unknown.{hint} Known are {', '.join(known)}."
