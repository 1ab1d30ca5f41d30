"""The settings of a network as text: constructor calls, `config.json`, our own configuration.

Foreign text is parsed as literals and never evaluated.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align3r_jax import config as config_lib
from align3r_jax.errors import UserError
from align3r_jax.weights.kinds import Kind

_MAX_TEXT = 5000  # real ones have about 400 characters
_INF_NAMES = {"inf": math.inf}


def parse_call(text: str, source: str) -> tuple[str, dict[str, Any]]:
    """Returns (class name, arguments) of a text like `Net(img_size=(512, 512), mode=('exp', inf))`.

    Values: numbers, text, True, False, None, `inf`, tuples and lists of these, with a sign.
    Raises UserError for anything else; `source` says where the text stood.
    """
    try:
        if len(text) > _MAX_TEXT:
            raise ValueError(f"{len(text)} characters")
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("no call with named arguments")
        return call.func.id, {_named(word.arg): _literal(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(
            f"{source} describes its network by a text that is no constructor call with literal "
            f"arguments ({error}): {text[:80]!r}. Give the configuration in a config.json instead."
        ) from error


def _named(name: str | None) -> str:
    if name is None:
        raise ValueError("unpacked arguments")
    return name


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and not isinstance(node.value, (bytes, complex)):
        return node.value
    if isinstance(node, ast.Name) and node.id in _INF_NAMES:
        return _INF_NAMES[node.id]
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_literal(item) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _literal(node.operand)
        if isinstance(value, (int, float)):
            return -value if isinstance(node.op, ast.USub) else value
    raise ValueError(f"{ast.unparse(node)[:40]!r} is no literal")


def read_config(path: Path) -> dict[str, Any]:
    """Returns the content of a `config.json`, lists as tuples.

    The bare tokens Infinity and -Infinity, which strict JSON lacks, are accepted. Raises UserError
    when the file is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no JSON object ({error}); copy or download it again."
        ) from error
    return {name: _tuples(value) for name, value in content.items()}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def encode_network(config: Any) -> dict[str, Any]:
    """Returns the configuration as JSON types; infinite numbers become text, as JSON has none."""
    return {
        name: str(value) if isinstance(value, float) and math.isinf(value) else value
        for name, value in config_lib.to_dict(config).items()
    }


def decode_network(values: str | Mapping[str, Any], source: str, kind: Kind) -> Any:
    """Returns the configuration of what `encode_network` gave, or of its JSON text.

    Raises UserError naming `source` when it is of another version or was edited badly.
    """
    try:
        values = dict(json.loads(values) if isinstance(values, str) else values)
        config = _build(kind.config_class, values)
        if hasattr(kind.network_module, "check_config"):
            kind.network_module.check_config(config)
        return config
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(
            f"The network settings in {source} are not understood ({error}); convert the weights "
            "again with this version."
        ) from error


def _build(settings: type, values: Mapping[str, Any]) -> Any:
    """A dataclass, settings within settings included, with the numbers of its declared types."""
    hints = typing.get_type_hints(settings)
    typed = {}
    for name, value in values.items():
        hint = hints.get(name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            typed[name] = _build(hint, value)
        else:
            typed[name] = float(value) if hint is float else _tuples(value)
    return config_lib.from_dict(settings, typed)
