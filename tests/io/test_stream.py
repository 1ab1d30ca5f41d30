"""Frames of pipes and cameras: exact where the format is, sentences where it is not."""

import io
import os
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.io import stream

HEIGHT, WIDTH = 5, 7


def y4m(frames, chroma="444", header="", rate="25:1"):
    """frames: (T, planes as bytes). Returns the stream."""
    head = f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F{rate} Ip A1:1 C{chroma}{header}\n".encode()
    return head + b"".join(b"FRAME\n" + frame for frame in frames)


def planes(rng, chroma):
    small = {"444": (5, 7), "422": (5, 4), "420jpeg": (3, 4), "mono": (0, 0)}[chroma]
    luma = rng.integers(80, 170, (HEIGHT, WIDTH), np.uint8)
    return luma, rng.integers(90, 160, (2, *small), np.uint8)


def _read(content, **settings):
    return list(stream.open_stream("-", pipe=io.BytesIO(content), **settings))


def test_444_is_the_inverse_of_the_standard_matrix():
    rng = np.random.default_rng(0)
    rgb = rng.integers(40, 200, (HEIGHT, WIDTH, 3)).astype(float)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    luma = 16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255  # BT.601
    u = 128 + (-37.797 * red - 74.203 * green + 112 * blue) / 255
    v = 128 + (112 * red - 93.786 * green - 18.214 * blue) / 255
    frame = b"".join(np.rint(p).astype(np.uint8).tobytes() for p in (luma, u, v))
    first, second = _read(y4m([frame, frame]))
    assert np.abs(first.load() - rgb).max() <= 2  # the rounding of three bytes
    assert (second.index, second.name, second.time) == (1, "000001", pytest.approx(0.04))


@pytest.mark.parametrize("chroma", ["422", "420jpeg", "mono"])
def test_frames_of_every_chroma_are_cut_where_they_end(chroma):
    rng = np.random.default_rng(1)
    parts = [planes(rng, chroma) for _ in range(3)]
    content = y4m([luma.tobytes() + uv.tobytes() for luma, uv in parts], chroma, rate="30000:1001")
    frames = _read(content)
    assert len(frames) == 3 and frames[2].time == pytest.approx(2 * 1001 / 30000)
    for frame, (luma, _) in zip(frames, parts):
        grey = (luma.astype(float) - 16) * 255 / 219
        found = frame.load() @ [0.299, 0.587, 0.114]
        assert np.abs(found - grey).max() < (1 if chroma == "mono" else 3)


def test_full_range_is_heeded():
    frame = np.full(HEIGHT * WIDTH, 200, np.uint8).tobytes()
    (found,) = _read(y4m([frame], "mono", header=" XCOLORRANGE=FULL"))
    assert (found.load() == 200).all()


def test_a_frame_cut_short_is_left_out():
    rng = np.random.default_rng(2)
    luma, uv = planes(rng, "444")
    content = y4m([luma.tobytes() + uv.tobytes()] * 2)
    assert len(_read(content[:-3])) == 1


def test_jpegs_one_after_the_other():
    rng = np.random.default_rng(3)
    pictures = [cv2.resize(rng.integers(0, 255, (3, 4, 3), np.uint8), (40, 32)) for _ in range(3)]
    files = [cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes() for picture in pictures]
    frames = _read(b"".join(files), fps=10)
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2])
    for frame, picture in zip(frames, pictures):
        assert np.abs(frame.load().astype(int) - picture).mean() < 6


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds nothing"),
        (b"RIFF....AVI LIST", "RIFF"),
        (b"YUV4MPEG2 W0 H4 F25:1\n", "0 x 4"),
        (b"YUV4MPEG2 H4 F25:1\n", "damaged"),
        (b"YUV4MPEG2 W4 H4 F25:1 C420p10\n", "pix_fmt"),
        (b"YUV4MPEG2 W4 H4 F25:1 C444\nFRAMF\n" + bytes(48), "'FRAME' expected"),
    ],
)
def test_what_cannot_be_read_is_said(content, words):
    with pytest.raises(UserError, match=words):
        _read(content)


class FakeCamera:
    """Gives pictures of one grey level each, one every `seconds`."""

    def __init__(self, count, seconds=0.0, opened=True):
        self.count, self.seconds, self.opened = count, seconds, opened
        self.given, self.released, self.lock = 0, False, threading.Lock()

    def isOpened(self):  # noqa: N802
        return self.opened

    def read(self):
        time.sleep(self.seconds)
        if self.given == self.count:
            return False, None
        self.given += 1
        return True, np.full((4, 6, 3), [self.given, 0, 99], np.uint8)  # BGR

    def release(self):
        self.released = True


def test_every_picture_of_a_camera_without_dropping():
    camera = FakeCamera(4)
    frames = list(stream.open_stream("camera:3", open_camera=lambda n: camera, drop=False))
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert (frames[1].load() == [99, 0, 2]).all() and camera.released


def test_a_slow_reader_gets_the_newest_picture():
    camera = FakeCamera(40, seconds=0.005)
    frames = []
    for frame in stream.open_stream("camera:0", open_camera=lambda n: camera):
        assert (frame.load() == [99, 0, frame.index + 1]).all()
        frames.append(frame.index)
        time.sleep(0.03)
    assert frames == sorted(set(frames)) and len(frames) < 40 and frames[-1] == 39
    assert camera.released


def test_cameras_that_are_not_there():
    with pytest.raises(UserError, match="cannot be opened"):
        stream.open_stream("camera:0", open_camera=lambda n: FakeCamera(0, opened=False))
    with pytest.raises(UserError, match="camera:N"):
        stream.open_stream("camera:front")
    assert stream.is_live("-") and stream.is_live("camera:1") and not stream.is_live("x.mp4")


def test_a_pipe_between_processes_is_read_as_it_comes():
    frame = np.zeros(HEIGHT * WIDTH, np.uint8).tobytes()
    content = y4m([frame], "mono")
    code = (
        "import sys, time; out = sys.stdout.buffer; "
        f"out.write({content!r}); out.flush(); sys.stdin.read(1); "
        f"out.write(b'FRAME\\n' + {frame!r})"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as writer:  # fmt: skip
        frames = stream.open_stream("-", pipe=writer.stdout)
        assert next(frames).index == 0  # before the writer goes on
        writer.stdin.write(b"x")
        writer.stdin.close()
        assert next(frames).index == 1 and next(frames, None) is None
