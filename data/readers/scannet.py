"""ScanNet: hand-held RGB-D video of static rooms with cameras.

The folders that the data set's own SensReader exports from SCENE.sens: `SCENE/color/0.jpg`,
`depth/0.png` (millimetres), `pose/0.txt` (4x4, world from camera), `intrinsic/intrinsic_color.txt`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from align3r_jax.errors import UserError
from data.readers import files
from data.readers.sequence import DatasetReader, EvaluationSequence, FrameSlice, ReaderOptions

TEST = tuple(f"scene{number:04d}_00" for number in range(707, 807))


def _base(root: Path) -> Path:
    return next((p for p in (root / "scans_test", root / "scans") if p.is_dir()), root)


def found(root: Path, options: ReaderOptions) -> list[str]:
    """Names of the exported scenes."""
    base = _base(root)
    return [name for name in files.subfolders(base) if (base / name / "color").is_dir()]


def read(
    root: Path, name: str, task: str, options: ReaderOptions, frames: FrameSlice
) -> EvaluationSequence:
    """Returns one scene; frames whose tracking failed are left out of pose tasks.

    Raises UserError for missing or damaged files.
    """
    folder = _base(root) / name
    every = files.listed(folder / "color", (".jpg",), "pictures")
    files.check_no_gaps(every)
    pictures = files.chosen(every, frames)
    notes: list[str] = []
    posed = task == "camera_pose"
    world_from_cam = None
    if posed or (folder / "pose").is_dir():
        world_from_cam = files.read_part(
            posed, "Poses", notes, lambda: _read_poses(folder / "pose", pictures)
        )
    if world_from_cam is not None:
        tracked = np.isfinite(world_from_cam).all((1, 2))
        lost = int((~tracked).sum())
        if lost == len(pictures) and posed:
            raise UserError(f"No pose of '{folder / 'pose'}' is finite: tracking was lost.")
        if lost and posed:
            pictures = [picture for picture, good in zip(pictures, tracked) if good]
            world_from_cam = world_from_cam[tracked]
            notes.append(f"{lost} frames were left out: tracking was lost there.")
        elif lost:
            world_from_cam = None
            notes.append("Tracking was lost in some frames: the poses are left out.")
    depth = None
    if not posed or (folder / "depth").is_dir():
        depth = files.read_part(
            not posed, "Depth maps", notes, lambda: _depth(folder / "depth", pictures)
        )
    camera = folder / "intrinsic" / "intrinsic_color.txt"
    intrinsics = None
    if camera.is_file():
        intrinsics = files.repeat(read_matrix(camera)[:3, :3], len(pictures))
    return EvaluationSequence(
        name, "scannet", tuple(pictures), files.picture_size(pictures),
        depth=depth, world_from_cam=world_from_cam, intrinsics=intrinsics,
        prior_files=files.priors(pictures, "sibling"), notes=tuple(notes),
    ).check()  # fmt: skip


def _read_poses(folder: Path, pictures: list[Path]) -> np.ndarray:
    paths = files.partners(pictures, lambda path: folder / f"{path.stem}.txt", "pose")
    return np.stack([read_matrix(path) for path in paths])


def _depth(folder: Path, pictures: list[Path]) -> Callable[[], np.ndarray]:
    paths = files.partners(pictures, lambda path: folder / f"{path.stem}.png", "depth map")
    # Millimetres: a wall nearer than 26 cm is a possible picture.
    return files.depth_png16(paths, "scannet", refuse_small=False)


def read_matrix(path: Path) -> np.ndarray:
    """Returns the (4, 4) of a text file; `-inf` stays (tracking was lost). Raises UserError."""
    try:
        return np.array(path.read_text().split(), np.float64).reshape(4, 4)
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' does not hold the 16 numbers of a matrix ({error}).") from error


READER = DatasetReader(
    name="scannet",
    tasks=("camera_pose", "video_depth", "single_depth"),
    layout="scene0707_00/color/0.jpg, pose/0.txt and so on",
    found=found,
    read=read,
    lists={"test": TEST},
    default_list={"": "test"},
    default_frames={"": FrameSlice(0, 3, 90)},
)
