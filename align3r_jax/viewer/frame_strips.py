"""The strips of the report: the same few frames as input, depth, mask, confidence, one row each."""

from __future__ import annotations

import base64
import html

import numpy as np

from align3r_jax.io import preview
from align3r_jax.structs import Scene

MAX_FRAMES = 8
STRIP_WIDTH = 1760  # pixels of a full strip; twice what most screens show
GAP = 4


def section(
    scene: Scene, prior_depth: np.ndarray | None, flow_images: dict[int, np.ndarray]
) -> str:
    """Returns the HTML section.

    prior_depth: (T, Hd, Wd) or None; drawn on its own range, since its scale is its own.
    flow_images: frame -> (H, W, 3) uint8; the row is left out if a chosen frame has none.
    """
    chosen = preview.even_indices(len(scene.names), MAX_FRAMES)
    depth_scale = preview.inverse_depth_range(scene.depth)
    rows = [
        ("Input", scene.colours[chosen], "input frames"),
        ("Depth", preview.colour_depth(scene.depth[chosen], depth_scale),
         "depth maps, near bright, far dark"),
    ]  # fmt: skip
    if prior_depth is not None:
        scale = preview.inverse_depth_range(prior_depth)
        rows.append(("Depth prior", preview.colour_depth(prior_depth[chosen], scale),
                     "depth prior, near bright, far dark"))  # fmt: skip
    rows.append(
        ("Motion mask", preview.overlay_mask(scene.colours[chosen], scene.dynamic_mask[chosen]),
         "input frames with what moves by itself in red")
    )  # fmt: skip
    drawn = [flow_images.get(int(t)) for t in chosen]
    # The last frame has no flow to a next one; it stays black.
    if flow_images and all(image is not None for image in drawn[:-1]):
        size = next(image for image in drawn if image is not None)
        shown = [np.zeros_like(size) if image is None else image for image in drawn]
        rows.append(("Optical flow", np.stack(shown), "flow to the next frame, hue is direction"))
    rows.append(("Confidence", preview.colour_confidence(scene.confidence[chosen]),
                 "confidence, bright is high"))  # fmt: skip

    numbers = "".join(f"<span>{t}</span>" for t in chosen)
    body = "".join(_row(name, images, text) for name, images, text in rows)
    moving = 100 * float(scene.dynamic_mask.mean())
    return (
        '<section aria-labelledby="frames-title"><h2 id="frames-title">Frames</h2>'
        "<p>Depth is coloured by inverse depth, near bright and far dark, on one scale for the "
        "whole video. Red marks what moves by itself "
        f"({moving:.1f} % of all pixels).</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Strips of frames">'
        f'<table class="strips"><thead><tr><th scope="col">Frame</th><td><div class="numbers">'
        f"{numbers}</div></td></tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _row(name: str, images: np.ndarray, text: str) -> str:
    width = min((STRIP_WIDTH - GAP * (MAX_FRAMES - 1)) // len(images), 480)
    picture = preview.strip(images, width, GAP)
    data = base64.b64encode(preview.encode_jpeg(picture)).decode()
    height, full = picture.shape[:2]
    alt = html.escape(f"Strip of {len(images)} {text}")
    return (
        f'<tr><th scope="row">{html.escape(name)}</th><td><img alt="{alt}" width="{full}" '
        f'height="{height}" src="data:image/jpeg;base64,{data}"></td></tr>'
    )
