"""The on-disk layout of a result: written at once or not at all, and read back into a `Scene`.

`docs/outputs.md` describes every file. Everything goes into a hidden folder beside the output,
which is renamed when it is complete, so that an interrupted or failed run leaves no half result.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.geometry import camera
from align3r_jax.io import atomic, gltf, pointcloud, preview, trajectory
from align3r_jax.structs import OpticalFlow, Scene, WorkingSize

FORMAT = "align3r_jax scene, version 1"
SUMMARY = "summary.json"
REPORT = "report.html"
TRAJECTORY = "pred_traj.txt"
TRUE_TRAJECTORY = "true_traj.txt"
INTRINSICS = "pred_intrinsics.txt"
INTRINSICS_ORIGINAL = "pred_intrinsics_original.txt"
DEPTH, DEPTH_COLOUR, CONFIDENCE, MASK, RGB = "depth", "depth_colour", "conf", "dynamic_mask", "rgb"
PRIOR, FLOW = "prior", "flow"
DEPTH_SCALE = f"{DEPTH}/png_scale.json"
POINTS, GLB, VIDEO = "points.ply", "scene.glb", "depth.mp4"


def frame_file(folder: str, index: int, suffix: str) -> str:
    """Returns the path of a frame's file inside the result, `depth/frame_0007.npy`."""
    return f"{folder}/frame_{index:04d}{suffix}"


def check_output(output_dir: str | Path, overwrite: bool = False) -> Path:
    """Returns the output path if a result may go there; call it before hours of work.

    A missing or empty folder may; a folder that holds a result only with `overwrite`; anything
    else never, because overwriting removes what was there. Raises UserError otherwise.
    """
    path = Path(output_dir).resolve()
    with atomic.told_to_user(path):
        if path.exists() and not path.is_dir():
            raise UserError(f"The output {path} is a file; name a folder.")
        if path.is_dir() and any(path.iterdir()):
            if not overwrite:
                raise UserError(
                    f"The output folder {path} exists and is not empty; name another one, or pass "
                    "--overwrite to replace the result in it."
                )
            if not _is_result(path):
                raise UserError(
                    f"The output folder {path} holds files that are no earlier result, and "
                    "--overwrite would remove them; name another folder."
                )
        ancestor = next(parent for parent in path.parents if parent.exists())
        if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
            raise UserError(
                f"The output {path} cannot be written: {ancestor} is not a folder that this user "
                "may write to; name another one."
            )
    return path


def save_scene(
    scene: Scene,
    output_dir: str | Path,
    summary: dict[str, Any],
    *,
    overwrite: bool = False,
    rules: pointcloud.PointFilter | None = None,
    prior_depth: np.ndarray | None = None,
    flow: OpticalFlow | None = None,
    true_world_from_cam: np.ndarray | None = None,
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """Writes the whole result folder and returns its path.

    Args:
        scene: the result; arrays may be JAX or NumPy.
        output_dir: the folder to create; its parents are created too.
        summary: JSON-able facts of the run (schema in docs/outputs.md); a section `scene` is
            added. Numbers that are not finite become null.
        overwrite: replace an earlier result; it is removed only once the new one is complete.
        rules: which pixels become points of `points.ply` and `scene.glb`.
        prior_depth: (T, H, W) the depth prior, scene units or its own; written to `prior/`.
        flow: its fields from each frame to the next one are drawn to `flow/`.
        true_world_from_cam: (T, 4, 4) true poses in any frame and unit, for the report's plot.
        finish: called with the complete hidden folder before it is renamed (writes the report).

    Raises:
        UserError: the output exists or cannot be written, or the disk is full; nothing is left.
    """
    path = check_output(output_dir, overwrite)
    scene = _as_numpy(scene)
    with atomic.new_folder(path) as folder:
        _write_frames(folder, scene)
        _write_cameras(folder, scene, true_world_from_cam)
        _write_extras(folder, scene, prior_depth, flow)
        section = _scene_section(scene) | {"points": write_points(folder, scene, rules)}
        _write_json(folder / SUMMARY, {"format": FORMAT} | summary | {"scene": section})
        if finish is not None:
            finish(folder)
    return path


def write_points(
    folder: str | Path, scene: Scene, rules: pointcloud.PointFilter | None = None
) -> int:
    """Writes `points.ply` and `scene.glb`, each replaced when complete; returns the points' count.

    Raises UserError if they cannot be written.
    """
    folder = Path(folder)
    cloud = pointcloud.from_scene(scene, rules)
    with atomic.told_to_user(folder):
        for name, content in (
            (POINTS, pointcloud.encode_ply(cloud)),
            (GLB, gltf.encode_glb(scene, cloud)),
        ):
            atomic.replace_file(folder / name, content)
    return len(cloud)


def load_scene(folder: str | Path) -> Scene:
    """Returns the scene that `save_scene` wrote. Raises UserError if the folder holds none."""
    folder = Path(folder)
    section = load_summary(folder)["scene"]
    count = section["num_frames"]
    try:
        times, world_from_cam = trajectory.read_tum(folder / TRAJECTORY)
        return Scene(
            depth=_stack(folder, DEPTH, count, ".npy"),
            world_from_cam=np.asarray(world_from_cam, np.float32),
            intrinsics=np.asarray(trajectory.read_intrinsics(folder / INTRINSICS), np.float32),
            confidence=_stack(folder, CONFIDENCE, count, ".npy"),
            dynamic_mask=_stack(folder, MASK, count, ".png") > 127,
            colours=_stack(folder, RGB, count, ".png"),
            times=np.asarray(times, np.float64),
            pair_losses=_from_json(section["pair_losses"]),
            trace={name: _from_json(values) for name, values in section["trace"].items()},
            size=WorkingSize(**{name: v and tuple(v) for name, v in section["size"].items()}),
            names=tuple(section["names"]),
            metric=section["metric"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The result in {folder} is damaged ({error}); run the reconstruction again."
        ) from error


def load_summary(folder: str | Path) -> dict[str, Any]:
    """Returns `summary.json`. Raises UserError if the folder is not a result of ours."""
    path = Path(folder) / SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no result: {path.name} cannot be read ({error}); name the folder "
            "that was given as --output."
        ) from error
    if not isinstance(summary, dict) or summary.get("format") != FORMAT:
        raise UserError(f"{path} is not of the format {FORMAT!r}; run the reconstruction again.")
    return summary


def load_prior_depth(folder: str | Path) -> np.ndarray | None:
    """Returns the (T, H, W) float32 depth prior of a result, None if it was made without."""
    folder = Path(folder)
    if not (folder / PRIOR).is_dir():
        return None
    return _stack(folder, PRIOR, load_summary(folder)["scene"]["num_frames"], ".npy")


def load_flow_images(folder: str | Path) -> dict[int, np.ndarray]:
    """Returns frame -> (H, W, 3) uint8: the drawn flow to the next frame, where there is one."""
    files = sorted((Path(folder) / FLOW).glob("frame_*.png"))
    return {int(path.stem.removeprefix("frame_")): read_image(path, rgb=True) for path in files}


def load_true_poses(folder: str | Path) -> np.ndarray | None:
    """Returns the (T, 4, 4) true `world_from_cam` of a result, None if no truth was given."""
    path = Path(folder) / TRUE_TRAJECTORY
    return np.asarray(trajectory.read_tum(path)[1]) if path.exists() else None


def _write_frames(folder: Path, scene: Scene) -> None:
    for name in (DEPTH, DEPTH_COLOUR, CONFIDENCE, MASK, RGB):
        (folder / name).mkdir()
    valid = scene.depth[np.isfinite(scene.depth)]
    maximum = float(valid.max()) if valid.size and valid.max() > 0 else 1.0
    _write_json(
        folder / DEPTH_SCALE,
        {"depth_per_level": maximum / 65535, "maximum": maximum, "missing": 0},
    )
    scale = preview.inverse_depth_range(scene.depth)
    for t, depth in enumerate(scene.depth):
        clean = np.where(np.isfinite(depth), depth, 0).astype(np.float64)
        levels = (np.clip(clean / maximum, 0, 1) * 65535).round().astype(np.uint16)
        _save_array(folder / frame_file(DEPTH, t, ".npy"), depth)
        _save_array(folder / frame_file(CONFIDENCE, t, ".npy"), scene.confidence[t])
        for name, image in (
            (DEPTH, levels),
            (DEPTH_COLOUR, preview.colour_depth(depth, scale)),
            (MASK, scene.dynamic_mask[t].astype(np.uint8) * 255),
            (RGB, scene.colours[t]),
        ):
            (folder / frame_file(name, t, ".png")).write_bytes(preview.encode_png(image))
    side_by_side = (
        np.concatenate([colours, preview.colour_depth(depth, scale)], axis=1)
        for colours, depth in zip(scene.colours, scene.depth)
    )
    preview.write_mp4(folder / VIDEO, side_by_side, preview.playback_rate(scene.times))


def _write_cameras(folder: Path, scene: Scene, true_world_from_cam: np.ndarray | None) -> None:
    trajectory.write_tum(folder / TRAJECTORY, scene.times, scene.world_from_cam)
    trajectory.write_intrinsics(folder / INTRINSICS, scene.intrinsics)
    original = np.asarray(camera.to_original(scene.intrinsics, scene.size))
    trajectory.write_intrinsics(folder / INTRINSICS_ORIGINAL, original)
    if true_world_from_cam is not None:
        trajectory.write_tum(folder / TRUE_TRAJECTORY, scene.times, true_world_from_cam)


def _write_extras(
    folder: Path, scene: Scene, prior_depth: np.ndarray | None, flow: OpticalFlow | None
) -> None:
    if prior_depth is not None:
        (folder / PRIOR).mkdir()
        for t, depth in enumerate(np.asarray(prior_depth, np.float32)):
            _save_array(folder / frame_file(PRIOR, t, ".npy"), depth)
    if flow is None:
        return
    field_of = {tuple(pair): k for k, pair in enumerate(np.asarray(flow.pairs).tolist())}
    steps = [(t, field_of[t, t + 1]) for t in range(len(scene.names)) if (t, t + 1) in field_of]
    if not steps:
        return
    (folder / FLOW).mkdir()
    fields = [np.asarray(flow.flow[k]) for _, k in steps]
    lengths = [np.nanpercentile(np.linalg.norm(field, axis=-1), 98) for field in fields]
    for (t, _), field in zip(steps, fields):
        picture = preview.encode_png(preview.colour_flow(field, max(lengths)))
        (folder / frame_file(FLOW, t, ".png")).write_bytes(picture)


def _scene_section(scene: Scene) -> dict[str, Any]:
    return {
        "num_frames": len(scene.names),
        "metric": scene.metric,
        "size": vars(scene.size),
        "names": list(scene.names),
        "pair_losses": scene.pair_losses,
        "trace": scene.trace,
    }


def _as_numpy(scene: Scene) -> Scene:
    wanted = {"depth": np.float32, "world_from_cam": np.float32, "intrinsics": np.float32,
              "confidence": np.float32, "dynamic_mask": bool, "colours": np.uint8,
              "times": np.float64, "pair_losses": np.float32}  # fmt: skip
    fields: dict[str, Any] = {
        name: np.asarray(getattr(scene, name), dtype) for name, dtype in wanted.items()
    }
    fields["trace"] = {name: np.asarray(v, np.float32) for name, v in scene.trace.items()}
    return dataclasses.replace(scene, **fields)


def _stack(folder: Path, name: str, count: int, suffix: str) -> np.ndarray:
    """Returns the (T, ...) array of a folder's frames; colour images as RGB."""
    frames = []
    for t in range(count):
        path = folder / frame_file(name, t, suffix)
        frames.append(np.load(path) if suffix == ".npy" else read_image(path, rgb=name == RGB))
    return np.stack(frames)


def read_image(path: Path, rgb: bool) -> np.ndarray:
    """Returns a picture of a result, (H, W, 3) uint8 RGB or (H, W); ValueError if it is none."""
    flag = cv2.IMREAD_COLOR_RGB if rgb else cv2.IMREAD_GRAYSCALE
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flag)
    if image is None:
        raise ValueError(f"{path.name} is not an image")
    return image


def _is_result(folder: Path) -> bool:
    try:
        load_summary(folder)
    except UserError:
        return False
    return True


def _save_array(path: Path, array: np.ndarray) -> None:
    # Not np.save(path): on a full disk its error lacks the reason.
    memory = io.BytesIO()
    np.save(memory, array)
    path.write_bytes(memory.getvalue())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(_json_able(value), indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _json_able(value: Any) -> Any:
    """Plain lists and dictionaries; numbers that are not finite (JSON has none) become None."""
    if isinstance(value, dict):
        return {str(key): _json_able(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_able(item) for item in value]
    if hasattr(value, "tolist"):  # arrays and NumPy scalars
        return _json_able(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def _from_json(values: list[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], np.float32)
