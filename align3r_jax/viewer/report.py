"""report.html: one self-contained page that shows a result folder to a person.

No address is fetched: pictures, charts, points and the script of the 3-D view are in the page
(a content security policy forbids anything else).
"""

from __future__ import annotations

import html
import string
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from align3r_jax.findings import measures, warnings
from align3r_jax.geometry import camera
from align3r_jax.io import atomic, pointcloud, scene_folder
from align3r_jax.structs import Scene
from align3r_jax.viewer import (
    camera_sections,
    cloud_figure,
    frame_player,
    frame_strips,
    page,
    point_view,
    quality_sections,
    run_sections,
)

_NAMELESS = {"rgb", "color", "colour", "image", "images", "img", "imgs", "frames", "jpegimages"}


def write_report(folder: str | Path, rules: pointcloud.PointFilter | None = None) -> Path:
    """Writes `report.html` into a result folder, from the files in it, and returns its path.

    rules: which points the 3-D view shows (its number of points and the moving ones excepted).
    Raises UserError if the folder holds no result or cannot be written.
    """
    folder = Path(folder)
    text = render(
        scene_folder.load_scene(folder),
        scene_folder.load_summary(folder),
        prior_depth=scene_folder.load_prior_depth(folder),
        flow_images=scene_folder.load_flow_images(folder),
        true_world_from_cam=scene_folder.load_true_poses(folder),
        rules=rules,
    )
    path = folder / scene_folder.REPORT
    with atomic.told_to_user(path):
        atomic.replace_file(path, text.encode())
    return path


def render(
    scene: Scene,
    summary: dict[str, Any],
    *,
    prior_depth: np.ndarray | None = None,
    flow_images: dict[int, np.ndarray] | None = None,
    true_world_from_cam: np.ndarray | None = None,
    rules: pointcloud.PointFilter | None = None,
) -> str:
    """Returns the page. `summary` follows docs/outputs.md; every part of it may be missing.

    prior_depth: (T, Hd, Wd) the depth prior. flow_images: frame -> (H, W, 3) drawn flow.
    true_world_from_cam: (T, 4, 4) in any world; aligned to the scene by a similarity.
    rules: which points the 3-D view shows.
    """
    flow_images = flow_images or {}
    if summary.get("prior") == "plane":  # knows nothing, there is nothing to see
        prior_depth = None
    is_weak = summary.get("prior") in warnings.WEAK_PRIORS
    measured = measures.measure(scene, None if is_weak else prior_depth)
    panels = frame_player.panels(scene, prior_depth, flow_images)
    film = frame_player.make_film(panels, len(scene.names))
    meta, data = point_view.build(scene, rules or pointcloud.PointFilter(), film.frames)
    sections = [
        quality_sections.confidence(scene, measured),
        quality_sections.prior(measured),
        run_sections.errors(summary.get("errors") or {}),
        camera_sections.trajectory(scene, true_world_from_cam),
        camera_sections.intrinsics(scene, summary),
        run_sections.losses(scene, summary.get("pairs")),
        run_sections.stages(summary.get("stages") or []),
        run_sections.reproduce(summary),
    ]
    return string.Template(page.read("report.html")).substitute(
        title=html.escape(_title(summary)),
        css=page.read("report.css"),
        lead=html.escape(lead_sentence(summary)),
        facts=_facts(scene, summary),
        notes=quality_sections.warning_list(summary.get("limits") or [], measured),
        bar=frame_player.bar(film, len(scene.names)),
        panels=frame_player.grid(film),
        cloud=cloud_figure.figure(scene, meta),
        strips=frame_strips.details(scene, panels),
        sections="\n".join(section for section in sections if section),
        footer=(
            "Beside this page: <code>depth/</code>, <code>conf/</code>, <code>dynamic_mask/</code>,"
            " <code>rgb/</code>, <code>pred_traj.txt</code>, <code>pred_intrinsics.txt</code>, "
            "<code>points.ply</code>, <code>scene.glb</code>, <code>depth.mp4</code> and "
            "<code>summary.json</code>."
        ),
        scripts=cloud_figure.scripts(frame_player.script(film, scene.times), meta, data),
    )


def lead_sentence(summary: dict[str, Any]) -> str:
    """Returns the plain sentence that names predictor, prior, weights and flow of a run."""
    names = {"network": "a pairwise network", "flow": "optical flow and geometry"}
    predictor = summary.get("predictor") or "an unnamed predictor"
    by = names.get(predictor, predictor)
    weights = summary.get("weights")
    if isinstance(weights, dict) and weights.get("name"):
        by += f" ({weights['name']})"
    prior = summary.get("prior") or "none"
    depth = (
        "without a depth prior" if prior in ("none", "plane") else f"with the depth prior “{prior}”"
    )
    flow = summary.get("flow") or "none"
    motion = "" if flow == "none" else f"; optical flow ({flow}) tells what moves by itself"
    return f"Depth and cameras come from {by}, {depth}{motion}."


def _title(summary: dict[str, Any]) -> str:
    """The name of the video; of a folder of pictures also the one around it, if it says nothing."""
    path = PurePath(str(summary.get("input") or ""))
    if set(path.name) & set("*?["):
        path = path.parent
    nameless = path.name.lower() in _NAMELESS and path.parent.name
    return f"{path.parent.name}/{path.name}" if nameless else path.name or "Video"


def _facts(scene: Scene, summary: dict[str, Any]) -> str:
    height, width = scene.depth.shape[1:]
    unit = " m" if scene.metric else ""
    steps = np.linalg.norm(np.diff(scene.world_from_cam[:, :3, 3], axis=0), axis=1)
    focal = np.asarray(camera.to_original(scene.intrinsics, scene.size))[:, 0, 0]
    angle = np.degrees(np.asarray(camera.field_of_view(scene.intrinsics, height, width)))[:, 0]
    valid = scene.depth[np.isfinite(scene.depth) & (scene.depth > 0)]
    median = float(np.median(valid)) if valid.size else float("nan")
    facts = [
        ("frames", f"{len(scene.names)}"),
        ("working size (original)",
         f"{width} × {height} ({scene.size.original[1]} × {scene.size.original[0]})"),
        ("focal, original pixels", f"{np.median(focal):.0f}"),
        ("field of view, horizontal", f"{np.median(angle):.0f}°"),
        ("camera path" + ("" if unit else ", scene units"), f"{steps.sum():.3g}{unit}"),
        ("median depth" + ("" if unit else ", scene units"), f"{median:.3g}{unit}"),
        ("moving pixels", f"{100 * scene.dynamic_mask.mean():.1f} %"),
    ]  # fmt: skip
    seconds = sum(float(stage.get("seconds") or 0) for stage in summary.get("stages") or [])
    if seconds:
        facts.append(("time", run_sections.duration(seconds)))
    return "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in facts
    )
