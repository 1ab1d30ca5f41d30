"""The formats that results are exported to: what each writes, and which options it heeds."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from align3r_jax.io import (
    colmap_export,
    depth_files,
    export_frames,
    gltf,
    nerfstudio,
    point_budget,
    point_tracks,
    pointcloud,
    preview,
    trajectory,
)
from align3r_jax.io.export_frames import ExportFrame, Resolution
from align3r_jax.structs import Scene

STATIC, DYNAMIC, BOTH = "static", "dynamic", "both"
RESOLUTION, SPLIT, POINTS = "resolution", "split", "points"  # options, see `Format.uses`
_LEVELS = 65535


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What is exported.

    resolution: of pictures, depth and intrinsics. split: what stands still, what moves by itself,
    or both; auto: what suits each format (`Format.split`). points: at most so many of what stands
    still and so many of what moves, spread evenly over space. rules: which pixels may become
    points; its `dynamic` and `max_points` do not count.
    """

    resolution: Resolution = "network"
    split: Literal["auto", "static", "dynamic", "both"] = "auto"
    points: int = 200_000
    rules: pointcloud.PointFilter = pointcloud.PointFilter()


@dataclasses.dataclass(frozen=True)
class Job:
    """The scene to export, and what several formats share of it."""

    scene: Scene
    options: ExportOptions
    source: str | Path | None = None

    @functools.cached_property
    def intrinsics(self) -> np.ndarray:
        """(T, 3, 3) float64, pixels of the exported frames."""
        return export_frames.intrinsics(self.scene, self.options.resolution)

    @functools.cached_property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the exported frames."""
        return export_frames.image_size(self.scene, self.options.resolution)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Of the frames' files, without suffix."""
        return export_frames.file_names(self.scene)

    @functools.cached_property
    def values_per_unit(self) -> float:
        """Of depth as 16-bit PNG: 1000 (millimetres, if metric) where that is fine enough and
        nothing is too far for it, else the largest depth becomes 65535.
        """
        depth = np.asarray(self.scene.depth)
        depth = depth[np.isfinite(depth) & (depth > 0)]
        farthest, middle = (depth.max(), np.median(depth)) if depth.size else (1.0, 1.0)
        scale = depth_files.DEFAULT_SCALE
        fits = farthest * scale <= _LEVELS and (self.scene.metric or middle * scale >= 500)
        return scale if fits else float(_LEVELS / farthest)

    @functools.cached_property
    def static(self) -> pointcloud.PointCloud:
        """Points of what stands still."""
        return self._cloud("drop")

    @functools.cached_property
    def dynamic(self) -> pointcloud.PointCloud:
        """Points of what moves by itself, each where it was in its own frame."""
        return self._cloud("only")

    def clouds(self, split: str) -> dict[str, pointcloud.PointCloud]:
        """Returns the points of `split`: static, dynamic, or one cloud of each."""
        parts = (STATIC, DYNAMIC) if split == BOTH else (split,)
        return {part: getattr(self, part) for part in parts}

    def _cloud(self, dynamic: Literal["drop", "only"]) -> pointcloud.PointCloud:
        rules = dataclasses.replace(self.options.rules, dynamic=dynamic)
        return point_budget.from_scene(self.scene, self.options.points, rules)


class Format(NamedTuple):
    """One format of the registry.

    text: for people. split: what `auto` means. uses: the options that make a difference.
    whole(folder, job, split): writes what is written once, returns facts for `export.json`.
    frame(folder, job, split, frame): writes what belongs to one frame; None: nothing does.
    """

    text: str
    split: str
    uses: frozenset[str]
    whole: Callable[[Path, Job, str], dict[str, Any]]
    frame: Callable[[Path, Job, str, ExportFrame], None] | None = None


def _colmap(folder: Path, job: Job, split: str, *, binary: bool) -> dict[str, Any]:
    clouds = job.clouds(split)
    cloud = pointcloud.join(list(clouds.values()))
    moving = np.repeat([part == DYNAMIC for part in clouds], [len(c) for c in clouds.values()])
    model = colmap_export.Model(
        names=tuple(f"{name}.png" for name in job.names),
        image_size=job.image_size,
        intrinsics=job.intrinsics,
        world_from_cam=job.scene.world_from_cam,
        cloud=cloud,
        tracks=point_tracks.find(job.scene, cloud, job.options.rules, moving=moving),
    )
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    for name, content in colmap_export.encode(model, binary=binary).items():
        (sparse / name).write_bytes(content)
    return {"points": len(cloud), "observations": len(model.tracks.point)}


def _colmap_frame(folder: Path, job: Job, split: str, frame: ExportFrame) -> None:
    name = f"{job.names[frame.index]}.png"
    _file(folder, "images", name).write_bytes(preview.encode_png(frame.image))
    _write_mask(folder, f"{name}.png", split, frame)


def _nerfstudio(folder: Path, job: Job, split: str) -> dict[str, Any]:
    cloud = pointcloud.join(list(job.clouds(split).values()))
    (folder / "points.ply").write_bytes(pointcloud.encode_ply(cloud))
    files = []
    for name in job.names:
        paths = {"file_path": f"images/{name}.png", "depth_file_path": f"depth/{name}.png"}
        files.append(paths if split == BOTH else paths | {"mask_path": f"masks/{name}.png"})
    extra = {
        "ply_file_path": "points.ply",
        "depth_unit_scale_factor": 1 / job.values_per_unit,
    }
    content = nerfstudio.encode(
        job.intrinsics, job.scene.world_from_cam, job.image_size, files, extra
    )
    (folder / "transforms.json").write_bytes(content)
    return {"points": len(cloud), "depth_values_per_unit": job.values_per_unit}


def _nerfstudio_frame(folder: Path, job: Job, split: str, frame: ExportFrame) -> None:
    name = f"{job.names[frame.index]}.png"
    _file(folder, "images", name).write_bytes(preview.encode_png(frame.image))
    _write_mask(folder, name, split, frame)
    depth = _part_of_depth(frame, split)
    depth_files.write_depth(_file(folder, "depth", name), depth, scale=job.values_per_unit)


def _ply(folder: Path, job: Job, split: str) -> dict[str, Any]:
    clouds = job.clouds(split)
    for part, cloud in clouds.items():
        (folder / f"points_{part}.ply").write_bytes(pointcloud.encode_ply(cloud))
    return {"points": {part: len(cloud) for part, cloud in clouds.items()}}


def _glb(folder: Path, job: Job, split: str) -> dict[str, Any]:
    clouds = job.clouds(split)
    named = {f"points_{part}": cloud for part, cloud in clouds.items()}
    (folder / "scene.glb").write_bytes(gltf.encode_glb(job.scene, named))
    return {"points": {part: len(cloud) for part, cloud in clouds.items()}}


def _tum(folder: Path, job: Job, split: str) -> dict[str, Any]:
    trajectory.write_tum(folder / "trajectory.txt", job.scene.times, job.scene.world_from_cam)
    return {"poses": len(job.names)}


def _kitti(folder: Path, job: Job, split: str) -> dict[str, Any]:
    trajectory.write_kitti(folder / "poses.txt", job.scene.world_from_cam)
    np.savetxt(folder / "times.txt", np.asarray(job.scene.times, np.float64), fmt="%.6f")
    return {"poses": len(job.names)}


def _depth(folder: Path, job: Job, split: str, *, suffix: str) -> dict[str, Any]:
    trajectory.write_intrinsics(folder / "intrinsics.txt", job.intrinsics)
    sidecar: dict[str, Any] = {"inverse": False, "metric": bool(job.scene.metric)}
    if suffix == ".png":
        sidecar["scale"] = job.values_per_unit
    (folder / depth_files.SIDECAR).write_text(json.dumps(sidecar) + "\n", encoding="utf-8")
    return {"frames": len(job.names)}


def _depth_frame(folder: Path, job: Job, split: str, frame: ExportFrame, *, suffix: str) -> None:
    depth_files.write_depth(
        folder / f"{job.names[frame.index]}{suffix}",
        _part_of_depth(frame, split),
        focal=float(job.intrinsics[frame.index, 0, 0]),
        scale=job.values_per_unit,
    )


def _part_of_depth(frame: ExportFrame, split: str) -> np.ndarray:
    if split == BOTH:
        return frame.depth
    return np.where(frame.dynamic == (split == DYNAMIC), frame.depth, np.float32(np.nan))


def _write_mask(folder: Path, name: str, split: str, frame: ExportFrame) -> None:
    """255 where the picture shows what `split` names, 0 where it is to be ignored."""
    if split != BOTH:
        used = np.where(frame.dynamic == (split == DYNAMIC), 255, 0).astype(np.uint8)
        _file(folder, "masks", name).write_bytes(preview.encode_png(used))


def _file(folder: Path, kind: str, name: str) -> Path:
    (folder / kind).mkdir(exist_ok=True)
    return folder / kind / name


def _depth_format(text: str, suffix: str) -> Format:
    return Format(
        text, BOTH, frozenset({RESOLUTION, SPLIT}),
        functools.partial(_depth, suffix=suffix), functools.partial(_depth_frame, suffix=suffix),
    )  # fmt: skip


_ALL = frozenset({RESOLUTION, SPLIT, POINTS})
_CLOUD = frozenset({SPLIT, POINTS})
FORMATS: dict[str, Format] = {
    "colmap": Format(
        "COLMAP model as text, with pictures", STATIC, _ALL,
        functools.partial(_colmap, binary=False), _colmap_frame,
    ),
    "colmap_bin": Format(
        "COLMAP model in binary, with pictures", STATIC, _ALL,
        functools.partial(_colmap, binary=True), _colmap_frame,
    ),
    "nerfstudio": Format(
        "transforms.json with pictures, depth and points", STATIC, _ALL, _nerfstudio,
        _nerfstudio_frame,
    ),
    "ply": Format("coloured points, world frame", BOTH, _CLOUD, _ply),
    "glb": Format("glTF 2.0: coloured points, cameras and their path", BOTH, _CLOUD, _glb),
    "tum": Format("trajectory: t x y z qx qy qz qw", BOTH, frozenset(), _tum),
    "kitti": Format("trajectory: three rows of the pose, times apart", BOTH, frozenset(), _kitti),
    "npz": _depth_format("depth as float32 arrays of NumPy", ".npz"),
    "exr": _depth_format("depth as OpenEXR, channel Z, 32-bit floats", ".exr"),
    "png16": _depth_format("depth as 16-bit PNG", ".png"),
}  # fmt: skip
