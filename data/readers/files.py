"""Files that belong together: one per frame in several folders, whole and of one size."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from align3r_jax.errors import UserError
from align3r_jax.io import images, png16, prior_files
from data.readers.sequence import FrameSlice

_Part = TypeVar("_Part")


def first_folder(candidates: Sequence[Path], what: str) -> Path:
    """Returns the first candidate that is a folder. Raises UserError that lists them all."""
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    tried = " or ".join(f"'{candidate}'" for candidate in candidates)
    raise UserError(f"There are no {what}: expected {tried}.")


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; none if it is missing."""
    if not folder.is_dir():
        return []
    return sorted(item.name for item in folder.iterdir() if item.is_dir() and item.name[0] != ".")


def listed(folder: Path, suffixes: Iterable[str], what: str) -> list[Path]:
    """Returns the files of a folder in natural order. Raises UserError if there are none."""
    suffixes = frozenset(suffixes)
    if not folder.is_dir():
        raise UserError(f"There are no {what}: the folder '{folder}' does not exist.")
    with os.scandir(folder) as entries:  # knows what is a file without asking for each
        names = [entry.name for entry in entries if entry.name[0] != "." and entry.is_file()]
    found = [folder / name for name in names if Path(name).suffix.lower() in suffixes]
    if not found:
        raise UserError(f"The folder '{folder}' holds no {what} ({', '.join(sorted(suffixes))}).")
    return sorted(found, key=lambda path: images.natural_key(path.name))


def chosen(items: Sequence[Path], frames: FrameSlice) -> list[Path]:
    """Returns the files of the slice. Raises UserError if it takes none."""
    taken = frames.of(items)
    if not taken:
        raise UserError(
            f"No frame is left: '{items[0].parent}' holds {len(items)} files, the selection "
            f"starts at {frames.start}."
        )
    return taken


def frame_number(path: Path) -> int:
    """Returns the last number in the name of a file. Raises UserError if it has none."""
    digits = re.findall(r"[0-9]+", path.stem)
    if not digits:
        raise UserError(f"'{path}' has no frame number in its name.")
    return int(digits[-1])


def check_no_gaps(paths: Sequence[Path]) -> None:
    """Raises UserError if the numbers of the files do not rise by one constant step."""
    numbers = [frame_number(path) for path in paths]
    steps = np.diff(numbers)
    if len(steps) == 0 or (steps == steps.min()).all():
        return
    at = int(np.argmax(steps != steps.min()))
    raise UserError(
        f"Frames are missing: '{paths[at + 1]}' (number {numbers[at + 1]}) follows "
        f"'{paths[at].name}' (number {numbers[at]}), the others rise by {steps.min()}."
    )


def partners(
    pictures: Sequence[Path], name_of: Callable[[Path], Path], what: str
) -> tuple[Path, ...]:
    """Returns the file `name_of` each picture. Raises UserError that names the first missing."""
    files = [name_of(picture) for picture in pictures]
    there = {folder: _names(folder) for folder in {file.parent for file in files}}
    missing = [file for file in files if file.name not in there[file.parent]]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(files)} frames have no {what}; the first missing file is "
            f"'{missing[0]}'."
        )
    return tuple(files)


def same_count(first: Sequence[Path], second: Sequence[Path], what: str) -> None:
    """Raises UserError if two folders of the same frames hold different numbers of files."""
    if len(first) != len(second):
        raise UserError(
            f"'{first[0].parent}' holds {len(first)} pictures but '{second[0].parent}' "
            f"{len(second)} {what}: frames are missing in one of them."
        )


def picture_size(pictures: Sequence[Path]) -> tuple[int, int]:
    """Returns (H, W) of all pictures, from their headers.

    Raises UserError that names a picture that is unreadable or of another size.
    """
    sizes = []
    for path in pictures:
        try:
            with Image.open(path) as picture:
                sizes.append((picture.height, picture.width))
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise UserError(f"The picture '{path}' cannot be read ({error}).") from error
        if sizes[-1] != sizes[0]:
            raise UserError(
                f"'{path}' is {sizes[-1][1]} x {sizes[-1][0]} pixels, '{pictures[0].name}' "
                f"{sizes[0][1]} x {sizes[0][0]}: frames of one sequence must be of one size."
            )
    return sizes[0]


def read_part(needed: bool, what: str, notes: list[str], read: Callable[[], _Part]) -> _Part | None:
    """Returns what `read` does; what the task does not need may be damaged: None and a note."""
    try:
        return read()
    except UserError as error:
        if needed:
            raise
        notes.append(f"{what} are left out: {error}")
        return None


def depth_stack(
    paths: Sequence[Path], read: Callable[[Path], np.ndarray]
) -> Callable[[], np.ndarray]:
    """Returns the function that reads all depth maps, (T, Ht, Wt) float32, unknown as 0.

    It raises UserError that names a file in which nothing is known or whose size differs.
    """
    return functools.partial(_read_stack, tuple(paths), read)


def depth_png16(
    paths: Sequence[Path], dataset: str, *, refuse_small: bool = True
) -> Callable[[], np.ndarray]:
    """`depth_stack` of 16-bit PNG at the scale of the data set; 8-bit files are refused at once."""
    for path in paths:
        png16.check_png16(path)
    read = functools.partial(
        png16.read_depth_png16,
        values_per_metre=png16.VALUES_PER_METRE[dataset],
        refuse_small=refuse_small,
    )
    return depth_stack(paths, read)


def priors(pictures: Sequence[Path], layout: str) -> Callable[[str], tuple[Path, ...]]:
    """Returns name of a prior -> its file for every picture, in a layout of `prior_files`."""
    return lambda name: tuple(prior_files.prior_path(path, name, layout) for path in pictures)


def number_table(path: Path, columns: int, *, header: int = 0) -> np.ndarray:
    """Returns the numbers of a text file, (N, columns) float64, after `header` lines.

    Raises UserError if it is unreadable, empty, or a line is something else.
    """
    try:
        lines = path.read_text().splitlines()[header:]
        table = np.loadtxt(lines, ndmin=2) if any(map(str.strip, lines)) else np.zeros((0, columns))
    except (OSError, ValueError) as error:
        reason = str(error).split(";")[0]  # the rest is advice on NumPy
        raise UserError(
            f"'{path}' holds no table of numbers that can be read ({reason})."
        ) from error
    if len(table) == 0 or table.shape[1] != columns or not np.isfinite(table).all():
        raise UserError(
            f"'{path}' holds {table.shape[0]} lines of {table.shape[1]} numbers; expected finite "
            f"numbers, {columns} in every line."
        )
    return table


def repeat(matrix: np.ndarray, count: int) -> np.ndarray:
    """One matrix for all frames: (T, ...) float64."""
    return np.repeat(np.asarray(matrix, np.float64)[None], count, axis=0)


def intrinsics_of(fx: float, fy: float, cx: float, cy: float, count: int) -> np.ndarray:
    """(T, 3, 3) of one camera."""
    return repeat(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), count)


def _names(folder: Path) -> set[str]:
    """Names of the files in a folder; none if it is missing."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file()}


def _read_stack(paths: tuple[Path, ...], read: Callable[[Path], np.ndarray]) -> np.ndarray:
    stack: np.ndarray | None = None
    for index, path in enumerate(paths):
        depth = np.asarray(read(path), np.float32)
        with np.errstate(invalid="ignore"):
            depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
        if not depth.any():
            raise UserError(
                f"'{path}' holds no measured depth at all: nothing in this frame can be evaluated."
            )
        if stack is None:
            stack = np.empty((len(paths), *depth.shape), np.float32)
        if depth.shape != stack.shape[1:]:
            raise UserError(
                f"'{path}' is {depth.shape} (height, width), '{paths[0].name}' "
                f"{stack.shape[1:]}: depth maps of one sequence must be of one size."
            )
        stack[index] = depth
    assert stack is not None
    return stack
