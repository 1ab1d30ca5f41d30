"""MPI Sintel, training split: rendered film with depth, flow and cameras.

`training/{final,clean}/SEQ/frame_0001.png`, `depth/SEQ/frame_0001.dpt`,
`camdata_left/SEQ/frame_0001.cam`, `flow/SEQ/frame_0001.flo` (one fewer than frames).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.geometry import warp
from align3r_jax.io import flow_files, mask_files, sintel_files
from data.readers import files, poses
from data.readers.sequence import DatasetReader, EvaluationSequence, FrameSlice, ReaderOptions

ALL = (
    "alley_1", "alley_2", "ambush_2", "ambush_4", "ambush_5", "ambush_6", "ambush_7", "bamboo_1",
    "bamboo_2", "bandage_1", "bandage_2", "cave_2", "cave_4", "market_2", "market_5", "market_6",
    "mountain_1", "shaman_2", "shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3",
)  # fmt: skip
# What MonST3R and Align3R evaluate cameras on: the camera moves, and not on a line.
POSE = (
    "alley_2", "ambush_4", "ambush_5", "ambush_6", "cave_2", "cave_4", "market_2", "market_5",
    "market_6", "shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3",
)  # fmt: skip
_MASKS = "dynamic_label_perfect"
_PLACES = {"dpt": "depth", "cam": "camdata_left", "flo": "flow"}
_WANTED = {
    "video_depth": ("dpt",),
    "single_depth": ("dpt",),
    "camera_pose": ("cam",),
    "motion": ("dpt", "cam", "flo"),  # unless the masks themselves are there
}


_ego_flow = jax.jit(warp.ego_flow)


def _training(root: Path) -> Path:
    return root / "training" if (root / "training").is_dir() else root


def found(root: Path, options: ReaderOptions) -> list[str]:
    """Names of the sequences of the chosen pass."""
    return files.subfolders(_training(root) / options.render_pass)


def read(
    root: Path, name: str, task: str, options: ReaderOptions, frames: FrameSlice
) -> EvaluationSequence:
    """Returns one sequence: depth for depth, cameras for poses, masks for motion are demanded.

    Raises UserError for missing or damaged files.
    """
    training = _training(root)
    every = files.listed(training / options.render_pass / name, (".png",), "pictures")
    files.check_no_gaps(every)
    pictures = files.chosen(every, frames)
    masked = task == "motion" and (training / _MASKS / name).is_dir()
    wanted = () if masked else _WANTED[task]
    notes: list[str] = []
    parts = {}
    for kind, place in _PLACES.items():
        if kind in wanted or (training / place / name).is_dir():
            get = functools.partial(_files_of, training, name, kind, every, pictures)
            found_files = files.read_part(kind in wanted, f"The {place} files", notes, get)
            if found_files is not None:
                parts[kind] = found_files
    cameras = files.read_part(
        "cam" in wanted,
        "The cameras",
        notes,
        lambda: [sintel_files.read_cam(path) for path in parts.get("cam", ())],
    )
    world_from_cam = intrinsics = depth = None
    if cameras:
        world_from_cam = poses.from_extrinsics(np.stack([c.cam_from_world for c in cameras]))
        intrinsics = np.stack([camera.intrinsics for camera in cameras])
    if "dpt" in parts:
        depth = files.depth_stack(parts["dpt"], sintel_files.read_dpt)
    flow_paths = parts.get("flo", ())[: len(pictures) - 1]
    mask, mask_frames = _masks(training, name, every, pictures, parts, options)
    if mask is None and task == "motion":
        raise UserError(
            f"'{training}' has neither masks of '{name}' ({_MASKS}/{name}/{pictures[0].name}) nor "
            "depth, cameras and flow to find them."
        )
    return EvaluationSequence(
        name, "sintel", tuple(pictures), files.picture_size(pictures),
        depth=depth, world_from_cam=world_from_cam, intrinsics=intrinsics,
        dynamic_mask=mask, mask_frames=mask_frames,
        flow=functools.partial(_flows, flow_paths) if flow_paths and frames.stride == 1 else None,
        prior_files=files.priors(pictures, "scene"), notes=tuple(notes),
    ).check()  # fmt: skip


def _files_of(
    training: Path, name: str, kind: str, every: list[Path], pictures: list[Path]
) -> tuple[Path, ...]:
    """The files of one kind that belong to the pictures."""
    folder, what = training / _PLACES[kind] / name, f"{_PLACES[kind]} files"
    stored = files.listed(folder, (f".{kind}",), what)
    if kind == "flo":
        pictures = pictures[:-1] if pictures[-1] == every[-1] else pictures
    else:
        files.same_count(every, stored, what)
    return files.partners(pictures, lambda path: folder / f"{path.stem}.{kind}", what)


def _masks(
    training: Path,
    name: str,
    every: list[Path],
    pictures: list[Path],
    parts: dict[str, tuple[Path, ...]],
    options: ReaderOptions,
) -> tuple[Callable[[], np.ndarray] | None, tuple[int, ...] | None]:
    """Returns the function that gives the masks, and the frames where they are known."""
    folder = training / _MASKS / name
    if folder.is_dir():
        known = tuple(k for k, path in enumerate(pictures) if (folder / path.name).is_file())
        if not known:
            return None, None
        return functools.partial(_stored_masks, folder, tuple(pictures)), _unless_all(
            known, pictures
        )
    if {"flo", "dpt", "cam"} - set(parts):
        return None, None
    computed = functools.partial(
        _computed_masks, parts, every, training / _PLACES["cam"] / name, options.motion_threshold
    )
    # Nothing follows the last frame of the film.
    return computed, _unless_all(tuple(range(len(parts["flo"]))), pictures)


def _unless_all(known: tuple[int, ...], pictures: list[Path]) -> tuple[int, ...] | None:
    return known if len(known) < len(pictures) else None


def _flows(paths: tuple[Path, ...]) -> np.ndarray:
    return np.stack([flow_files.read_flow(path) for path in paths])


def _stored_masks(folder: Path, pictures: tuple[Path, ...]) -> np.ndarray:
    size = files.picture_size(pictures)
    masks = np.zeros((len(pictures), *size), bool)
    for k, picture in enumerate(pictures):
        path = folder / picture.name
        if path.is_file():
            labels = mask_files.read_labels(path) == mask_files.DYNAMIC
            if labels.shape != size:
                raise UserError(f"The mask '{path}' is {labels.shape}, its picture {size}.")
            masks[k] = labels
    return masks


def _computed_masks(
    parts: dict[str, tuple[Path, ...]], every: list[Path], cameras: Path, threshold: float
) -> np.ndarray:
    """|flow - ego flow| > threshold, towards the next frame of the film, whatever the stride."""
    following = {a.stem: b.stem for a, b in zip(every[:-1], every[1:])}
    masks: np.ndarray | None = None
    for k, (path, depth_path) in enumerate(zip(parts["flo"], parts["dpt"])):
        first = sintel_files.read_cam(cameras / f"{path.stem}.cam")
        second = sintel_files.read_cam(cameras / f"{following[path.stem]}.cam")
        depth, flow = sintel_files.read_dpt(depth_path), flow_files.read_flow(path)
        if flow.shape[:2] != depth.shape:
            raise UserError(f"'{path}' is {flow.shape[:2]}, '{depth_path}' {depth.shape}.")
        still = _ego_flow(
            jnp.asarray(depth),
            jnp.asarray(first.intrinsics, jnp.float32),
            jnp.asarray(second.intrinsics, jnp.float32),
            *_relative(first.cam_from_world, second.cam_from_world),
        )
        if masks is None:
            masks = np.zeros((len(parts["dpt"]), *depth.shape), bool)
        with np.errstate(invalid="ignore"):  # unknown flow counts as static
            masks[k] = np.linalg.norm(flow - np.asarray(still), axis=-1) > threshold
    assert masks is not None
    return masks


def _relative(first: np.ndarray, second: np.ndarray) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Poses with the first camera as the world: no digits are lost far from the origin."""
    pair = poses.from_extrinsics(np.stack([first, second]))
    relative = np.linalg.inv(pair[0]) @ pair
    return jnp.asarray(relative[0], jnp.float32), jnp.asarray(relative[1], jnp.float32)


READER = DatasetReader(
    name="sintel",
    tasks=("video_depth", "single_depth", "camera_pose", "motion"),
    layout="training/final/alley_1/frame_0001.png and so on",
    found=found,
    read=read,
    lists={"all": ALL, "pose": POSE},
    default_list={"": "all", "camera_pose": "pose"},
)
