"""What the pages tell users to type exists: scripts, flags, files, names of the library."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

import align3r_jax

ROOT = Path(__file__).parents[1]
PAGES = [
    path
    for path in [ROOT / "README.md", ROOT / "WORKSPACE.md", *ROOT.glob("[a-z]*/README.md"),
                 *(ROOT / "docs").glob("*.md")]
    if path.exists()
]  # fmt: skip


def _commands(text: str) -> list[tuple[str, str]]:
    """(module, rest of the command) of every `python -m ...`, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return re.findall(r"python -m ((?:experiments|data)[\w.]*\w)([^\n`]*)", joined)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_scripts_and_flags_exist(page):
    for module, rest in _commands(page.read_text()):
        if module.endswith("NAME"):
            continue
        source = ROOT / (module.replace(".", "/") + ".py")
        assert source.exists(), f"{page.name} names {module}"
        code = source.read_text()
        for adopted in re.findall(r"adopt_module_key_flags\((\w+)\)", code):
            code += source.with_name(f"{adopted}.py").read_text()
        for flag in re.findall(r"--(\w+)", rest):
            name = flag.removeprefix("no") if f'"{flag}"' not in code else flag
            assert flag == "help" or f'"{name}"' in code, f"{page.name}: {module} has no --{flag}"


def _flags_of_scripts() -> set[str]:
    found = {"help", "helpfull", "config", "verbosity"}  # absl's own, and what DEFINE_ names apart
    for path in [*(ROOT / "experiments").rglob("*.py"), *(ROOT / "data").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            called = getattr(getattr(node, "func", None), "attr", "")
            if called.startswith("DEFINE_"):
                found.add(node.args[0].value)
                found |= {f"no{node.args[0].value}"} if called == "DEFINE_bool" else set()
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_flags_in_prose_exist(page):
    text = re.sub(r"(pytest|pip|make|git|ffmpeg)\b[^\n`]*", "", page.read_text())
    if page.name == "coming_from_pytorch.md":
        text = re.sub(r"(?m)^\|[^|]*\|", "|", text)  # the first column has names of others
    named = {
        flag for span in re.findall(r"`[^`\n]+`", text) for flag in re.findall(r"--(\w+)", span)
    }
    unknown = sorted(named - _flags_of_scripts())
    assert not unknown, f"{page.name} names flags that no script has: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_pictures_exist(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if target.startswith("http"):
            continue
        file, _, heading = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), f"{page.name} links to {file}"
        if heading:
            assert heading in _headings(linked), f"{page.name} links to {target}: no such heading"


def _headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"(?m)^#+ +(.+)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_settings_for_parity_are_settings():
    page = (ROOT / "docs" / "coming_from_pytorch.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scope: dict = {}
    exec(code, scope)
    assert scope["parity"].alignment.solver == "adam"
    # The alignment table: fields of AlignmentConfig, or flags.
    (table,) = re.findall(r"## Alignment\n(.*?)\n\n(?:In|##)", page, re.DOTALL)
    cells = [row.split("|")[2] for row in table.splitlines() if row.startswith("| ")][1:]
    names = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} - {"cycleK"}
    assert len(names) > 20
    assert names <= {field.name for field in dataclasses.fields(align3r_jax.AlignmentConfig)}


def test_names_of_the_library_exist():
    for page in PAGES:
        for name in re.findall(r"align3r_jax\.(\w+)\(", page.read_text()):
            assert callable(getattr(align3r_jax, name)), f"{page.name} calls align3r_jax.{name}"


def test_the_public_names_are_these():
    assert align3r_jax.__all__ == [
        "AlignmentConfig", "AlignmentPriors", "FlowConfig", "Frames", "KnownCameras",
        "NetworkConfig", "PairConfig", "PairPredictions", "ReconstructConfig", "Scene",
        "TermWeights", "UserError", "align", "align_implicit", "align_unrolled", "load",
        "load_scene", "read_frames", "reconstruct", "save_scene",
    ]  # fmt: skip
    assert set(align3r_jax.__all__) == set(dir(align3r_jax))
