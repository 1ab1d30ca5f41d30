"""Virtual KITTI 2 for training: five drives in ten variations each, two cameras.

Raw, in folders of the archives' names or all in one: `vkitti_2.0.3_rgb/Scene01/clone/frames/rgb/
Camera_0/rgb_00000.jpg`, `vkitti_2.0.3_depth/.../frames/depth/Camera_0/depth_00000.png` and
`vkitti_2.0.3_textgt/Scene01/clone/{intrinsic,extrinsic}.txt`. Processed (`processed.py`):
`scene0000_left`, where the number counts the variations of all scenes as sorted.
Depth is in metres; the sky, from 600 m on, is unknown.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import png16
from data.readers import files, poses, processed_training, training_frames
from data.readers.training import SkippedScene, TrainingOptions, TrainingReader, TrainingScene

_FAR = 600.0  # metres; the value 65535 of the sky is 655.35
_CAMERAS = {"left": 0, "right": 1}
_SCENE = re.compile(r"Scene[0-9]+")
_PROCESSED = re.compile(r"scene([0-9]{4})_(left|right)")
_VARIATIONS = 10
# Variations of one drive show the same street, so whole drives are held out: Scene06, the third.
_HELD_OUT = "Scene06"
_HELD_OUT_PLACE = 2


class _Drive(NamedTuple):
    """One variation of one scene seen by one camera."""

    scene: str
    variation: str
    side: str

    @property
    def within(self) -> Path:
        return Path(self.scene, self.variation)


def scenes(root: Path, options: TrainingOptions) -> tuple[list[TrainingScene], list[SkippedScene]]:
    """Returns every variation of every drive for both cameras.

    We hold Scene06 out for test; with `options.parity` both splits take everything, as the
    published loader does (that it lists everything twice has no effect and is left out).
    """
    prepared = _processed(root)
    if prepared:
        folders = training_frames.of_split(
            prepared,
            options,
            lambda folder: int(folder.name[5:9]) // _VARIATIONS == _HELD_OUT_PLACE,
        )
        return training_frames.gather(
            [(folder.name, folder) for folder in folders],
            lambda name, folder: processed_training.processed_scene(
                folder, name, "vkitti2", options
            ),
        )
    pictures = _archive(root, "rgb")
    drives = [
        _Drive(scene, variation, side)
        for scene in files.subfolders(pictures)
        if _SCENE.fullmatch(scene)
        for variation in files.subfolders(pictures / scene)
        for side in _CAMERAS
    ]
    drives = training_frames.of_split(drives, options, lambda drive: drive.scene == _HELD_OUT)
    return training_frames.gather(
        [("_".join(drive), drive) for drive in drives], functools.partial(_scene, root, options)
    )


def read_cameras(folder: Path, camera: int) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Returns intrinsics (3, 3) and world_from_cam (4, 4) of one camera by frame number.

    `intrinsic.txt`: lines `frame cameraID fx fy cx cy`; `extrinsic.txt`: `frame cameraID` and the
    16 numbers of cam_from_world; one line of names above each. Raises UserError.
    """
    intrinsics: dict[int, np.ndarray] = {}
    for row in files.number_table(folder / "intrinsic.txt", 6, header=1):
        if row[1] == camera:
            fx, fy, cx, cy = row[2:]
            intrinsics[int(row[0])] = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    table = files.number_table(folder / "extrinsic.txt", 18, header=1)
    table = table[table[:, 1] == camera]
    world_from_cam = poses.from_extrinsics(table[:, 2:].reshape(-1, 4, 4))
    return intrinsics, {int(number): pose for number, pose in zip(table[:, 0], world_from_cam)}


def _archive(root: Path, kind: str) -> Path:
    folder = root / f"vkitti_2.0.3_{kind}"
    return folder if folder.is_dir() else root


def _processed(root: Path) -> list[Path]:
    """The processed folders in the root, or in the first folder of it called `..._proc`."""
    below = [root / name for name in files.subfolders(root) if name.endswith("_proc")]
    for base in (root, *below):
        names = [name for name in files.subfolders(base) if _PROCESSED.fullmatch(name)]
        if names:
            return [base / name for name in names]
    return []


def _scene(root: Path, options: TrainingOptions, name: str, drive: _Drive) -> TrainingScene:
    camera = _CAMERAS[drive.side]
    folder, place = f"Camera_{camera}", drive.within / "frames"
    pictures = files.listed(_archive(root, "rgb") / place / "rgb" / folder, (".jpg",), "pictures")
    files.check_no_gaps(pictures)
    depth_folder = _archive(root, "depth") / place / "depth" / folder
    depths = files.partners(
        pictures,
        lambda path: depth_folder / f"{path.stem.replace('rgb', 'depth')}.png",
        "depth map",
    )
    text = _archive(root, "textgt") / drive.within
    intrinsics, world_from_cam = read_cameras(text, camera)
    numbers = [files.frame_number(path) for path in pictures]
    for table, file in ((intrinsics, "intrinsic.txt"), (world_from_cam, "extrinsic.txt")):
        lacking = [number for number in numbers if number not in table]
        if lacking:
            raise UserError(
                f"'{text / file}' has no line of frame {lacking[0]} of camera {camera}."
            )
    return training_frames.file_scene(
        "vkitti2", name, pictures, depths, _depth,
        np.stack([intrinsics[number] for number in numbers]),
        np.stack([world_from_cam[number] for number in numbers]), options, far=_FAR,
    )  # fmt: skip


def _depth(path: Path, intrinsics: np.ndarray) -> np.ndarray:
    scale = png16.VALUES_PER_METRE["vkitti2"]
    return png16.read_depth_png16(path, scale, refuse_small=False)


TRAINING = TrainingReader(
    name="vkitti2",
    layout="vkitti_2.0.3_{rgb,depth,textgt}/Scene01/clone/ as the archives unpack, or "
    "scene0000_left/00000_rgb.jpg and so on",
    scenes=scenes,
)
