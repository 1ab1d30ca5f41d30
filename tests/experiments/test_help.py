"""Every flag of every script explains itself: what it is, its unit, what happens without it.

absl prints default, type and values of an enumeration beside the text; the rest is held here.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path
    for folder in ("experiments", "data")
    for path in (ROOT / folder).rglob("*.py")
    if "DEFINE_" in path.read_text(encoding="utf-8")
)
# What numbers are counted in, or that they have no unit.
UNIT = re.compile(
    r"\b(pixels?|px|frames?|videos?|clips?|sequences?|scenes?|seconds?|pairs?|points?|steps?"
    r"|iterations?|updates?|degrees?|metres?|MiB|GiB|MB|GB|GFLOP\w*|bytes?|devices?|processes"
    r"|share|fraction|ratio|times|multiple|per cent|percentile|from 0|weight|rate|seed|port|level"
    r"|of 100|samples?|no unit|unit of)\b",
    re.IGNORECASE,
)
WITHOUT = re.compile(r"\b(default|instead|also|only|if|unless|otherwise|needed|none:)", re.I)
UNKNOWN = object()


def _text(node):
    """The text of a constant, a sum, an f-string with holes; what else is computed is a hole."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return str(node.value) if isinstance(node, ast.Constant) else "…"


def _value(node):
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNKNOWN  # a name: something, so not None


def _flags(path):
    """(kind, name, default, help, other arguments) of every flag a script defines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = node.func.attr if isinstance(node, ast.Call) and hasattr(node.func, "attr") else ""
        if not called.startswith("DEFINE_"):
            continue
        named = {word.arg: word.value for word in node.keywords}
        last = 3 if called == "DEFINE_enum" else 2
        given = node.args + [named.pop("help")] if "help" in named else node.args
        assert len(given) > last, f"{path.name}: line {node.lineno} explains nothing"
        yield called[7:], _text(given[0]), _value(given[1]), _text(given[last]), named


def _complaints(kind, name, default, text, named):
    numbers = default if isinstance(default, list) else [default]
    counted = kind in ("integer", "float") or all(str(n).isdecimal() for n in numbers)
    if len(text.split()) < 2 or not text.endswith("."):
        yield "is no sentence"
    if counted and not UNIT.search(text):
        yield "has no unit"
    if "memory" in name and not re.search(r"\d? ?[GM]i?B\b", text):
        yield "does not say how memory is written"
    if default is None and "required" not in named and not WITHOUT.search(text):
        yield "does not say what happens without it"
    if kind == "integer" and default == 0 and not re.search(r"\b0\b", text):
        yield "does not say what 0 means"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_flag_explains_itself(path):
    bad = [
        f"--{flag[1]} {complaint} ({flag[3]!r})"
        for flag in _flags(path)
        for complaint in _complaints(*flag)
    ]
    assert not bad, f"{path.relative_to(ROOT)}:\n" + "\n".join(bad)


def test_the_rules_find_what_is_missing(tmp_path):
    def complaints(code):
        (flag,) = _flags(
            type("File", (), {"read_text": lambda self, encoding: code, "name": "x"})()
        )
        return list(_complaints(*flag))

    assert complaints('flags.DEFINE_integer("size", 512, "Long side in pixels.")') == []
    assert complaints('flags.DEFINE_integer("size", 512, "Long side.")') == ["has no unit"]
    assert complaints('flags.DEFINE_list("sizes", ["8", "6"], "Of the grid.")') == ["has no unit"]
    assert complaints('flags.DEFINE_string("out", None, "A folder.")') == [
        "does not say what happens without it"
    ]
    assert complaints('flags.DEFINE_string("out", None, "A folder.", required=True)') == []
    assert complaints('flags.DEFINE_integer("n", 0, "At most so many frames.")') == [
        "does not say what 0 means"
    ]
    assert complaints('flags.DEFINE_bool("x", False, "")') == ["is no sentence"]
