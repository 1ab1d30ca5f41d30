"""The strips of the report: a few frames side by side in each panel, for print and for a glance."""

from __future__ import annotations

import base64
import html

import numpy as np

from align3r_jax.io import preview
from align3r_jax.structs import Scene
from align3r_jax.viewer.frame_player import Panel

MAX_FRAMES = 8
STRIP_WIDTH = 1440  # pixels of a full strip
GAP = 4


def details(scene: Scene, panels: list[Panel]) -> str:
    """Returns the strips as a part of the page that opens on a click; "" for a single frame."""
    chosen = preview.even_indices(len(scene.names), MAX_FRAMES)
    if len(chosen) < 2:
        return ""
    numbers = "".join(f"<span>{t}</span>" for t in chosen)
    body = "".join(_row(panel, chosen) for panel in panels)
    return (
        f'<details class="glance"><summary>{len(chosen)} frames side by side</summary>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Strips of frames">'
        '<table class="strips"><thead><tr><th scope="col">Frame</th><td><div class="numbers">'
        f"{numbers}</div></td></tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _row(panel: Panel, chosen: np.ndarray) -> str:
    drawn = [panel.draw(int(t)) for t in chosen]
    size = next((image for image in drawn if image is not None), None)
    if size is None:
        return ""
    # The last frame has no flow to a next one; it stays black.
    images = np.stack([np.zeros_like(size) if image is None else image for image in drawn])
    width = min((STRIP_WIDTH - GAP * (MAX_FRAMES - 1)) // len(images), 480)
    picture = preview.strip(images, width, GAP)
    data = base64.b64encode(preview.encode_webp(picture)).decode()
    height, full = picture.shape[:2]
    alt = html.escape(f"{panel.name} of {len(images)} frames: {panel.text}")
    return (
        f'<tr><th scope="row">{html.escape(panel.name)}</th><td><img alt="{alt}" width="{full}" '
        f'height="{height}" src="data:image/webp;base64,{data}"></td></tr>'
    )
