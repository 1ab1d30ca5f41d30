"""The files of `assets/` (style sheet, scripts, pieces of HTML), and how pages embed data."""

from __future__ import annotations

import html
from importlib import resources


def read(name: str) -> str:
    """Returns the text of an asset."""
    return resources.files("align3r_jax.viewer").joinpath("assets", name).read_text("utf-8")


def data_element(name: str, json_text: str) -> str:
    """Returns a script element that holds JSON and cannot be ended early by what is in it."""
    safe = json_text.replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{safe}</script>'


def section(name: str, title: str, content: str) -> str:
    """Returns a section of a page with its heading; title is plain text, content HTML."""
    return (
        f'<section aria-labelledby="{name}-title"><h2 id="{name}-title">{html.escape(title)}</h2>'
        f"{content}</section>"
    )
