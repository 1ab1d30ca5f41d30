"""Frames as they come: from a camera, from a pipe on standard input, or from a file or folder.

| source | what is read |
|---|---|
| `-` | YUV4MPEG2 (`ffmpeg -i x -pix_fmt yuv420p -f yuv4mpegpipe -`; 4:2:0, 4:2:2, 4:4:4 or grey, 8 bit), or JPEG pictures one after the other (`-f mjpeg -`) |
| `camera:N` | camera N of the machine through OpenCV |
| anything else | as `io.video.read_frames` |
"""  # noqa: E501

from __future__ import annotations

import functools
import re
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO

import cv2
import numpy as np

from align3r_jax.errors import UserError
from align3r_jax.io import video
from align3r_jax.io.selection import RawFrame

_MAX_HEADER, _MAX_SIDE, _MAX_JPEG = 4096, 16_384, 64 << 20
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_CHUNK = 1 << 16
# Chroma of YUV4MPEG2: (rows, columns) of luma per sample; the siting (jpeg, mpeg2) is not heeded.
_CHROMA = {"420": (2, 2), "420jpeg": (2, 2), "420mpeg2": (2, 2), "420paldv": (2, 2),
           "422": (1, 2), "444": (1, 1), "mono": None}  # fmt: skip


def is_live(source: str) -> bool:
    """Whether `source` is a pipe or a camera, of which nobody knows the length."""
    return source == "-" or source.startswith("camera:")


def open_stream(
    source: str,
    *,
    pipe: BinaryIO | None = None,
    open_camera: Callable[[int], Any] = cv2.VideoCapture,
    drop: bool = True,
    fps: float | None = None,
) -> Iterator[RawFrame]:
    """Yields the frames of a pipe or camera; see the head of this file.

    pipe: instead of standard input. open_camera: makes a capture object (`read`, `isOpened`,
    `release`). drop: of a camera only the newest frame is kept while the last one is still being
    worked on; False waits for every frame. fps: of pictures without times (JPEG), default 30.
    Raises UserError if the source cannot be opened or holds something else.
    """
    if source == "-":
        return read_pipe(sys.stdin.buffer if pipe is None else pipe, fps or video.IMAGE_FPS)
    match = re.fullmatch(r"camera:(\d+)", source)
    if match is None:
        raise UserError(
            f"--video={source}: expected camera:N with the number of a camera (0 is the first), "
            "or - for standard input."
        )
    return read_camera(int(match.group(1)), open_camera, drop)


def read_pipe(pipe: BinaryIO, fps: float) -> Iterator[RawFrame]:
    """Yields the frames of a pipe, YUV4MPEG2 or JPEG, told apart by their first bytes.

    A stream that ends within a frame loses that frame. Raises UserError for anything else.
    """
    start = _read_exactly(pipe, 9)
    if start == b"YUV4MPEG2":
        return _read_y4m(pipe)
    if start[:3] == _JPEG_START:
        return _read_jpegs(pipe, start, fps)
    what = "nothing" if not start else f"something that starts with {start[:9]!r}"
    raise UserError(
        f"Standard input holds {what}; expected YUV4MPEG2 or JPEG pictures, such as "
        "'ffmpeg -i x.mp4 -pix_fmt yuv420p -f yuv4mpegpipe - | ... --video=-'."
    )


def read_camera(number: int, open_camera: Callable[[int], Any], drop: bool) -> Iterator[RawFrame]:
    """Yields the pictures of a camera until it gives no more; `index` counts dropped ones too."""
    capture = open_camera(number)
    if not capture.isOpened():
        capture.release()
        raise UserError(
            f"Camera {number} cannot be opened; check that it is connected, that this user may "
            "read it and that no other program uses it."
        )
    return _from_camera(capture, drop)


def _from_camera(capture: Any, drop: bool) -> Iterator[RawFrame]:
    pictures = _newest(capture) if drop else _all(capture)
    origin = None
    try:
        for index, moment, picture in pictures:
            origin = moment if origin is None else origin
            rgb = np.ascontiguousarray(picture[..., ::-1])
            yield RawFrame(index, moment - origin, f"{index:06d}", functools.partial(_same, rgb))
    finally:
        pictures.close()
        capture.release()


def _all(capture: Any) -> Generator[tuple[int, float, np.ndarray]]:
    index = 0
    while True:
        found, picture = capture.read()
        if not found:
            return
        yield index, time.monotonic(), picture
        index += 1


def _newest(capture: Any) -> Generator[tuple[int, float, np.ndarray]]:
    """A thread reads all the time; who asks gets the latest picture, each at most once."""
    news = threading.Condition()
    latest: list[tuple[int, float, np.ndarray]] = []
    ended, stop = threading.Event(), threading.Event()

    def work() -> None:
        for item in _all(capture):
            with news:
                latest[:] = [item]
                news.notify()
            if stop.is_set():
                break
        with news:
            ended.set()
            news.notify()

    reader = threading.Thread(target=work, daemon=True)
    reader.start()
    try:
        while True:
            with news:
                news.wait_for(lambda: latest or ended.is_set())
                if not latest:
                    return
                item = latest.pop()
            yield item
    finally:
        stop.set()
        reader.join(timeout=5)  # not released while it is being read


def _read_y4m(pipe: BinaryIO) -> Iterator[RawFrame]:
    """Yields the frames behind the nine letters of the format's name."""
    settings = _line(pipe, "header").split()
    tags = {text[:1]: text[1:] for text in settings}
    try:
        width, height = int(tags["W"]), int(tags["H"])
        above, _, below = tags.get("F", "30:1").partition(":")
        rate = int(above) / int(below or 1)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"The header of the YUV4MPEG2 stream is damaged: '{' '.join(settings)[:80]}'."
        ) from error
    chroma = tags.get("C", "420")
    if chroma not in _CHROMA:
        raise UserError(
            f"The YUV4MPEG2 stream has pixels of the kind {chroma}; expected 8 bit 4:2:0, 4:2:2, "
            "4:4:4 or grey: add '-pix_fmt yuv420p' to ffmpeg."
        )
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE) or rate <= 0:
        raise UserError(f"The YUV4MPEG2 stream says {width} x {height} at {rate:g} frames/s.")
    full_range = tags.get("X", "") == "COLORRANGE=FULL" or "XCOLORRANGE=FULL" in settings
    step = _CHROMA[chroma]
    luma = width * height
    part = 0 if step is None else -(-height // step[0]) * -(-width // step[1])
    return _y4m_frames(pipe, (height, width), luma + 2 * part, step, full_range, rate)


def _y4m_frames(
    pipe: BinaryIO,
    shape: tuple[int, int],
    size: int,
    step: tuple[int, int] | None,
    full_range: bool,
    rate: float,
) -> Iterator[RawFrame]:
    index = 0
    while True:
        mark = _read_exactly(pipe, 5)
        if len(mark) < 5:
            return
        if mark != b"FRAME":
            raise UserError(
                f"The YUV4MPEG2 stream is damaged before frame {index}: 'FRAME' expected, got "
                f"{mark!r}."
            )
        _line(pipe, f"frame {index}")
        content = _read_exactly(pipe, size)
        if len(content) < size:
            return
        load = functools.partial(yuv_to_rgb, content, shape, step, full_range)
        yield RawFrame(index, index / rate, f"{index:06d}", load)
        index += 1


def yuv_to_rgb(
    content: bytes, shape: tuple[int, int], step: tuple[int, int] | None, full_range: bool
) -> np.ndarray:
    """Returns (H, W, 3) uint8 of planes Y, U, V by BT.601; chroma is enlarged bilinearly.

    shape: (H, W). step: (rows, columns) of luma per sample of chroma; None: grey. full_range: Y is
    in [0, 255], else in [16, 235].
    """
    height, width = shape
    values = np.frombuffer(content, np.uint8)
    luma = values[: height * width].reshape(shape).astype(np.float32)
    low, span, chroma_span = (0.0, 255.0, 255.0) if full_range else (16.0, 219.0, 224.0)
    luma = (luma - low) * (255.0 / span)
    if step is None:
        return np.repeat(_uint8(luma)[..., None], 3, axis=-1)
    small = -(-height // step[0]), -(-width // step[1])
    planes = values[height * width :].reshape(2, *small).astype(np.float32)
    blue, red = (
        cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in planes
    )
    blue, red = ((plane - 128) * (255.0 / chroma_span) for plane in (blue, red))
    channels = (luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue)
    return np.stack([_uint8(channel) for channel in channels], axis=-1)


def _read_jpegs(pipe: BinaryIO, start: bytes, rate: float) -> Iterator[RawFrame]:
    """Yields pictures that follow one another without anything between them."""
    buffer, index = bytearray(start), 0
    searched = 0
    while True:
        end = buffer.find(_JPEG_END, searched)
        if end < 0:
            searched = max(len(buffer) - 1, 0)
            more = _read_some(pipe)
            if not more:
                return
            buffer += more
            if len(buffer) > _MAX_JPEG:
                raise UserError("A JPEG picture on standard input does not end within 64 MiB.")
            continue
        # The mark can be part of a thumbnail in the header; then the picture goes on.
        picture = cv2.imdecode(
            np.frombuffer(bytes(buffer[: end + 2]), np.uint8), cv2.IMREAD_COLOR_RGB
        )
        follows = bytes(buffer[end + 2 : end + 5])
        if picture is None or (follows and not _JPEG_START.startswith(follows[:3])):
            searched = end + 2
            continue
        del buffer[: end + 2]
        searched = 0
        yield RawFrame(index, index / rate, f"{index:06d}", functools.partial(_same, picture))
        index += 1


def _read_some(pipe: BinaryIO) -> bytes:
    """What there is, at least a byte; waits for no more, so that a live stream is not held up."""
    read = getattr(pipe, "read1", pipe.read)
    return read(_CHUNK)


def _read_exactly(pipe: BinaryIO, size: int) -> bytes:
    """Returns `size` bytes, fewer only at the end."""
    parts, missing = [], size
    while missing:
        part = pipe.read(missing)
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _line(pipe: BinaryIO, where: str) -> str:
    line = bytearray()
    while len(line) < _MAX_HEADER:
        letter = _read_exactly(pipe, 1)
        if letter in (b"\n", b""):
            return line.decode("ascii", "replace")
        line += letter
    raise UserError(f"The YUV4MPEG2 stream is damaged in the {where}: a line does not end.")


def _uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _same(picture: np.ndarray) -> np.ndarray:
    return picture
