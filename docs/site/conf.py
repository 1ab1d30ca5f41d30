"""The site of `make docs`: Sphinx over the project's own pages, and a reference from docstrings.

Source folder is the project's root, so that links between README and pages are the same as on a
repository page. Sphinx (BSD), MyST (MIT, Markdown) and Furo (MIT, one theme, no requests to other
hosts) are released regularly and small; MkDocs 1 and its Material theme are no longer maintained,
and pdoc knows no pages beside the reference. The docstrings are Markdown in plain words with
Google's sections, which `_as_restructured_text` turns into what Sphinx expects (Napoleon leaves the
text between them as it is, which is not reStructuredText).
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
project, author, copyright = "align3r_jax", "the authors of align3r_jax", "Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme, html_title, html_static_path = "furo", "align3r_jax", []
html_copy_source = html_show_sphinx = html_show_copyright = False
root_doc = "README"
include_patterns = [
    "README.md", "WORKSPACE.md", "docs/*.md", "docs/api/*.rst", "docs/notebooks/*.md",
    "data/README.md", "experiments/README.md",
]  # fmt: skip
myst_heading_anchors = 4
myst_enable_extensions = ["html_image"]
autodoc_member_order, autodoc_typehints, autodoc_typehints_format = "bysource", "signature", "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "undoc-members": False}

_PAGES = {
    "Start": ["docs/python", "docs/notebooks/sample_clip", "docs/conventions", "docs/outputs",
              "docs/viewer"],
    "Reconstruct": ["docs/weights", "docs/alignment", "docs/long_videos", "docs/real_time",
                    "docs/pods",
                    "docs/troubleshooting", "docs/coming_from_pytorch"],
    "Train and measure": ["docs/training", "docs/training_data", "docs/scaling",
                          "docs/evaluation", "docs/performance"],
    "Code": ["docs/api/modules", "WORKSPACE", "data/README", "experiments/README"],
}  # fmt: skip


def _contents() -> str:
    """The tables of contents that README gets on the site; every other page must be named here."""
    trees = []
    for caption, pages in _PAGES.items():
        lines = "\n".join(pages)
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n")
    return "\n" + "\n".join(trees)


def _on_source(app, name: str, source: list[str]) -> None:
    """README names the pages; links to files that are no pages become names of files."""
    if name == root_doc:
        source[0] += _contents()

    def kept(match: re.Match) -> str:
        text, target = match.groups()
        path = (ROOT / Path(name).parent / target.split("#")[0]).resolve()
        is_page = path.suffix == ".md" or "://" in target or target.startswith("#")
        if path.suffix == ".ipynb":
            return f"[{text}]({target.removesuffix('.ipynb')}.md)"
        return match.group(0) if is_page else f"{text} (`{path.relative_to(ROOT)}`)"

    source[0] = re.sub(r"(?<!!)\[([^\]\[]+)\]\(([^)\s]+)\)", kept, source[0])


def _as_restructured_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Paragraphs become one line each, arguments fields; indented paragraphs are verbatim."""
    result: list[str] = []
    section = ""
    for paragraph in "\n".join(lines).strip("\n").split("\n\n"):
        rows = [row for row in paragraph.split("\n") if row.strip()]
        while rows:
            if match := re.fullmatch(r"(Args|Returns|Raises):", rows[0]):
                section, rows = match.group(1), rows[1:]
                continue
            if section and rows[0].startswith("    "):
                end = next((k for k, row in enumerate(rows) if row[0] != " "), len(rows))
                result += _fields(section, rows[:end])
            elif rows[0].startswith("  "):
                end = len(rows)
                result += ["::", "", *(f"    {row}" for row in rows), ""]
            else:
                section = ""
                starts = [k for k, row in enumerate(rows) if k and row.startswith(("* ", "- "))]
                starts += [k for k, row in enumerate(rows) if row == "Args:" or row == "Returns:"]
                end = min(starts, default=len(rows))
                result += [_inline(" ".join(row.strip() for row in rows[:end])), ""]
            rows = rows[end:]
    lines[:] = result


def _fields(section: str, rows: list[str]) -> list[str]:
    """Fields of one of Google's sections; deeper rows go on with the one before."""
    texts: list[str] = []
    for row in rows:
        if texts and (row.startswith("     ") or section == "Returns"):
            texts[-1] += " " + row.strip()
        else:
            texts.append(row.strip())
    fields = []
    for text in texts:
        name, colon, rest = text.partition(": ")
        if section == "Returns" or not colon:
            fields.append(f":{'returns' if section == 'Returns' else 'raises'}: {_inline(text)}")
        else:
            kind = "param" if section == "Args" else "raises"
            fields += [f":{kind} {one.strip()}: {_inline(rest)}" for one in name.split(",")]
    return [*fields, ""]


def _inline(text: str) -> str:
    """Text in backticks is code; all other characters mean themselves."""
    parts = re.split(r"(`+[^`]+`+)", text)
    for k, part in enumerate(parts):
        if k % 2:
            after = parts[k + 1][:1]
            parts[k] = f"\\ ``{part.strip('`').strip()}``" + ("\\ " if after else "")
        else:
            parts[k] = re.sub(r"([\\*|`_])", r"\\\1", part)
    return re.sub(r"^([-+]|\w{1,2}[.)]|\(\w+\)|#\.|\.\.|::?)(?=\s|$)", r"\\\1", "".join(parts))


def _skip(app, what, name, obj, skip, options) -> bool | None:
    """What dataclasses and Flax add to every class says nothing about this one."""
    return True if what == "class" and name in ("replace", "parent", "scope") else None


def _public_names_are_aliases(app, env) -> list:
    """References go to where a thing is defined; the package's page names it a second time."""
    objects = env.domains["py"].objects
    for name, entry in list(objects.items()):
        if re.fullmatch(r"align3r_jax\.\w+", name) and entry.objtype != "module":
            objects[name] = entry._replace(aliased=True)
    return []


def _notebook() -> None:
    """Writes the notebook as a page: its text, and its code as blocks."""
    folder = ROOT / "docs" / "notebooks"
    for path in folder.glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        texts = [
            "".join(cell["source"]) if cell["cell_type"] == "markdown"
            else "```python\n" + "".join(cell["source"]) + "\n```"
            for cell in cells
        ]  # fmt: skip
        path.with_suffix(".md").write_text("\n\n".join(texts) + "\n")


def _front_page(app, error) -> None:
    """The site's folder opens at README."""
    if error is None and app.builder.name == "html":
        page = '<!doctype html><meta http-equiv="refresh" content="0; url=README.html">'
        (Path(app.outdir) / "index.html").write_text(page + '<a href="README.html">README</a>\n')


def setup(app) -> None:
    """Called by Sphinx."""
    _notebook()
    app.connect("source-read", _on_source)
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=100)
    app.connect("autodoc-skip-member", _skip)
    app.connect("env-updated", _public_names_are_aliases)
    app.connect("build-finished", _front_page)
