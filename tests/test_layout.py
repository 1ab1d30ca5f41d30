"""The structure of the project: import floors, file sizes, no cycles of packages, public names."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "align3r_jax"
FLOORS = {
    "structs": 0, "config": 0, "errors": 0,
    "geometry": 1, "io": 1,
    "networks": 2,
    "weights": 3,
    "priors": 4, "pairing": 4, "predictors": 4, "alignment": 4,
    "pipeline": 5, "feedforward": 5, "plan": 5, "stages": 5, "training": 5, "evaluation": 5,
    "findings": 5, "programs": 5,
    "viewer": 6,
}  # fmt: skip
FORBIDDEN = [  # (importing part, imported part)
    ("alignment", "networks"),
    ("alignment", "predictors"),
    ("training", "alignment"),
    ("geometry", "io"),
    ("io", "networks"),
]
HEAVY = {"grain", "tensorflow_datasets", "ml_collections", "tensorboardX", "viser", "torch"}


def _modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if ".venv" not in path.parts)


def _imports(path: Path) -> list[str]:
    """All imported module names; `from a.b import c` gives a.b and a.b.c."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _module_level_imports(path: Path) -> list[str]:
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", _modules(PACKAGE), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path):
    part = _part(path)
    if part == "__init__":
        return
    for name in _imports(path):
        parts = name.split(".")
        assert parts[0] not in ("data", "experiments", "tests"), f"{path} imports {name}"
        if parts[0] != "align3r_jax" or len(parts) < 2 or parts[1] not in FLOORS:
            continue
        assert FLOORS[parts[1]] <= FLOORS[part], f"{path.name} (floor of {part}) imports {name}"
        assert (part, parts[1]) not in FORBIDDEN, f"{path.name} imports {name}"


def test_every_part_has_a_floor():
    parts = {_part(path) for path in _modules(PACKAGE)} - {"__init__"}
    assert parts <= set(FLOORS), parts - set(FLOORS)


def test_io_does_not_import_jax_and_geometry_not_flax():
    for path in _modules(PACKAGE / "io"):
        assert not any(n.split(".")[0] in ("jax", "flax") for n in _imports(path)), path
    for path in _modules(PACKAGE / "geometry"):
        assert not any(n.split(".")[0] == "flax" for n in _imports(path)), path


def test_library_imports_no_heavy_optional_package_at_module_level():
    for path in _modules(PACKAGE):
        heavy = {n.split(".")[0] for n in _module_level_imports(path)} & HEAVY
        assert not heavy, f"{path} imports {heavy} at module level"


@pytest.mark.parametrize("folder", ["align3r_jax", "data", "experiments"])
def test_files_are_short_and_named_for_what_they_hold(folder):
    for path in _modules(ROOT / folder):
        lines = len(path.read_text().splitlines())
        assert lines <= 400, f"{path} has {lines} lines; split it by what it holds"
        assert path.stem not in ("util", "utils", "helper", "helpers", "misc", "common"), path


def test_every_module_and_public_function_has_a_docstring():
    missing = []
    for folder in ("align3r_jax", "data", "experiments"):
        for path in _modules(ROOT / folder):
            tree = ast.parse(path.read_text())
            if tree.body and not ast.get_docstring(tree):
                missing.append(str(path.relative_to(ROOT)))
            for node in tree.body:
                public = isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
                if public and node.name != "main" and not ast.get_docstring(node):
                    missing.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert not missing, missing


def test_public_functions_have_typed_arguments():
    missing = []
    for path in _modules(PACKAGE):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or node.name[0] == "_":
                continue
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            if node.returns is None or any(a.annotation is None for a in arguments):
                missing.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert not missing, missing
