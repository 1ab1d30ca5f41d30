"""The player of the report: input, depth, mask and more, frame by frame, all in step.

The pictures sit in the page as WebP and share one budget of bytes, so that the page stays small
for any video: first they get smaller, then only every n-th frame is shown, and the page says so.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import math
import string
from collections.abc import Callable

import cv2
import numpy as np

from align3r_jax.io import preview
from align3r_jax.structs import Scene
from align3r_jax.viewer import page

BUDGET = 7_500_000  # characters of base64 of all pictures together
MAX_FRAMES = 200  # more cost time to encode and show nobody more
WIDTHS = (480, 400, 320, 256, 192)  # of a picture, pixels; never larger than the frame itself
SMOOTH = 96  # frames to keep before pictures are kept large
QUALITY = 72
_PROBES = 4  # frames encoded to find out how large pictures are


@dataclasses.dataclass(frozen=True)
class Panel:
    """draw(t) gives (H, W, 3) uint8 RGB of frame t, or None where there is no such picture."""

    key: str
    name: str
    text: str
    draw: Callable[[int], np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Film:
    """frames: the numbers of those shown, every `step`-th. pictures: per panel one base64 WebP for
    each of them, None where there is none. size: width, height of the pictures."""

    frames: np.ndarray
    step: int
    size: tuple[int, int]
    panels: list[Panel]
    pictures: dict[str, list[str | None]]


def panels(
    scene: Scene, prior_depth: np.ndarray | None, flow_images: dict[int, np.ndarray]
) -> list[Panel]:
    """Returns what can be shown of a scene.

    prior_depth: (T, Hd, Wd) or None; drawn on its own range, since its scale is its own.
    flow_images: frame -> (H, W, 3) uint8 drawn flow.
    """
    depth_range = preview.inverse_depth_range(scene.depth)
    logarithm = np.log(np.clip(np.nan_to_num(scene.confidence[:, ::4, ::4], nan=1.0), 1.0, 1e30))
    sure = math.exp(float(np.percentile(logarithm, 98)))
    result = [
        Panel("input", "Input", "the frame", lambda t: scene.colours[t]),
        Panel("depth", "Depth", "near bright, far dark",
              lambda t: preview.colour_depth(scene.depth[t], depth_range)),
        Panel("mask", "Motion mask", "what moves by itself is red",
              lambda t: preview.overlay_mask(scene.colours[t], scene.dynamic_mask[t])),
        Panel("confidence", "Confidence", "bright is sure",
              lambda t: preview.colour_confidence(scene.confidence[t], sure)),
    ]  # fmt: skip
    if prior_depth is not None:
        prior, prior_range = prior_depth, preview.inverse_depth_range(prior_depth)
        result.append(Panel("prior", "Depth prior", "before alignment; its own scale",
                            lambda t: preview.colour_depth(prior[t], prior_range)))  # fmt: skip
    if flow_images:
        result.append(Panel("flow", "Optical flow", "to the next frame; hue is direction",
                            flow_images.get))  # fmt: skip
    return result


def make_film(shown: list[Panel], num_frames: int) -> Film:
    """Returns the pictures of as many frames as `BUDGET` and `MAX_FRAMES` allow."""
    probes = preview.even_indices(num_frames, _PROBES)
    wanted = min(num_frames, SMOOTH)
    first = shown[0].draw(0)
    assert first is not None, "the first panel shows every frame"
    height, full = first.shape[:2]
    for width in sorted({min(width, full) for width in WIDTHS}, reverse=True):
        size = (width, max(1, round(height * width / full)))
        cost = sum(len(_picture(panel, t, size) or "") for panel in shown for t in probes)
        affordable = max(1, int(0.9 * BUDGET * len(probes) / cost))
        if affordable >= wanted:
            break
    step = math.ceil(num_frames / min(affordable, MAX_FRAMES))
    frames = np.arange(0, num_frames, step)
    pictures = {panel.key: [_picture(panel, int(t), size) for t in frames] for panel in shown}
    # The probes may have been the simple frames.
    while len(frames) > 1 and sum(len(p or "") for row in pictures.values() for p in row) > BUDGET:
        frames, step = frames[::2], 2 * step
        pictures = {key: row[::2] for key, row in pictures.items()}
    return Film(frames, step, size, shown, pictures)


def bar(film: Film, num_frames: int) -> str:
    """Returns the HTML of the controls that play all panels and the 3-D view."""
    return string.Template(page.read("player.html")).substitute(
        last=len(film.frames) - 1, hidden="" if len(film.frames) > 1 else "hidden",
        note=html.escape(subsampling_note(film, num_frames)),
    )  # fmt: skip


def subsampling_note(film: Film, num_frames: int) -> str:
    """Returns the sentence that says which frames are in the page, "" if all are."""
    if film.step == 1:
        return ""
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(film.step % 10, "th")
    suffix = "th" if film.step % 100 in (11, 12, 13) else suffix
    return (
        f"To keep this page small it shows every {film.step}{suffix} of the {num_frames} frames; "
        "all of them are in the folders beside it."
    )


def grid(film: Film) -> str:
    """Returns the HTML of the panels, one canvas each, all of one size."""
    width, height = film.size
    figures = "".join(
        f'<figure class="panel"><canvas data-panel="{panel.key}" width="{width}" '
        f'height="{height}" role="img" aria-label="{html.escape(panel.name)}"></canvas>'
        f"<figcaption><b>{html.escape(panel.name)}</b> {html.escape(panel.text)}</figcaption>"
        "</figure>"
        for panel in film.panels
    )
    return (
        '<div class="panels" data-control="panels" tabindex="0" role="group" aria-label="Pictures '
        'of one frame. Space plays, arrow keys step, Home and End go to the first and the last '
        f'frame.">{figures}</div>'
    )  # fmt: skip


def script(film: Film, times: np.ndarray) -> str:
    """Returns the data as `assets/player.js` reads them."""
    times = np.asarray(times, np.float64)
    rate = preview.playback_rate(times) / film.step
    data = {
        "frames": film.frames.tolist(),
        "last": len(times) - 1,
        "times": np.round(np.nan_to_num(times[film.frames] - times[0]), 3).tolist(),
        "fps": max(rate, 2.0),
        "names": {panel.key: panel.name for panel in film.panels},
        "pictures": film.pictures,
    }
    return page.data_element("film-data", json.dumps(data, separators=(",", ":")))


def _picture(panel: Panel, t: int, size: tuple[int, int]) -> str | None:
    image = panel.draw(int(t))
    if image is None:
        return None
    method = cv2.INTER_AREA if size[0] < image.shape[1] else cv2.INTER_LINEAR
    small = cv2.resize(image, size, interpolation=method)
    return base64.b64encode(preview.encode_webp(small, QUALITY)).decode()
