"""OpenEXR depth: round trip, bytes laid out by hand, files of other programs, bad files."""

import struct
import sys

import numpy as np
import OpenEXR
import pytest

from align3r_jax.errors import UserError
from align3r_jax.io import depth_files, exr

VALUES = np.array([[0.5, np.nan, 3.25], [1e4, np.inf, 0.0]], np.float32)


def _by_hand(values, channel=b"Z", half=False):
    """An uncompressed scan-line file, byte by byte as the format's documentation lays it out."""
    height, width = values.shape

    def attribute(name, kind, content):
        return name + b"\0" + kind + b"\0" + struct.pack("<i", len(content)) + content

    box = struct.pack("<4i", 0, 0, width - 1, height - 1)
    channels = channel + b"\0" + struct.pack("<iBxxxii", 1 if half else 2, 0, 1, 1) + b"\0"
    header = b"".join(
        [
            struct.pack("<ii", 20000630, 2),
            attribute(b"channels", b"chlist", channels),
            attribute(b"compression", b"compression", b"\0"),
            attribute(b"dataWindow", b"box2i", box),
            attribute(b"displayWindow", b"box2i", box),
            attribute(b"lineOrder", b"lineOrder", b"\0"),
            attribute(b"pixelAspectRatio", b"float", struct.pack("<f", 1)),
            attribute(b"screenWindowCenter", b"v2f", struct.pack("<2f", 0, 0)),
            attribute(b"screenWindowWidth", b"float", struct.pack("<f", 1)),
            b"\0",
        ]
    )
    rows = [row.astype("<f2" if half else "<f4").tobytes() for row in values]
    blocks = [struct.pack("<ii", y, len(row)) + row for y, row in enumerate(rows)]
    first = len(header) + 8 * height
    offsets = [first + sum(map(len, blocks[:y])) for y in range(height)]
    return header + struct.pack(f"<{height}Q", *offsets) + b"".join(blocks)


@pytest.mark.parametrize("channel", ["Z", "Y"])
def test_round_trip_keeps_every_bit(tmp_path, channel):
    exr.write_exr(tmp_path / "a.exr", VALUES, channel=channel)
    read = exr.read_exr(tmp_path / "a.exr")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, VALUES)


@pytest.mark.parametrize("half", [False, True])
def test_bytes_by_hand(tmp_path, half):
    (tmp_path / "a.exr").write_bytes(_by_hand(VALUES, half=half))
    np.testing.assert_array_equal(exr.read_exr(tmp_path / "a.exr"), VALUES)


def test_depth_among_other_channels(tmp_path):
    path = str(tmp_path / "a.exr")
    colour = np.zeros_like(VALUES)
    layers = {"ViewLayer.Combined.R": colour, "ViewLayer.Depth.Z": VALUES}
    OpenEXR.File({"type": OpenEXR.scanlineimage}, layers).write(path)
    np.testing.assert_array_equal(exr.read_exr(path), VALUES)
    OpenEXR.File({}, {"R": colour, "G": colour, "B": colour}).write(path)
    with pytest.raises(UserError, match="channels B, G, R; expected one"):
        exr.read_exr(path)


def test_as_a_depth_map(tmp_path):
    depth_files.write_depth(tmp_path / "a_depth.exr", VALUES)
    (found,) = depth_files.find_depth_files(tmp_path, ["a"])
    depth = depth_files.read_depth(found).depth
    np.testing.assert_array_equal(depth, np.where(np.isfinite(VALUES), VALUES, np.nan))


def test_bad_files(tmp_path, monkeypatch):
    path = tmp_path / "a.exr"
    for content in (b"", b"no picture", _by_hand(VALUES)[:-9]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.exr"):
            exr.read_exr(path)
    with pytest.raises(UserError, match="missing"):
        exr.read_exr(tmp_path / "missing.exr")
    with pytest.raises(UserError, match="cannot be written"):
        exr.write_exr(tmp_path / "nowhere" / "a.exr", VALUES)
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(UserError, match="pip install OpenEXR"):
        exr.read_exr(path)
