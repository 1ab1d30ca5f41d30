"""Moves weights between foreign names and layouts and our parameter tree, through a table.

A table is a list of `Rule`s, one per kind of module: a template of the source's module name, one
of our path, and what kind of layer it is. Templates hold numbers in braces; `{i}` in the name
and `{i:02d}` in the path stand for the same number. The same table reads and writes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from align3r_jax.errors import UserError

_FIELD = re.compile(r"\{(\w+)(?::(\d+)d)?\}")
_SHOWN = 8  # names of each kind of error that a message lists


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one array of a layer is stored: `leaf` in our tree, and the two changes of axes.

    rank: number of axes in the source, None if any.
    """

    leaf: str
    rank: int | None
    to_tree: Callable[[np.ndarray], np.ndarray]
    to_source: Callable[[np.ndarray], np.ndarray]


def _permuted(leaf: str, axes: tuple[int, ...]) -> Layout:
    inverse = tuple(int(axis) for axis in np.argsort(axes))
    return Layout(
        leaf, len(axes), lambda x: np.transpose(x, axes), lambda x: np.transpose(x, inverse)
    )


def _as_is(leaf: str, rank: int | None = None) -> Layout:
    return Layout(leaf, rank, lambda x: x, lambda x: x)


# Kind of layer -> suffix of the source's name -> layout. An absent suffix is no error here: what
# must be there is known from the expected tree.
KINDS: dict[str, dict[str, Layout]] = {
    "array": {"": _as_is("")},
    "linear": {".weight": _permuted("kernel", (1, 0)), ".bias": _as_is("bias", 1)},
    "conv": {".weight": _permuted("kernel", (2, 3, 1, 0)), ".bias": _as_is("bias", 1)},
    "conv_transpose": {".weight": _permuted("kernel", (2, 3, 0, 1)), ".bias": _as_is("bias", 1)},
    # A 1-D convolution of kernel 1, (out, in, 1): a linear layer.
    "pointwise": {
        ".weight": Layout("kernel", 3, lambda x: x[..., 0].T, lambda x: x.T[..., None]),
        ".bias": _as_is("bias", 1),
    },
    "norm": {".weight": _as_is("scale", 1), ".bias": _as_is("bias", 1)},
    "batch_norm": {
        ".weight": _as_is("scale", 1),
        ".bias": _as_is("bias", 1),
        ".running_mean": _as_is("mean", 1),
        ".running_var": _as_is("var", 1),
    },
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Modules named `source` live at `path`; `kind` is a key of KINDS."""

    source: str
    path: str
    kind: str


def _compile(template: str) -> re.Pattern[str]:
    """A regex whose named groups are the numbers of the template."""
    parts, end = [], 0
    for field in _FIELD.finditer(template):
        parts += [re.escape(template[end : field.start()]), rf"(?P<{field[1]}>\d+)"]
        end = field.end()
    return re.compile("".join(parts) + re.escape(template[end:]))


def _translate(
    name: str, patterns: Sequence[tuple[re.Pattern[str], str, Layout]]
) -> tuple[str, Layout] | None:
    for pattern, target, layout in patterns:
        if match := pattern.fullmatch(name):
            numbers = {key: int(value) for key, value in match.groupdict().items()}
            return target.format(**numbers), layout
    return None


def _reading(rules: Iterable[Rule]) -> list[tuple[re.Pattern[str], str, Layout]]:
    return [
        (_compile(rule.source + suffix), _join(rule.path, layout.leaf), layout)
        for rule in rules
        for suffix, layout in KINDS[rule.kind].items()
    ]


def _writing(rules: Iterable[Rule]) -> list[tuple[re.Pattern[str], str, Layout]]:
    return [
        (_compile(_join(rule.path, layout.leaf)), rule.source + suffix, layout)
        for rule in rules
        for suffix, layout in KINDS[rule.kind].items()
    ]


def _join(path: str, leaf: str) -> str:
    return f"{path}/{leaf}" if leaf else path


def _listed(title: str, entries: Sequence[str]) -> str:
    shown = "; ".join(entries[:_SHOWN])
    more = f"; and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return f"{len(entries)} {title}: {shown}{more}."


def to_tree(
    state: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    expected: Mapping[str, Any],
    *,
    initial: Mapping[str, Any] | None = None,
    optional: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the parameter tree (nested dict, NumPy, the types of `expected`) of a state.

    expected: tree of arrays or ShapeDtypeStructs. optional: groups (first parts of a path) that
    the state may leave out altogether, if `initial` (a tree like `expected`) has them.

    Raises UserError, once, naming all unknown, duplicate, missing and mis-shaped entries.
    """
    shapes = traverse_util.flatten_dict(dict(expected), sep="/")
    patterns = _reading(rules)
    found: dict[str, np.ndarray] = {}
    unknown: list[str] = []
    misshaped: list[str] = []
    for name, value in state.items():
        translated = _translate(name, patterns)
        if translated is None or translated[0] not in shapes or translated[0] in found:
            unknown.append(name)
            continue
        path, layout = translated
        fits = layout.rank in (None, np.ndim(value))
        array = layout.to_tree(np.asarray(value)) if fits else np.asarray(value)
        found[path] = array
        if not fits or array.shape != tuple(shapes[path].shape):
            expected_shape = layout.to_source(np.zeros(shapes[path].shape, np.bool_)).shape
            misshaped.append(f"{name} is {tuple(np.shape(value))}, expected {expected_shape}")

    missing = [path for path in shapes if path not in found]
    if initial is not None:
        whole = {group for group in optional if not any(p.split("/")[0] == group for p in found)}
        kept = traverse_util.flatten_dict(dict(initial), sep="/")
        found.update(
            {path: np.asarray(kept[path]) for path in missing if path.split("/")[0] in whole}
        )
        missing = [path for path in missing if path not in found]

    problems = []
    if unknown:
        problems.append(_listed("unknown names", unknown))
    if missing:
        names = [source_name(path, rules) for path in missing]
        problems.append(_listed("missing names", names))
    if misshaped:
        problems.append(_listed("wrong shapes", misshaped))
    if problems:
        raise UserError(
            "These weights do not fit the network. "
            + " ".join(problems)
            + " Check that the file is of the model that its configuration names."
        )
    ordered = {path: found[path].astype(shapes[path].dtype, copy=False) for path in shapes}
    return traverse_util.unflatten_dict(ordered, sep="/")


def source_name(path: str, rules: Sequence[Rule]) -> str:
    """Returns what the source calls the parameter at `path`; `path` itself if no rule knows."""
    translated = _translate(path, _writing(rules))
    return path if translated is None else translated[0]


def from_tree(params: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """Returns the state (source name -> contiguous array) of a parameter tree.

    Raises KeyError for a path that no rule knows: the table is incomplete.
    """
    patterns = _writing(rules)
    state = {}
    for path, value in traverse_util.flatten_dict(dict(params), sep="/").items():
        translated = _translate(path, patterns)
        if translated is None:
            raise KeyError(f"No rule writes the parameter {path}.")
        name, layout = translated
        state[name] = np.ascontiguousarray(layout.to_source(np.asarray(value)))
    return state
