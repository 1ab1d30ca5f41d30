"""Spring for training: 37 scenes of an animated film in 1920 x 1080, left camera.

Raw: `train/0001/frame_left/frame_left_0001.png`, `disp1_left/disp1_left_0001.dsp5` and, one line
per frame, `cam_data/intrinsics.txt` (`fx fy cx cy`) and `extrinsics.txt` (cam_from_world).
Processed (`processed.py`): a folder per scene. Depth is in metres, z = 0.065 fx / disparity; the
sky has none.
# parity: the published preparation forgets the baseline of 0.065 m and takes E diag(1, -1, -1, 1)
# for world_from_cam, E being cam_from_world. Both are undone, in the processed folders too, unless
# `options.parity` asks for them as they are.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import depth_files, hdf5_files
from data.readers import disparity, files, poses, processed, processed_training, training_frames
from data.readers.training import (
    SkippedScene,
    TrainingFrame,
    TrainingOptions,
    TrainingReader,
    TrainingScene,
)

_HELD_OUT_EVERY = 10  # scenes 0010, 0020, 0030: the test scenes of the set have no truth


def scenes(root: Path, options: TrainingOptions) -> tuple[list[TrainingScene], list[SkippedScene]]:
    """Returns the scenes of the training folder, of either layout.

    We hold out those whose number ends with 0 for test; with `options.parity` both splits take
    all, as the published loaders do.
    """
    base = _base(root)
    if base is None:
        return [], []
    names = training_frames.of_split(
        [name for name in files.subfolders(base) if _is_scene(base / name)],
        options,
        lambda name: name.isdecimal() and int(name) % _HELD_OUT_EVERY == 0,
    )
    return training_frames.gather(
        [(name, base / name) for name in names], functools.partial(_scene, options)
    )


def _is_scene(folder: Path) -> bool:
    return (folder / "frame_left").is_dir() or processed.is_sequence(folder)


def _base(root: Path) -> Path | None:
    """The first folder that holds scenes: processed before raw, the root itself last."""
    prepared = [root / name for name in files.subfolders(root) if name.endswith("_proc")]
    parents = [*prepared, root, root / "spring"]
    for base in [place for parent in parents for place in (parent / "train", parent)]:
        if any(_is_scene(base / name) for name in files.subfolders(base)):
            return base
    return None


def _scene(options: TrainingOptions, name: str, folder: Path) -> TrainingScene:
    if processed.is_sequence(folder):
        if options.parity:
            return processed_training.processed_scene(folder, name, "spring", options)
        scene = processed_training.processed_scene(
            folder, name, "spring", options, _pose_of_processed
        )
        load = functools.partial(_load_processed, scene, folder)
        return dataclasses.replace(scene, load=load)
    pictures = files.listed(folder / "frame_left", (".png",), "pictures")
    files.check_no_gaps(pictures)
    depths = files.partners(
        pictures,
        lambda path: folder / "disp1_left" / f"{path.stem.replace('frame', 'disp1')}.dsp5",
        "disparity",
    )
    lens = files.number_table(folder / "cam_data" / "intrinsics.txt", 4)
    extrinsics = files.number_table(folder / "cam_data" / "extrinsics.txt", 16)
    for table, file in ((lens, "intrinsics"), (extrinsics, "extrinsics")):
        if len(table) != len(pictures):
            raise UserError(
                f"'{folder / 'cam_data' / file}.txt' has {len(table)} lines for {len(pictures)} "
                f"pictures of '{folder / 'frame_left'}': frames are missing in one of them."
            )
    intrinsics = np.zeros((len(lens), 3, 3))
    intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]] = lens
    intrinsics[:, 2, 2] = 1
    convert = poses.spring_reference if options.parity else poses.from_extrinsics
    return training_frames.file_scene(
        "spring", name, pictures, depths, _published_depth if options.parity else _depth,
        intrinsics, convert(extrinsics.reshape(-1, 4, 4)), options,
    )  # fmt: skip


def _depth(path: Path, intrinsics: np.ndarray) -> np.ndarray:
    return disparity.spring_depth(hdf5_files.read_dsp5(path), float(intrinsics[0, 0]))


def _published_depth(path: Path, intrinsics: np.ndarray) -> np.ndarray:
    values = hdf5_files.read_dsp5(path)
    return disparity.spring_depth(values, float(intrinsics[0, 0]), reference=True)


def _pose_of_processed(saved: np.ndarray) -> np.ndarray:
    """E^-1 of the saved E diag(1, -1, -1, 1)."""
    return poses.from_extrinsics(poses.spring_reference(saved))  # the flip is its own inverse


def _load_processed(scene: TrainingScene, folder: Path, index: int) -> TrainingFrame:
    """The frame with the depth of its file in metres; its mask ends at 26 m and is left alone."""
    frame = scene.load(index)
    path = folder / f"{scene.frames[index]}_depth.pfm"
    metres = disparity.SPRING_BASELINE * depth_files.read_depth(path).depth
    return dataclasses.replace(frame, depth=training_frames.usable(metres))


TRAINING = TrainingReader(
    name="spring",
    layout="train/0001/frame_left/frame_left_0001.png with disp1_left and cam_data, or processed "
    "folders spring_proc/0001/ID_rgb.jpg",
    scenes=scenes,
)
