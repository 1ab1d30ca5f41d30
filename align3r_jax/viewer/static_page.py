"""The viewer as one HTML file: opens offline, asks no address for anything.

The report's player and 3-D view (`assets/player.js`, `cloud.js`, `cloud_controls.js`) in a page of
their own, with more points and larger. Why not viser's own export of its scene: that plays a
recording, in which no threshold, colour or kind of point can be chosen any more.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
import string
from pathlib import Path

from align3r_jax.errors import UserError
from align3r_jax.io import atomic, pointcloud
from align3r_jax.structs import Scene
from align3r_jax.viewer import cloud_figure, frame_player, layers, page, point_view

BYTES_PER_POINT = 11 * 4 / 3  # base64
LARGEST = 60e6  # bytes of points; a phone's browser gives up a little above
# Who opens a viewer turns it.
_STAND_STILL = """if (cloud && cloud.figure.querySelector('[data-control="turn"]').checked)
  cloud.figure.querySelector('[data-control="turn"]').click();"""
MOVING_SHARE = 0.4  # moving points, for each static one


@dataclasses.dataclass(frozen=True)
class Start:
    """What the page shows when it is opened. Points below `look.min_confidence` are not in it;
    everything else can be changed there.
    """

    look: layers.Look = layers.Look()
    colour: layers.Colour = "image"
    point_size: float = 1.0


def write(path: Path, scene: Scene, rules: pointcloud.PointFilter, start: Start, title: str) -> int:
    """Writes the page, whole or not at all; returns its size in bytes.

    rules: `max_points` static points and `MOVING_SHARE` times as many moving ones at most. Raises
    UserError if so many make a page that browsers do not open, or if it cannot be written.
    """
    text = render(scene, rules, start, title).encode()
    with atomic.told_to_user(path), atomic.replacing(path) as hidden:
        hidden.write_bytes(text)
    return len(text)


def render(scene: Scene, rules: pointcloud.PointFilter, start: Start, title: str) -> str:
    """Returns the page. Raises UserError as `write`."""
    most = rules.max_points or scene.depth.size
    budget = (most, max(1, round(MOVING_SHARE * most)))
    size = BYTES_PER_POINT * min(sum(budget), scene.depth.size)
    if size > LARGEST:
        raise UserError(
            f"A page of {most:,} points would be {size / 1e6:.0f} MB, and browsers open up to about"
            f" {LARGEST / 1e6:.0f}: pass --max_points="
            f"{int(LARGEST / BYTES_PER_POINT / (1 + MOVING_SHARE) / 1000) * 1000} or fewer, or "
            "show it with the live viewer, which has no such limit."
        )
    panels = frame_player.panels(scene, None, {})[:1]
    film = frame_player.make_film(panels, len(scene.names))
    rules = dataclasses.replace(rules, min_confidence=start.look.min_confidence)
    meta, data = point_view.build(scene, rules, film.frames, budget)
    return string.Template(page.read("scene_page.html")).substitute(
        title=html.escape(title),
        css=page.read("report.css") + page.read("scene_page.css"),
        cloud=cloud_figure.figure(scene, meta),
        panels=frame_player.grid(film),
        bar=frame_player.bar(film, len(scene.names)),
        scripts=cloud_figure.scripts(
            frame_player.script(film, scene.times), meta, data, _first(start), _STAND_STILL
        ),
    )


def _first(start: Start) -> str:
    """Returns JavaScript that sets the controls before they are read."""
    values = {
        "colour": start.colour,
        "gather": start.look.gather,
        # The page's slider is logarithmic; 1.5 octaves down to 2 up.
        "size": round(min(max(math.log2(start.point_size), -1.5), 2.0), 1),
    }
    checked = {
        "still": start.look.motion != "moving",
        "moving": start.look.motion != "static",
    }
    return (
        f"for (const [name, value] of Object.entries({json.dumps(values)}))\n"
        '  document.querySelector(`[data-control="${name}"]`).value = value;\n'
        f"for (const [name, value] of Object.entries({json.dumps(checked)}))\n"
        '  document.querySelector(`[data-control="${name}"]`).checked = value;\n'
    )
