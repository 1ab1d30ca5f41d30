"""The site: every page is in its contents, and docstrings become what Sphinx can read."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def conf():
    spec = importlib.util.spec_from_file_location("site_conf", ROOT / "docs/site/conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_contents(conf):
    contents = conf._contents().splitlines()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.stem}" in contents, f"{page.name} is missing in docs/site/conf.py"
    for line in contents:
        if line.startswith("docs/") and "api" not in line:
            path = ROOT / line
            assert path.with_suffix(".md").exists() or path.with_suffix(".ipynb").exists(), line


def test_docstrings_become_paragraphs_fields_and_code(conf):
    lines = [
        "E = sum_i |r_i| * w_i, see `solve.align`",
        "and `a b`s.",
        "",
        "    x = f(y)  # verbatim *here*",
        "",
        "Args:",
        "    points, more: (..., 3) in the",
        "        camera_1.",
        "    size: pixels.",
        "",
        "Returns:",
        "    (H, W),",
        "    of both.",
        "",
        "Raises:",
        "    UserError: no file.",
    ]
    conf._as_restructured_text(None, "function", "f", None, None, lines)
    assert lines == [
        "E = sum\\_i \\|r\\_i\\| \\* w\\_i, see \\ ``solve.align``\\  and \\ ``a b``\\ s.", "",
        "::", "", "        x = f(y)  # verbatim *here*", "",
        ":param points: (..., 3) in the camera\\_1.", ":param more: (..., 3) in the camera\\_1.",
        ":param size: pixels.", "",
        ":returns: (H, W), of both.", "",
        ":raises UserError: no file.", "",
    ]  # fmt: skip


def test_links_to_files_that_are_no_pages_become_their_names(conf):
    source = [
        "[a](b.md#c) [code](../align3r_jax/structs.py) [n](notebooks/x.ipynb) [w](https://a.b)"
    ]
    conf._on_source(None, "docs/python", source)
    assert source[0] == (
        "[a](b.md#c) code (`align3r_jax/structs.py`) [n](notebooks/x.md) [w](https://a.b)"
    )
