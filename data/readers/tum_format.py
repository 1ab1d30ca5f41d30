"""A folder of the TUM RGB-D benchmark: pictures, depth and motion capture, each on its own clock.

`rgb/STAMP.png`, `depth/STAMP.png` (16 bits, 5000 per metre), `groundtruth.txt` (or
`poses_tum.txt`), optionally `rgb.txt`, `depth.txt` (stamp, file) and `K.txt` (3x3).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.evaluation import trajectory as trajectory_metrics
from align3r_jax.io import images, trajectory
from data.readers import files
from data.readers.sequence import EvaluationSequence, FrameSlice, ReaderOptions

_TRAJECTORIES = ("groundtruth.txt", "poses_tum.txt")


@dataclasses.dataclass(frozen=True)
class StampedFiles:
    """Files with their times, rising. numbered: the names are frame numbers, not times."""

    times: np.ndarray
    paths: tuple[Path, ...]
    numbered: bool


def is_sequence(folder: Path) -> bool:
    """Whether a folder is one sequence."""
    return (folder / "rgb").is_dir()


def read_stamped(folder: Path, kind: str) -> StampedFiles:
    """Returns the files of `kind` (`rgb`, `depth`): those of KIND.txt, else those of KIND/.

    Raises UserError if files are missing, a name is no number, or the times of KIND.txt fall.
    """
    table = folder / f"{kind}.txt"
    if table.is_file():
        times, paths = _read_table(table, folder)
        return StampedFiles(times, paths, numbered=False)
    found = files.listed(folder / kind, images.SUFFIXES, f"{kind} pictures")
    try:
        times = np.array([float(path.stem) for path in found])
    except ValueError:
        bad = next(path for path in found if not path.stem.replace(".", "", 1).isdecimal())
        raise UserError(
            f"'{bad}': its name is not a time stamp; name the files after their times in seconds "
            f"or add '{table.name}'."
        ) from None
    # Not by name: 1.9 is after 1.88633.
    order = np.argsort(times, kind="stable")
    numbered = all(path.stem.isdecimal() for path in found)
    return StampedFiles(times[order], tuple(found[k] for k in order), numbered)


def read_truth(folder: Path) -> tuple[Path, np.ndarray, np.ndarray] | None:
    """Returns the trajectory's file, times and (N, 4, 4), or None if there is no file.

    Raises UserError if it is damaged or its times fall.
    """
    path = next((folder / name for name in _TRAJECTORIES if (folder / name).is_file()), None)
    if path is None:
        return None
    times, world_from_cam = trajectory.read_tum(path)
    _check_rising(path, times, "pose")
    return path, times, world_from_cam


def read(
    folder: Path,
    dataset: str,
    task: str,
    options: ReaderOptions,
    frames: FrameSlice,
    intrinsics: np.ndarray | None,
) -> EvaluationSequence:
    """Returns the frames of one folder; the slice is taken of those that have what the task needs.

    intrinsics: (3, 3) if the folder has no K.txt. Raises UserError for missing, damaged or
    unsorted files, or if too little of them belongs together.
    """
    rgb = read_stamped(folder, "rgb")
    notes: list[str] = []
    posed = task == "camera_pose"
    truth = files.read_part(posed, "Poses", notes, lambda: read_truth(folder))
    if truth is None and posed:
        raise UserError(f"'{folder}' holds no {' or '.join(_TRAJECTORIES)}.")
    depth = depth_of = None
    if not posed or (folder / "depth").is_dir():
        depth = files.read_part(
            not posed, "Depth maps", notes, lambda: read_stamped(folder, "depth")
        )
    if depth is not None:
        depth_of = _depth_of(rgb, depth, options, folder)
    pose_of = None if truth is None else _pose_of(rgb, truth, options, frames, notes, task)
    needed = pose_of if posed else depth_of
    assert needed is not None
    candidates = [k for k in range(len(rgb.paths)) if k in needed]
    if not candidates:
        raise UserError(_nothing_matches(folder, task, options))
    chosen = frames.of(candidates)
    if not chosen:
        raise UserError(
            f"'{folder}': no frame is left of {len(candidates)}; the selection starts at "
            f"{frames.start}."
        )
    left_out = len(rgb.paths) - len(candidates)
    if left_out and options.association == "stamps":
        notes.append(
            f"{left_out} of {len(rgb.paths)} pictures have no partner within "
            f"{options.max_time_difference * 1000:g} ms and are left out."
        )
    pictures = [rgb.paths[k] for k in chosen]
    world_from_cam = None
    if pose_of is not None and truth is not None:
        rows = _picked(pose_of, chosen, "poses", notes)
        world_from_cam = None if rows is None else truth[2][rows]
    depth_files = None
    if depth_of is not None and depth is not None:
        picked = _picked(depth_of, chosen, "depth maps", notes)
        if picked is not None:
            paths = [depth.paths[k] for k in picked]
            depth_files = files.read_part(
                not posed, "Depth maps", notes, lambda: files.depth_png16(paths, dataset)
            )
    if rgb.numbered:
        notes.append("The pictures are numbered, not timed: everything was matched by number.")
    own = folder / "K.txt"
    if own.is_file():
        intrinsics = trajectory.read_intrinsics(own)[0]
    return EvaluationSequence(
        folder.name, dataset, tuple(pictures), files.picture_size(pictures),
        times=None if rgb.numbered else rgb.times[chosen],
        depth=depth_files, world_from_cam=world_from_cam,
        intrinsics=None if intrinsics is None else files.repeat(intrinsics, len(pictures)),
        prior_files=files.priors(pictures, "sibling"), notes=tuple(notes),
    ).check()  # fmt: skip


def _depth_of(
    rgb: StampedFiles, depth: StampedFiles, options: ReaderOptions, folder: Path
) -> dict[int, int]:
    """Index of a picture -> index of its depth map."""
    if options.association != "stamps":  # parity: by sorted position, as Align3R does
        return {k: k for k in range(min(len(rgb.paths), len(depth.paths)))}
    if rgb.numbered != depth.numbered:
        raise UserError(
            f"'{folder}': one of rgb and depth is named by time, the other by number; "
            "association='position' takes them in order."
        )
    if rgb.numbered:
        first, second = rgb.times.tolist(), depth.times.tolist()
        if first != second:
            lone = sorted(set(first) ^ set(second))[0]
            owner = rgb if lone in first else depth
            raise UserError(
                f"'{folder}': {len(first)} pictures and {len(second)} depth maps, and "
                f"'{owner.paths[int(np.argmax(owner.times == lone))]}' has no partner of its "
                "number: frames are missing."
            )
    return dict(trajectory_metrics.associate(rgb.times, depth.times, options.max_time_difference))


def _pose_of(
    rgb: StampedFiles,
    truth: tuple[Path, np.ndarray, np.ndarray],
    options: ReaderOptions,
    frames: FrameSlice,
    notes: list[str],
    task: str,
) -> dict[int, int] | None:
    """Index of a picture -> index of its pose, or None if they cannot be brought together."""
    path, times, _ = truth
    if options.association == "stamps":
        return dict(trajectory_metrics.associate(rgb.times, times, options.max_time_difference))
    if options.association == "reference_rows":
        if frames.of(range(len(rgb.paths))) and len(times) < len(rgb.paths):
            raise UserError(f"'{path}' has {len(times)} rows for {len(rgb.paths)} pictures.")
        notes.append("Poses are rows of the file with the slice of the frames, not associated.")
        return {k: k for k in range(len(rgb.paths))}
    if len(times) == len(rgb.paths):
        return {k: k for k in range(len(times))}
    sentence = (
        f"'{path}' has {len(times)} poses for {len(rgb.paths)} pictures, which do not match by "
        "position"
    )
    if task == "camera_pose":
        raise UserError(sentence + "; use association='stamps'.")
    notes.append(sentence + ": poses are left out.")
    return None


def _picked(
    partner: dict[int, int], chosen: list[int], what: str, notes: list[str]
) -> list[int] | None:
    missing = sum(k not in partner for k in chosen)
    if missing:
        notes.append(f"{missing} of {len(chosen)} frames have no {what}: {what} are left out.")
        return None
    return [partner[k] for k in chosen]


def _nothing_matches(folder: Path, task: str, options: ReaderOptions) -> str:
    what = "poses" if task == "camera_pose" else "depth maps"
    return (
        f"'{folder}': no picture has one of its {what} within "
        f"{options.max_time_difference * 1000:g} ms; their clocks differ. If the k-th {what[:-1]} "
        "belongs to the k-th picture, use association='position'."
    )


def _read_table(table: Path, folder: Path) -> tuple[np.ndarray, tuple[Path, ...]]:
    times, paths = [], []
    for number, line in enumerate(table.read_text(errors="replace").splitlines(), 1):
        fields = line.split("#")[0].split()
        if not fields:
            continue
        try:
            time, name = float(fields[0]), fields[1]
        except (ValueError, IndexError):
            raise UserError(
                f"'{table}', line {number}: expected 'time file', got '{line.strip()[:80]}'."
            ) from None
        times.append(time)
        paths.append(folder / name)
    if not paths:
        raise UserError(f"'{table}' lists no files.")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(paths)} files of '{table}' are missing, the first is "
            f"'{missing[0]}'."
        )
    stamps = np.array(times)
    _check_rising(table, stamps, "file")
    return stamps, tuple(paths)


def _check_rising(path: Path, times: np.ndarray, what: str) -> None:
    falls = np.diff(times) < 0
    if falls.any():
        at = int(np.argmax(falls))
        raise UserError(
            f"'{path}': the time stamps are not sorted; {what} {at + 2} ({times[at + 1]:.6f}) is "
            f"earlier than {what} {at + 1} ({times[at]:.6f})."
        )
