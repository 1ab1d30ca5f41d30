"""Settings from dictionaries: every name must be known, every value of the declared type."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from align3r_jax.errors import UserError
from data import settings_text

T = TypeVar("T")


def build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Returns the dataclass `kind` of `values`, dataclasses within it included.

    where: what the section is called ("config.optimizer"). Raises UserError for names that are no
    fields (with the nearest one), for missing ones, and for values of another type.
    """
    settings_text.check_names(values, kind, where)
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    missing = [
        field.name
        for field in fields
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; give {where}.{missing[0]}.")
    return kind(**{k: checked(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def keywords(
    function: Callable[..., Any], values: Mapping[str, Any], where: str, reserved: tuple[str, ...]
) -> dict[str, Any]:
    """Returns `values` as keyword arguments of `function`, checked as `build` does.

    reserved: arguments that others give.
    """
    known = [name for name in inspect.signature(function).parameters if name not in reserved]
    for name in values:
        if name not in known:
            raise UserError(settings_text.unknown(f"setting '{name}' of {where}", name, known))
    hints = typing.get_type_hints(function)
    return {k: checked(hints[k], v, f"{where}.{k}") for k, v in values.items()}


def checked(hint: Any, value: Any, where: str) -> Any:
    """Returns `value` as the type `hint` says (integers as floats, lists as tuples, dictionaries as
    dataclasses). Raises UserError for anything else."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(arguments, value, where, hint)
    if origin is typing.Literal:
        if value not in arguments:
            known = [str(entry) for entry in arguments]
            raise UserError(settings_text.unknown(f"{where} '{value}'", str(value), known))
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, tuple | list):
        if arguments[-1] is Ellipsis:
            return tuple(checked(arguments[0], v, f"{where}[{k}]") for k, v in enumerate(value))
        if len(value) == len(arguments):
            pairs = enumerate(zip(arguments, value))
            return tuple(checked(kind, v, f"{where}[{k}]") for k, (kind, v) in pairs)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {str(k): checked(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = isinstance(hint, type) and isinstance(value, hint)
    if plain and (hint is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"{where} must be {_named(hint)}, got {value!r}.")


def _first_that_fits(kinds: tuple[Any, ...], value: Any, where: str, hint: Any) -> Any:
    # A dictionary is meant for the dataclass among them: its own complaint helps more.
    for kind in kinds:
        if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            return build(kind, value, where)  # type: ignore[arg-type]
    for kind in kinds:
        try:
            return checked(kind, value, where)
        except UserError:
            continue
    raise UserError(f"{where} must be {_named(hint)}, got {value!r}.")


def _named(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
