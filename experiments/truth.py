"""The truth that lies beside a procedural video, brought to the frames of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.evaluation import summary
from align3r_jax.geometry import camera
from align3r_jax.io import preprocess
from align3r_jax.structs import Frames, Scene


@dataclasses.dataclass(frozen=True)
class Truth:
    """depth, dynamic_mask: (T, H, W) at working size. world_from_cam: (T, 4, 4), intrinsics:
    (T, 3, 3) pixels of the working size."""

    depth: np.ndarray
    dynamic_mask: np.ndarray
    world_from_cam: np.ndarray
    intrinsics: np.ndarray


def load(path: str | None, video: str, frames: Frames) -> Truth | None:
    """Returns the truth of `path`, or of `VIDEO.truth.npz` if it is there; None without one.

    Frames are matched by time. Raises UserError if the file does not fit the video.
    """
    file = Path(path) if path else Path(video).with_suffix(".truth.npz")
    if not file.is_file():
        if path:
            raise UserError(f"The truth file {file} does not exist; drop --truth or correct it.")
        return None
    with np.load(file, allow_pickle=False) as content:
        wanted = {"depth", "world_from_cam", "intrinsics", "dynamic_mask", "times"}
        missing = sorted(wanted - set(content.files))
        if missing:
            raise UserError(f"The truth file {file} lacks {', '.join(missing)}.")
        arrays = {name: content[name] for name in wanted}
    times = arrays["times"]
    nearest = np.abs(times[None] - np.asarray(frames.times)[:, None]).argmin(axis=1)
    spacing = np.median(np.diff(times)) if len(times) > 1 else 1.0
    if np.abs(times[nearest] - frames.times).max() > spacing / 2:
        raise UserError(
            f"The truth file {file} covers {times[0]:.2f} to {times[-1]:.2f} s, but the frames "
            f"{frames.times[0]:.2f} to {frames.times[-1]:.2f} s; it belongs to another video."
        )
    depth = arrays["depth"][nearest].astype(np.float32)
    mask = arrays["dynamic_mask"][nearest].astype(np.float32)
    original = frames.size.original
    intrinsics = arrays["intrinsics"][nearest].astype(np.float64)
    intrinsics[:, :2] *= (np.array(original[::-1]) / np.array(depth.shape[:0:-1]))[:, None]
    return Truth(
        depth=np.stack([preprocess.depth_to_working(d, frames.size) for d in depth]),
        dynamic_mask=np.stack([preprocess.depth_to_working(m, frames.size) for m in mask]) > 0.5,
        world_from_cam=arrays["world_from_cam"][nearest].astype(np.float64),
        intrinsics=np.asarray(camera.to_working(intrinsics, frames.size)),
    )


def errors(scene: Scene, truth: Truth, prior_depth: np.ndarray | None = None) -> dict[str, dict]:
    """Returns measure -> value, unit and trivial baseline, as `summary.json` holds them."""
    found = summary.evaluate_scene(
        np.asarray(scene.depth),
        np.asarray(scene.world_from_cam),
        truth.depth,
        truth.world_from_cam,
        dynamic_mask=np.asarray(scene.dynamic_mask),
        truth_dynamic_mask=truth.dynamic_mask,
        prior_depth=prior_depth,
        intrinsics=np.asarray(scene.intrinsics),
        truth_intrinsics=truth.intrinsics,
    )
    table = {
        "ATE": ("ate", "m", "standing_ate", "standing camera", "lower"),
        "rotation error per step": (
            "rotation_error_deg", "deg", "standing_rotation_error_deg", "standing camera", "lower",
        ),
        "depth Abs Rel, one scale": ("abs_rel", "", "constant_abs_rel", "constant plane", "lower"),
        "motion mask IoU": ("mask_iou", "", None, "", "higher"),
        "focal / true focal": ("focal_ratio", "", None, "", "closer to 1"),
    }  # fmt: skip
    entries = {}
    for name, (key, unit, baseline, baseline_name, better) in table.items():
        if key not in found:
            continue
        entry = {"value": found[key], "better": better}
        if unit:
            entry["unit"] = unit
        if baseline is not None:
            entry |= {"baseline": found[baseline], "baseline_name": baseline_name}
        entries[name] = entry
    if "prior_abs_rel" in found:
        entries["depth Abs Rel of the prior"] = {"value": found["prior_abs_rel"]}
    return entries


def sentence(name: str, entry: dict) -> str:
    """Returns an entry of `errors` as a line of text."""
    unit = f" {entry['unit']}" if entry.get("unit") else ""
    text = f"  {name}: {entry['value']:.4g}{unit}"
    if "baseline" in entry:
        text += f" ({entry['baseline_name']}: {entry['baseline']:.4g}{unit})"
    return text
