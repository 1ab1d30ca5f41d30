"""Which weights are here, and how to get those that are not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from align3r_jax import plan
from align3r_jax.errors import UserError
from align3r_jax.weights import inventory, kinds, published, store
from experiments.doctor_packages import ABSENT, BROKEN, NOTE, OK, Finding

SHIPPED = ("align3r_small", "small_depth")
_HERE = Path("weights")  # where the pages convert pairwise networks to
_SMALLEST = 0.2  # of the authors' file: 16 bits, or a smaller sibling


def weights() -> list[Finding]:
    """Returns the shipped networks, the search path, every published network, and what else lies
    in these folders."""
    places = published.search_path()
    wider = [*places, _HERE]
    rows = [_shipped(name) for name in SHIPPED]
    rows.append(_search_path(places))
    seen: set[Path] = set()
    for entry in published.PAIRWISE.values():
        rows.append(_published(entry, wider, seen))
    for entry in published.PUBLISHED.values():
        rows.append(_published(entry, places, seen))
    others = [path for place in wider for path in inventory.converted(place)]
    return rows + [_other(path) for path in dict.fromkeys(others) if path not in seen]


def how_to_use(kind: str | None, path: Path) -> str:
    """Returns the flags that take the weights at `path`."""
    return f"{kinds.get(kind).flag}={path}" if kind in kinds.KINDS else ""


def _shipped(name: str) -> Finding:
    try:
        checksum = store.shipped_checksum(name)
    except (UserError, OSError) as error:
        advice = "Get the files of the project again (git checkout align3r_jax/weights/shipped)."
        return Finding("Weights", name, BROKEN, str(error), advice)
    text = f"comes with the project, whole ({checksum[:12]}); Apache-2.0"
    return Finding("Weights", name, OK, text, "", {"checksum": checksum})


def _search_path(places: list[Path]) -> Finding:
    text = ", ".join(f"{place}{'' if place.is_dir() else ' (not there)'}" for place in places)
    variable = published.SEARCH_VARIABLE
    advice = "" if os.environ.get(variable) else f"{variable} may name more folders."
    return Finding(
        "Weights", "looked for in", OK, text, advice, {"folders": [str(p) for p in places]}
    )


def _published(entry: published.Published, places: Iterable[Path], seen: set[Path]) -> Finding:
    path = published.find(entry, places)
    facts = {"kind": entry.kind, "licence": entry.licence, "megabytes": entry.megabytes}
    if path is None:
        return Finding("Weights", entry.name, ABSENT, _absent(entry), _get(entry), facts)
    seen.add(path)
    found = inventory.look(path)
    facts |= {"path": str(path), "form": found.form, "bytes": found.size}
    problem = found.problem
    if not problem and found.kind not in (None, entry.kind):
        problem = f"it holds {_title(found.kind)}"
    if not problem and found.size < _SMALLEST * entry.megabytes * 1e6:
        problem = f"it has {plan.say(found.size)} where about {_size(entry)} are expected"
    if problem:
        return Finding("Weights", entry.name, NOTE, f"{path}: {problem}", _get(entry), facts)
    text = f"{path} ({found.form}, {plan.say(found.size)}); {entry.licence}"
    advice = how_to_use(entry.kind, path) if entry.kind == kinds.PAIRWISE else ""
    if found.form != "converted":
        advice = f"{advice}. " if advice else ""
        advice += f"Loads faster converted: {_convert(entry).replace('FILE', str(path))}"
    return Finding("Weights", entry.name, OK, text, advice, facts)


def _other(path: Path) -> Finding:
    found = inventory.look(path)
    facts = {"path": str(path), "form": found.form, "bytes": found.size, "kind": found.kind}
    if found.problem:
        return Finding("Weights", path.name, NOTE, found.problem, "", facts)
    text = f"{path}: {_title(found.kind)}, {plan.say(found.size)}"
    return Finding("Weights", path.name, OK, text, how_to_use(found.kind, path), facts)


def _absent(entry: published.Published) -> str:
    return f"not here; {_size(entry)}, licence: {entry.licence}"


def _get(entry: published.Published) -> str:
    return f"Get {entry.origin}, then: {_convert(entry)}"


def _convert(entry: published.Published) -> str:
    if entry.kind == kinds.PAIRWISE:
        output = _HERE / entry.name
        return f"python -m experiments.convert_weights --input=FILE --output={output}"
    return published.convert_command(entry, published.search_path()[0])


def _size(entry: published.Published) -> str:
    size = entry.megabytes
    return f"{size / 1000:.1f} GB" if size >= 1000 else f"{size} MB"


def _title(kind: str | None) -> str:
    return kinds.get(kind).title if kind in kinds.KINDS else "a network of another kind"
