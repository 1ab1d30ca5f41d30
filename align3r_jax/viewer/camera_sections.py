"""The sections of the report about the cameras: their path and their intrinsics."""

from __future__ import annotations

from typing import Any

import numpy as np

from align3r_jax.geometry import camera, registration
from align3r_jax.structs import Array, Scene
from align3r_jax.viewer import page, plots

MAX_DIRECTION_STROKES = 40


def trajectory(scene: Scene, true_world_from_cam: np.ndarray | None) -> str:
    """Returns the camera path from above (x, z) and from the side (z, y up), with the truth's."""
    first_from_world = np.linalg.inv(np.asarray(scene.world_from_cam[0], np.float64))
    predicted = first_from_world @ scene.world_from_cam
    paths = [("predicted", predicted, "s1")]
    note = ""
    if true_world_from_cam is not None and len(predicted) > 1:
        truth = _aligned(np.asarray(true_world_from_cam, np.float64), predicted)
        paths.append(("truth", truth, "s2 dashed"))
        note = " The truth is fitted to it by a similarity (rotation, shift, scale)."
    unit = "m" if scene.metric else "scene units"
    above, side = ([_path(name, poses, style, axes) for name, poses, style in paths]
                   for axes in ((0, 2), (2, 1)))  # fmt: skip
    right, up, forward = (f"{direction} [{unit}]" for direction in ("right", "up", "forward"))
    from_above = plots.map_chart(
        above, title="Camera path from above", x_label=right, y_label=forward
    )
    from_side = plots.map_chart(
        side, title="Camera path from the side", x_label=forward, y_label=up
    )
    return page.section("trajectory", "Camera path", (
        "<p>Axes of the first camera. The dot is the first frame, the ring the last; short strokes "
        f"are viewing directions.{note}</p>"
        f'<div class="columns"><figure><h3>From above</h3>{from_above}</figure>'
        f"<figure><h3>From the side</h3>{from_side}</figure></div>{plots.legend(above)}"
    ))  # fmt: skip


def intrinsics(scene: Scene, summary: dict[str, Any]) -> str:
    """Returns focal length, field of view and principal point of the original frames with their
    spread over the frames, and what of it was known or shared.
    """
    height, width = scene.size.original
    original = camera.to_original(scene.intrinsics, scene.size)
    matrices = np.asarray(original, np.float64)
    angle = np.degrees(np.asarray(camera.field_of_view(original, height, width), np.float64))
    rows = [
        ("Focal length along x", "px", matrices[:, 0, 0], ".1f"),
        ("Focal length along y", "px", matrices[:, 1, 1], ".1f"),
        ("Field of view, horizontal", "°", angle[:, 0], ".2f"),
        ("Field of view, vertical", "°", angle[:, 1], ".2f"),
        ("Principal point x", "px", matrices[:, 0, 2], ".1f"),
        ("Principal point y", "px", matrices[:, 1, 2], ".1f"),
    ]
    body = "".join(_row(*row) for row in rows)
    table = (
        '<div class="scroll"><table class="data"><thead><tr><th scope="col">Original frames, '
        f'{width} × {height}</th><th scope="col" class="number">Median</th>'
        '<th scope="col" class="number">Deviation</th><th scope="col" class="number">Lowest</th>'
        f'<th scope="col" class="number">Highest</th></tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )
    focal, chart = matrices[:, 0, 0], ""
    equal = bool(np.ptp(focal) <= 1e-3 * np.median(focal))
    if not equal:
        line = plots.Line("focal", np.arange(len(focal)), focal)
        drawn = plots.line_chart([line], title="Focal length over the video", x_label="frame",
                                 y_label="focal, original pixels")  # fmt: skip
        chart = f"<figure><h3>Focal length over time</h3>{drawn}</figure>"
    return page.section("intrinsics", "Intrinsics", (
        f"<p>{what_was_known(summary, equal)}</p>"
        f'<div class="columns"><figure>{table}</figure>{chart}</div>'
    ))  # fmt: skip


def what_was_known(summary: dict[str, Any], equal: bool) -> str:
    """Returns the sentences that say which intrinsics were given, shared or free (plain text).

    equal: whether the frames' focals came out the same.
    """
    known = summary.get("cameras") or {}
    total = summary.get("frames")
    sentences = []
    if known.get("intrinsics"):
        how = "held as they are" if known.get("mode") == "fixed" else "only drawn to"
        of = f" of {total}" if total else ""
        sentences.append(f"Intrinsics of {known['intrinsics']}{of} frames were given and {how}.")
    shared = ((summary.get("settings") or {}).get("alignment") or {}).get("shared_focal")
    if shared is not None and not (known.get("intrinsics") and known.get("mode") == "fixed"):
        free = (
            "Each frame could have a focal length of its own; all came out the same."
            if equal
            else "Each frame has a focal length of its own; their spread says how well it is known."
        )
        one = "One focal length is shared by all frames, so it has no spread of its own."
        sentences.append(one if shared else free)
    return " ".join(sentences) or "Whether intrinsics were given or shared is not recorded."


def _row(name: str, unit: str, values: np.ndarray, digits: str) -> str:
    figures = (np.median(values), np.std(values), values.min(), values.max())
    cells = "".join(f'<td class="number">{figure:{digits}} {unit}</td>' for figure in figures)
    return f'<tr><th scope="row">{name}</th>{cells}</tr>'


def _aligned(source: Array, target: Array) -> np.ndarray:
    """Returns the source poses carried onto the target's by a similarity."""
    parts = registration.align_poses(source.astype(np.float32), target.astype(np.float32))
    scale, rotation, translation = (np.asarray(part, np.float64) for part in parts)
    result = source.copy()
    result[:, :3, :3] = rotation @ source[:, :3, :3]
    result[:, :3, 3] = scale * source[:, :3, 3] @ rotation.T + translation
    # Cameras that stand still have no scale to fit.
    return result if np.isfinite(result).all() else source


def _path(name: str, poses: np.ndarray, style: str, axes: tuple[int, int]) -> plots.Line:
    sign = np.array([-1.0 if axis == 1 else 1.0 for axis in axes])  # y points down
    centres = poses[:, :3, 3][:, axes] * sign
    extent = float(np.linalg.norm(np.ptp(poses[:, :3, 3], axis=0)))
    step = -(-len(poses) // MAX_DIRECTION_STROKES)
    forward = poses[::step, :3, 2][:, axes] * sign * max(0.08 * extent, 1e-6)
    ticks = np.concatenate([centres[::step], centres[::step] + forward], axis=1)
    return plots.Line(name, centres[:, 0], centres[:, 1], style, ticks=ticks, ends=True)
