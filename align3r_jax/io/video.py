"""Frames in: `read_frames` reads a video, a folder, a glob or a list of pictures.

Videos are decoded by PyAV (mp4, mov, avi, mkv, webm, gif, whatever FFmpeg knows), pictures by
Pillow. Only selected frames are converted and kept.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import images, preprocess
from align3r_jax.io.selection import RawFrame, Selection
from align3r_jax.structs import Frames, WorkingSize

MIN_SIDE = 32  # pixels of the original; below, nothing can be matched
IMAGE_FPS = 30.0  # assumed recording rate of pictures without one
FLAT_RANGE = 8  # a frame whose channels span fewer grey levels shows nothing
_SAME_RANGE = 2  # frames closer than this everywhere are the same picture

_log = logging.getLogger(__name__)


def read_frames(
    path: str | Path | Sequence[str | Path],
    *,
    start: int = 0,
    end: int | None = None,
    stride: int = 1,
    fps: float | None = None,
    max_frames: int | None = None,
    size: int = 512,
    crop: bool = True,
    square_ok: bool = False,
    keep_originals: bool = True,
    memory_limit: int = 8 << 30,
) -> tuple[Frames, np.ndarray | None]:
    """Returns the frames at working size and the originals, (T, H0, W0, 3) uint8 RGB.

    path: a video; a folder or glob of pictures, taken in natural order; or a list of pictures,
    taken as listed. start, end (exclusive), stride: positions in the source. fps: a video is
    thinned out to at most so many frames a second; for pictures it is the rate at which they were
    recorded (default 30). max_frames: the first so many of what is selected. size, crop,
    square_ok: see `preprocess.plan_working_size`. keep_originals: False returns None for them.
    memory_limit: bytes that the originals may take.

    Times are seconds since the first frame of the source: the video's own time stamps, or
    index / fps. Names are the pictures' stems, or the six-digit index in the video. Rotation
    flags of phones (video and EXIF) are applied.

    Raises UserError if the source is missing, unreadable or empty, the selection leaves fewer
    than two frames, frames differ in size, are smaller than 32 pixels or all of one flat colour.
    """
    source, thinning = _open_source(path, fps)
    selection = Selection(start, end, stride, thinning, max_frames).check()
    count = 0

    def counted() -> Iterator[RawFrame]:
        nonlocal count
        for frame in source:
            count = frame.index + 1
            yield frame

    originals, working = _Growing(), _Growing()
    times: list[float] = []
    names: list[str] = []
    plan: WorkingSize | None = None
    for frame in selection.pick(counted()):
        picture = frame.load()
        if plan is None:
            _check_size(picture, path)
            plan = preprocess.plan_working_size(
                picture.shape[:2], size, crop=crop, square_ok=square_ok
            )
        elif picture.shape[:2] != plan.original:
            raise UserError(
                f"Frames differ in size: '{frame.name}' is {_size(picture)} pixels, "
                f"'{names[0]}' is {plan.original[1]} x {plan.original[0]}. All must be equal."
            )
        if keep_originals:
            _check_memory(picture, len(names) + 1, memory_limit)
            originals.append(picture)
        working.append(preprocess.to_working_size(picture, plan))
        times.append(frame.time)
        names.append(frame.name)
    if not names:
        raise UserError(
            f"No frame of {_quoted(path)} is selected: it has {count} frames, the selection starts "
            f"at --start={start}."
            if count
            else f"{_quoted(path)} holds no frames."
        )
    if len(names) == 1:
        raise UserError(
            f"Only one frame of {_quoted(path)} is left; at least 2 are needed. "
            "Give a longer video or a smaller --stride."
        )
    assert plan is not None
    frames = Frames(working.array(), np.array(times), plan, tuple(names)).check()
    for warning in check_content(frames):
        _log.warning(warning)
    return frames, originals.array() if keep_originals else None


def each_frame(
    path: str | Path,
    *,
    start: int = 0,
    end: int | None = None,
    stride: int = 1,
    fps: float | None = None,
    max_frames: int | None = None,
) -> Iterator[RawFrame]:
    """Yields the selected frames of a source one after the other, none of them kept.

    path, start, end, stride, fps, max_frames: as `read_frames`; one frame is enough here. Raises
    UserError as `read_frames` for sources that are missing, unreadable or empty.
    """
    source, thinning = _open_source(path, fps)
    return Selection(start, end, stride, thinning, max_frames).check().pick(source)


class Length(NamedTuple):
    """frames: about how many. size: (height, width). rate: frames a second, 0 of pictures."""

    frames: int
    size: tuple[int, int]
    rate: float


def measure(path: str | Path) -> Length:
    """Returns what the head of a video, or a list of pictures, says of its length; quick.

    Raises UserError for sources that are missing or unreadable.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        listed = images.list_images(path)
        height, width = images.load_image(listed[0]).shape[:2]
        return Length(len(listed), (height, width), 0.0)
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise UserError(f"'{path}' has no video stream.")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.guessed_rate or IMAGE_FPS)
            seconds = (container.duration or 0) / av.time_base
            return Length(
                stream.frames or round(seconds * rate), (stream.height, stream.width), rate
            )
    except av.FFmpegError as error:
        raise UserError(f"'{path}' cannot be read as a video ({error.strerror}).") from error


def check_content(frames: Frames) -> tuple[str, ...]:
    """Returns one sentence per doubt about what the frames show; usually none.

    Raises UserError if every frame is of one flat colour (black included).
    """
    pixels = frames.images
    span = pixels.max(axis=(1, 2)).astype(int) - pixels.min(axis=(1, 2))
    flat = span.max(axis=-1) < FLAT_RANGE
    if flat.all():
        black = pixels.max() < FLAT_RANGE
        raise UserError(
            f"All {frames.num_frames} frames are {'black' if black else 'of one flat colour'}: "
            "there is nothing to reconstruct. Check the video and the selection of frames."
        )
    warnings = []
    if flat.any():
        warnings.append(
            f"{int(flat.sum())} of {frames.num_frames} frames are black or of one flat colour, the "
            f"first is '{frames.names[int(np.argmax(flat))]}'; their cameras are guesses."
        )
    first = pixels[0].astype(np.int16)
    if all(np.abs(image - first).max() <= _SAME_RANGE for image in pixels[1:]):
        warnings.append("All frames show the same picture: no motion to find depth from.")
    return tuple(warnings)


def _open_source(
    path: str | Path | Sequence[str | Path], fps: float | None
) -> tuple[Iterator[RawFrame], float | None]:
    """Returns the frames of the source and the rate to thin them to."""
    if isinstance(path, (str, Path)):
        file = Path(path).expanduser()
        if file.is_file() and file.suffix.lower() not in images.SUFFIXES:
            return _decode(file), fps
        if file.is_file():
            raise UserError(f"'{path}' is a single picture; at least 2 frames are needed.")
        if not file.exists() and not images.is_glob(path):
            raise UserError(
                f"'{path}' does not exist. Give a video file, a folder of pictures or a glob."
            )
    Selection(fps=fps).check()
    return _stills(images.list_images(path), fps or IMAGE_FPS), None


def _stills(paths: list[Path], fps: float) -> Iterator[RawFrame]:
    for index, (path, name) in enumerate(zip(paths, images.frame_names(paths))):
        yield RawFrame(index, index / fps, name, functools.partial(images.load_image, path))


def _decode(path: Path) -> Iterator[RawFrame]:
    """Yields the frames of a video in order of display."""
    if path.stat().st_size == 0:
        raise UserError(f"'{path}' is an empty file.")
    index = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"'{path}' has no video stream.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or stream.guessed_rate or IMAGE_FPS)
            aspect = float(stream.sample_aspect_ratio or 1) or 1.0
            origin, last = None, -math.inf
            for index, frame in enumerate(container.decode(video=0)):
                time = frame.time
                origin = time if origin is None else origin
                if time is None or origin is None or time - origin <= last:
                    time = last + 1 / rate if index else 0.0  # missing or repeated time stamp
                else:
                    time -= origin
                last = time
                yield RawFrame(
                    index, time, f"{index:06d}", functools.partial(_to_rgb, frame, aspect)
                )
    except av.FFmpegError as error:
        if index < 2:
            raise UserError(
                f"'{path}' cannot be read as a video ({error.strerror}). It may be damaged or of "
                "an unknown format; try to convert it to mp4."
            ) from error
        _log.warning("'%s' is damaged after frame %d; the frames before are used.", path, index)


def _to_rgb(frame: av.VideoFrame, aspect: float) -> np.ndarray:
    """Returns (H0, W0, 3) uint8, with square pixels and upright."""
    width = round(frame.width * aspect)
    rgb = frame.to_ndarray(format="rgb24", width=width, height=frame.height)
    return np.ascontiguousarray(np.rot90(rgb, k=round(frame.rotation / 90) % 4))


def _check_size(picture: np.ndarray, path: object) -> None:
    if min(picture.shape[:2]) < MIN_SIDE:
        raise UserError(
            f"The frames of {_quoted(path)} are {_size(picture)} pixels; both sides must be at "
            f"least {MIN_SIDE}."
        )


def _check_memory(picture: np.ndarray, count: int, limit: int) -> None:
    if picture.nbytes * count > limit:
        raise UserError(
            f"The first {count} frames of {_size(picture)} pixels need more than "
            f"{limit / 2**30:.3g} GiB of memory. Take fewer (--max_frames, --stride, --fps, --end) "
            "or make the video smaller."
        )


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]}"


def _quoted(path: object) -> str:
    return f"'{path}'" if isinstance(path, (str, Path)) else "the list of pictures"


class _Growing:
    """Pictures of one shape appended one by one, without a second copy at the end."""

    def __init__(self) -> None:
        self._store = np.empty((0,), np.uint8)
        self._count = 0

    def append(self, picture: np.ndarray) -> None:
        if self._count == 0:
            self._store = np.empty((8, *picture.shape), np.uint8)
        elif self._count == len(self._store):
            self._resize(self._count + max(8, self._count // 2))
        self._store[self._count] = picture
        self._count += 1

    def array(self) -> np.ndarray:
        self._resize(self._count)
        return self._store

    def _resize(self, count: int) -> None:
        # in place; nobody else holds the array before `array()` returns it
        self._store.resize((count, *self._store.shape[1:]), refcheck=False)
