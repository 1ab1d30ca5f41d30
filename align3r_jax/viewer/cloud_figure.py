"""The 3-D view as a piece of a page: the figure with its controls, and the scripts behind it."""

from __future__ import annotations

import html
import json
import string
from typing import Any

from align3r_jax.structs import Scene
from align3r_jax.viewer import page


def figure(scene: Scene, meta: dict[str, Any]) -> str:
    """Returns the HTML of the view and its controls; meta: of `point_view.build`."""
    moving = meta["movingStarts"][-1] - meta["movingStarts"][0]
    caption = (
        "Drag to turn; once clicked, scroll to zoom, or pinch; shift-drag or two fingers move it. "
        "Keys: arrows turn, + and − zoom, space plays. The wire pyramids are the cameras, blue "
        "first, red last; the yellow one took the frame above. "
    )
    if moving:
        caption += "What moves by itself is shown only at its own frame. "
    if not meta["points"]:
        caption += "No pixel was confident enough to become a point. "
    label = (
        f"Turning point cloud of {meta['points']:,} points with the path of "
        f"{len(scene.names)} cameras"
    )
    return string.Template(page.read("cloud.html")).substitute(
        label=html.escape(label), caption=html.escape(caption)
    )


def scripts(film: str, meta: dict[str, Any], data: str, before: str = "", after: str = "") -> str:
    """Returns the script elements at the end of a page.

    film: of `frame_player.script`. meta, data: of `point_view.build`. before, after: JavaScript
    that is run before the controls are read, and at the very end.
    """
    values = json.dumps(meta, separators=(",", ":"), allow_nan=False)
    player, cloud, controls = (page.read(f"{n}.js") for n in ("player", "cloud", "cloud_controls"))
    code = "\n".join(part for part in (before, player, cloud, controls, after) if part)
    return (
        f"{film}\n{page.data_element('cloud-meta', values)}\n"
        f'<script type="text/plain" id="cloud-data">{data}</script>\n<script>\n{code}</script>'
    )
