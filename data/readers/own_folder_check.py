"""Everything that is wrong with a folder of one's own, at once, before training meets it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import images
from data.readers import own_folder_files, own_folder_geometry
from data.readers.training import SPLITS

FEWEST_FRAMES = 2
_FAR = 400.0  # units; the losses of the papers leave out what is further
_LEAST_KNOWN = 0.01  # share of pixels with depth
_FOCALS = (0.2, 10.0)  # of the long side; 136 and 6 degrees
_SQUARE = 0.05  # by how much fx and fy may differ
_JUMP = 20.0  # times the median step


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong. frame: the picture's name, None: the scene as a whole.

    warning: training would run, but the data may not mean what it should.
    """

    scene: str
    text: str
    frame: str | None = None
    warning: bool = False

    def __str__(self) -> str:
        where = f"{self.scene}/{self.frame}" if self.frame else self.scene
        return f"{'warning' if self.warning else 'error'}: {where}: {self.text}"


class _Found(list[Problem]):
    """The problems of one scene."""

    def __init__(self, scene: str):
        super().__init__()
        self.scene = scene

    def error(self, text: object, frame: str | None = None) -> None:
        self.append(Problem(self.scene, str(text), frame))

    def warn(self, text: object, frame: str | None = None) -> None:
        self.append(Problem(self.scene, str(text), frame, warning=True))


def validate(root: str | Path) -> list[Problem]:
    """Returns every problem of a root in the layout of docs/training_data.md, [] if there is none.

    All pictures and depth maps are read. Errors are what a scene is skipped for, or a frame would
    stop the training with; warnings are what only a look can tell (depth, poses and pictures that
    do not fit together, depth in another unit than the poses, unlikely lenses, jumps).
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        return [Problem(str(root), "the folder does not exist")]
    found: list[Problem] = []
    names: list[str] = []
    for split in SPLITS:
        scenes = own_folder_files.scene_folders(root, split)
        for name, folder in scenes:
            found += _scene(name, folder)
        names += [name for name, _ in scenes]
    if not names:
        found.append(Problem(str(root), "holds no scenes: expected SCENE/images and SCENE/depth"))
    for name in sorted({name for name in names if names.count(name) > 1}):
        found.append(
            Problem(name, "is in train and in test; rename one if they differ", warning=True)
        )
    return found


def _scene(name: str, folder: Path) -> list[Problem]:
    found = _Found(name)
    try:
        pictures = own_folder_files.picture_files(folder)
    except UserError as error:
        found.error(error)
        return found
    if len(pictures) < FEWEST_FRAMES:
        found.error(f"one picture only; a pair needs {FEWEST_FRAMES}")
    for twice in own_folder_files.same_names(pictures):
        found.error(f"several pictures are named '{twice}'")
    depths: Sequence[Path | None] = []
    try:
        depths = own_folder_files.depth_of(folder, pictures)
        if not any(
            d and d.name.lower().startswith(p.stem.lower()) for d, p in zip(depths, pictures)
        ):
            found.warn("depth maps are taken in order: none is named after its picture")
    except UserError as error:
        found.error(error)
    cameras = None
    try:
        cameras = own_folder_files.read_cameras(folder, pictures)
    except UserError as error:
        found.error(error)
    whole = _frames(found, pictures, depths, cameras)
    if cameras is not None:
        for note in cameras.notes:
            found.warn(note)
        _path(found, pictures, cameras.world_from_cam)
    if len(whole) >= FEWEST_FRAMES:
        for text in own_folder_geometry.disagreements(whole):
            found.warn(text)
    return found


def _frames(
    found: _Found,
    pictures: Sequence[Path],
    depths: Sequence[Path | None],
    cameras: own_folder_files.Cameras | None,
) -> list[own_folder_geometry.Frame]:
    """Looks at every frame; returns those that are whole."""
    whole = []
    common: tuple[int, int] | None = None
    far = 0
    for index, path in enumerate(pictures):
        try:
            image = images.load_image(path)
        except UserError as error:
            found.error(error, path.name)
            continue
        size = (image.shape[0], image.shape[1])
        common = common or size
        if size != common:
            found.error(
                f"{size[1]} x {size[0]} pixels, the first picture {common[1]} x {common[0]}: the "
                "frames of a scene must be of one size", path.name,
            )  # fmt: skip
            continue
        depth = _depth(found, path.name, depths[index], size) if depths else None
        camera = _camera(found, path.name, cameras, index, size) if cameras is not None else None
        if depth is None or camera is None:
            continue
        far += int(np.median(depth[depth > 0]) > _FAR)
        intrinsics, world_from_cam = camera
        whole.append(own_folder_geometry.Frame(path.name, path, depths[index], intrinsics,
                                               world_from_cam))  # fmt: skip
    if far:
        found.warn(
            f"the median depth of {far} frames is beyond {_FAR:.0f}: the papers' losses leave out "
            "such depth; is the unit right (scale of depth.json)?"
        )
    return whole


def _depth(
    found: _Found, frame: str, path: Path | None, size: tuple[int, int]
) -> np.ndarray | None:
    if path is None:
        found.error("no depth map of its name", frame)
        return None
    try:
        depth = own_folder_files.read_depth(path)
    except UserError as error:
        found.error(error, frame)
        return None
    if depth.shape != size:
        found.error(
            f"the depth map '{path.name}' is {depth.shape[1]} x {depth.shape[0]} pixels, the "
            f"picture {size[1]} x {size[0]}: resize the picture, or the depth by nearest "
            "neighbour", frame,
        )  # fmt: skip
        return None
    known = float((depth > 0).mean())
    if known == 0:
        found.error(f"the depth map '{path.name}' knows no depth: 0 and NaN are unknown", frame)
        return None
    if known < _LEAST_KNOWN:
        found.warn(f"only {100 * known:.2g} % of the pixels have depth", frame)
    return depth


def _camera(
    found: _Found,
    frame: str,
    cameras: own_folder_files.Cameras,
    index: int,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray] | None:
    intrinsics, pose = cameras.intrinsics[index], cameras.world_from_cam[index]
    if not np.isfinite(pose).all():
        found.error("no pose, or one that is not finite", frame)
    if not np.isfinite(intrinsics).all():
        found.error("no intrinsics, or some that are not finite", frame)
    if not (np.isfinite(pose).all() and np.isfinite(intrinsics).all()):
        return None
    try:
        intrinsics = own_folder_files.of_picture(intrinsics, cameras.sizes[index], size, "camera")
        pose = own_folder_files.rigid(pose, "camera")
    except UserError as error:
        found.error(error, frame)
        return None
    (fx, _, cx), (_, fy, cy) = intrinsics[0], intrinsics[1]
    if not (0 < cx < size[1] and 0 < cy < size[0]):
        found.error(
            f"the principal point ({cx:.1f}, {cy:.1f}) lies outside of the picture ({size[1]} x "
            f"{size[0]}): are the intrinsics of another size (image_size)?", frame,
        )  # fmt: skip
        return None
    share = fx / max(size)
    if not _FOCALS[0] < share < _FOCALS[1]:
        found.warn(f"a focal of {fx:.4g} pixels is {share:.2g} of the long side: unlikely", frame)
    if abs(fx / fy - 1) > _SQUARE:
        found.warn(f"fx and fy differ: {fx:.4g} and {fy:.4g} pixels", frame)
    return intrinsics, pose


def _path(found: _Found, pictures: Sequence[Path], world_from_cam: np.ndarray) -> None:
    """Looks at the way of the camera."""
    known = np.flatnonzero(np.isfinite(world_from_cam).all((1, 2)))
    if len(known) < FEWEST_FRAMES:
        return
    poses = world_from_cam[known]
    if np.abs(poses - poses[0]).max() < 1e-9:
        found.warn("all poses are the same: a standing camera, or none that was estimated")
        return
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=-1)
    usual = np.median(steps)
    for at in np.flatnonzero(steps > _JUMP * usual) if usual > 0 else ():
        found.warn(
            f"the camera jumps by {steps[at]:.3g} after '{pictures[known[at]].name}', the usual "
            f"step is {usual:.3g}: two videos in one scene, or a lost track?",
            pictures[known[at + 1]].name,
        )
