"""KITTI depth validation: a car's video with accumulated lidar.

`val/DRIVE/proj_depth/groundtruth/image_02/0000000005.png` (annotated depth),
`DATE/DRIVE/image_02/data/0000000005.png` (raw data), `DATE/calib_cam_to_cam.txt`.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np

from align3r_jax.errors import UserError
from data.readers import files
from data.readers.sequence import DatasetReader, EvaluationSequence, FrameSlice, ReaderOptions

_DRIVES = {
    "2011_09_26": (2, 5, 13, 20, 23, 36, 79, 95, 113),
    "2011_09_28": (37,),
    "2011_09_29": (26,),
    "2011_09_30": (16,),
    "2011_10_03": (47,),
}
VALIDATION = tuple(
    f"{date}_drive_{drive:04d}_sync" for date, drives in _DRIVES.items() for drive in drives
)
_DEPTH = Path("proj_depth") / "groundtruth" / "image_02"


def _depth_roots(root: Path) -> list[Path]:
    return [root / "val", root / "data_depth_annotated" / "val", root]


def found(root: Path, options: ReaderOptions) -> list[str]:
    """Names of the annotated drives."""
    for base in _depth_roots(root):
        drives = [name for name in files.subfolders(base) if (base / name / _DEPTH).is_dir()]
        if drives:
            return drives
    return []


def read(
    root: Path, name: str, task: str, options: ReaderOptions, frames: FrameSlice
) -> EvaluationSequence:
    """Returns the annotated frames of one drive, camera 2. Raises UserError."""
    depth = files.first_folder(
        [base / name / _DEPTH for base in _depth_roots(root)], f"depth maps of '{name}'"
    )
    date = name[:10]
    days = [root / date, root / "raw" / date, root / "raw_data" / date]
    data = files.first_folder(
        [day / name / "image_02" / "data" for day in days]
        + [base / name / "image_02" / "data" for base in _depth_roots(root)],
        f"pictures of '{name}'",
    )
    truth = files.chosen(files.listed(depth, (".png",), "depth maps"), frames)
    pictures = files.partners(truth, lambda path: data / path.name, "picture")
    notes: tuple[str, ...] = ()
    calibration = data.parents[2] / "calib_cam_to_cam.txt"
    intrinsics = None
    if calibration.is_file():
        intrinsics = files.repeat(read_rectified_intrinsics(calibration), len(pictures))
    else:
        notes = (f"'{calibration}' is missing: the intrinsics are unknown.",)
    return EvaluationSequence(
        name, "kitti", pictures, files.picture_size(pictures),
        times=_times(data.parent / "timestamps.txt", pictures),
        depth=files.depth_png16(truth, "kitti"), intrinsics=intrinsics,
        prior_files=files.priors(pictures, "scene"), notes=notes,
    ).check()  # fmt: skip


def read_rectified_intrinsics(path: Path) -> np.ndarray:
    """Returns K of the rectified camera 2, (3, 3): the left part of `P_rect_02`."""
    for line in path.read_text().splitlines():
        key, _, values = line.partition(":")
        if key.strip() != "P_rect_02":
            continue
        try:
            return np.array([float(value) for value in values.split()]).reshape(3, 4)[:, :3]
        except ValueError as error:
            raise UserError(f"'{path}': P_rect_02 is not twelve numbers ({error}).") from error
    raise UserError(f"'{path}' has no line P_rect_02.")


def _times(path: Path, pictures: tuple[Path, ...]) -> np.ndarray | None:
    """Seconds since the first picture of the drive; line n belongs to picture n."""
    if not path.is_file():
        return None
    lines = path.read_text().split("\n")
    lines = lines[: len(lines) - (lines[-1] == "")]
    numbers = [files.frame_number(picture) for picture in pictures]
    if max(numbers) >= len(lines):
        raise UserError(f"'{path}' has {len(lines)} lines; '{pictures[-1]}' needs another.")
    try:
        clock = [_seconds(lines[n]) for n in [0, *numbers]]
    except ValueError as error:
        raise UserError(f"'{path}' holds something that is no time ({error}).") from error
    times = np.array(clock[1:]) - clock[0]
    if (np.diff(times) <= 0).any():
        at = int(np.argmax(np.diff(times) <= 0))
        raise UserError(
            f"'{path}': the time stamps are not sorted; line {numbers[at + 1] + 1} "
            f"('{lines[numbers[at + 1]]}') is not later than line {numbers[at] + 1}."
        )
    return times


def _seconds(text: str) -> float:
    """`2011-09-26 13:02:25.964389445`; nanoseconds are more than datetime reads."""
    whole, _, fraction = text.strip().partition(".")
    moment = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.UTC)
    return moment.timestamp() + float(f"0.{fraction or 0}")


READER = DatasetReader(
    name="kitti",
    tasks=("video_depth", "single_depth"),
    layout="val/2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02 and "
    "2011_09_26/2011_09_26_drive_0002_sync/image_02/data",
    found=found,
    read=read,
    lists={"validation": VALIDATION},
    default_list={"": "validation"},
    default_frames={"": FrameSlice(0, 1, 110)},
)
