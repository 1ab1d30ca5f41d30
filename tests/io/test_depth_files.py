"""Depth maps in every format: bytes written by hand, round trips, matching to frames, bad files."""

import json
import struct

import numpy as np
import pytest
from PIL import Image

from align3r_jax.errors import UserError
from align3r_jax.io import depth_files

DEPTH = np.random.default_rng(0).uniform(0.5, 9, (30, 40)).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [("npz", 0), ("npy", 0), ("pfm", 0), ("png", 5.1e-4)]
)
def test_round_trip_keeps_missing_pixels(tmp_path, suffix, tolerance):
    depth = DEPTH.copy()
    depth[3, 4] = np.nan
    path = tmp_path / f"a.{suffix}"
    depth_files.write_depth(path, depth, focal=321.5)
    loaded = depth_files.read_depth(path)
    assert loaded.depth.dtype == np.float32 and loaded.depth.shape == (30, 40)
    np.testing.assert_allclose(loaded.depth, depth, atol=tolerance)
    assert np.isnan(loaded.depth[3, 4])
    assert loaded.focal == (321.5 if suffix == "npz" else None)


@pytest.mark.parametrize("order", ["<", ">"])
def test_pfm_bytes(tmp_path, order):
    """Bottom row first; the sign of the scale is the byte order; any white space in the header."""
    values = np.arange(6, dtype=np.float32) + 1
    scale = b"-1.0" if order == "<" else b"1.0"
    data = b"Pf 3  2\n" + scale + b"\n" + struct.pack(f"{order}6f", *values)
    (tmp_path / "a.pfm").write_bytes(data)
    np.testing.assert_array_equal(
        depth_files.read_depth(tmp_path / "a.pfm").depth, [[4, 5, 6], [1, 2, 3]]
    )


def test_png_scale_from_argument_sidecar_and_default(tmp_path):
    Image.fromarray(np.array([[0, 5000], [10000, 65535]], np.uint16)).save(tmp_path / "a.png")
    read = depth_files.read_depth
    np.testing.assert_allclose(read(tmp_path / "a.png").depth, [[np.nan, 5], [10, 65.535]])
    np.testing.assert_allclose(read(tmp_path / "a.png", scale=256).depth[0, 1], 5000 / 256)
    (tmp_path / "depth.json").write_text(json.dumps({"scale": 5000}))
    np.testing.assert_allclose(read(tmp_path / "a.png").depth, [[np.nan, 1], [2, 13.107]])
    with pytest.raises(UserError, match="does not fit into the 16 bits"):
        depth_files.write_depth(tmp_path / "b.png", DEPTH * 100)
    depth_files.write_depth(tmp_path / "b.png", DEPTH, scale=5000)
    np.testing.assert_allclose(read(tmp_path / "b.png").depth, DEPTH, atol=1.1e-4)


@pytest.mark.parametrize("text", ["{", '{"scal": 3}', '{"scale": -1}', '{"inverse": 1}', "[]"])
def test_bad_sidecars(tmp_path, text):
    Image.fromarray(np.full((4, 4), 700, np.uint16)).save(tmp_path / "a.png")
    (tmp_path / "depth.json").write_text(text)
    with pytest.raises(UserError, match=r"depth\.json"):
        depth_files.read_depth(tmp_path / "a.png")


def test_shapes_types_and_missing_values(tmp_path):
    np.savez(tmp_path / "a.npz", depth=DEPTH[None].astype(np.float64), focallength_px=np.eye(3) * 7)
    loaded = depth_files.read_depth(tmp_path / "a.npz")
    np.testing.assert_array_equal(loaded.depth, DEPTH)
    assert loaded.focal == 7
    np.save(tmp_path / "a.npy", DEPTH[..., None])
    np.testing.assert_array_equal(depth_files.read_depth(tmp_path / "a.npy").depth, DEPTH)
    np.save(tmp_path / "b.npy", np.array([[1.0, np.inf, -np.inf, np.nan, -2.0, 0.0]]))
    np.testing.assert_array_equal(
        depth_files.read_depth(tmp_path / "b.npy").depth, [[1, np.nan, np.nan, np.nan, np.nan, 0]]
    )
    np.savez(tmp_path / "single.npz", anything=DEPTH)
    assert depth_files.read_depth(tmp_path / "single.npz").depth.shape == (30, 40)


def test_bad_files_get_a_sentence(tmp_path):
    np.savez(tmp_path / "keys.npz", a=DEPTH, b=DEPTH)
    np.savez(tmp_path / "focal.npz", depth=DEPTH, focallength_px=-3.0)
    np.save(tmp_path / "colour.npy", np.zeros((4, 4, 3)))
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "nothing.npy", np.full((4, 4), np.nan))
    (tmp_path / "junk.npz").write_bytes(b"PK nonsense")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "short.pfm").write_bytes(b"Pf\n4 4\n-1\n1234")
    (tmp_path / "colour.pfm").write_bytes(b"PF\n1 1\n-1\n" + bytes(12))
    (tmp_path / "other.pfm").write_bytes(b"P5\n1 1\n-1\n")
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.png")
    Image.new("L", (4, 4), 9).save(tmp_path / "grey.png")
    (tmp_path / "a.tiff").write_bytes(b"x")
    for name, sentence in {
        "keys.npz": r"no array 'depth'; it holds \['a', 'b'\]",
        "focal.npz": "must be positive",
        "colour.npy": r"shape \(4, 4, 3\)",
        "words.npy": "expected one depth map",
        "objects.npy": "cannot be read",
        "nothing.npy": "no finite depth",
        "junk.npz": "cannot be read",
        "empty.npy": "cannot be read",
        "short.pfm": "cannot be read",
        "colour.pfm": "colour PFM",
        "other.pfm": "no PFM file",
        "rgb.png": "8-bit picture",
        "grey.png": "8-bit picture",
        "a.tiff": "no depth file",
        "missing.npy": "cannot be read",
    }.items():
        with pytest.raises(UserError, match=sentence):
            depth_files.read_depth(tmp_path / name)


def test_folder_in_the_reference_layout(tmp_path):
    names = ["f1", "f2", "f10"]
    for index, name in enumerate(names):
        np.savez(
            tmp_path / f"{name}_pred_depth_depthpro.npz",
            depth=DEPTH + index,
            focallength_px=np.float32(500 + index),
        )
        np.savez(tmp_path / f"{name}_pred_depth_depthanything.npz", depth=DEPTH[None] * 2)
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")  # the frame itself
    folder = depth_files.read_depth_folder(tmp_path, names)
    np.testing.assert_array_equal(folder.depth, [DEPTH, DEPTH + 1, DEPTH + 2])
    np.testing.assert_array_equal(folder.focal, [500, 501, 502])
    assert folder.metric and not folder.inverse
    chosen = depth_files.read_depth_folder(str(tmp_path / "*_depthanything.npz"), names[::-1])
    assert chosen.inverse and not chosen.metric and chosen.focal is None
    np.testing.assert_array_equal(chosen.depth[0], DEPTH * 2)
    assert [path.name.split("_")[0] for path in chosen.paths] == ["f10", "f2", "f1"]


def test_matching_by_number_when_names_differ(tmp_path):
    for number in (1, 2, 10):
        np.save(tmp_path / f"d{number}.npy", DEPTH * number)
    folder = depth_files.read_depth_folder(tmp_path, ["a", "b", "c"])
    np.testing.assert_allclose(folder.depth[:, 0, 0], DEPTH[0, 0] * np.array([1, 2, 10]))
    assert not folder.metric and folder.focal is None
    ambiguous = "named after 2 of 2 frames, the first 'a'.*exactly one per frame"
    with pytest.raises(UserError, match=ambiguous):
        depth_files.find_depth_files(tmp_path, ["a", "b"])
    with pytest.raises(UserError, match="after 1 of 3 frames, the first 'x'"):
        depth_files.find_depth_files(tmp_path, ["d1", "d2", "x"])
    subset = depth_files.find_depth_files(tmp_path, ["d10", "d1"])
    assert [path.name for path in subset] == ["d10.npy", "d1.npy"]


def test_folder_focals_flags_and_sizes(tmp_path):
    np.savez(tmp_path / "a.npz", depth=DEPTH, focallength_px=400.0)
    np.savez(tmp_path / "b.npz", depth=DEPTH)
    (tmp_path / "depth.json").write_text('{"inverse": true, "metric": true}')
    folder = depth_files.read_depth_folder(tmp_path, ["a", "b"])
    assert folder.inverse and folder.metric
    np.testing.assert_array_equal(folder.focal, [400, 400])
    np.savez(tmp_path / "b.npz", depth=DEPTH[1:])
    with pytest.raises(UserError, match=r"'b\.npz' is \(29, 40\)"):
        depth_files.read_depth_folder(tmp_path, ["a", "b"])
    with pytest.raises(UserError, match="does not exist"):
        depth_files.read_depth_folder(tmp_path / "no", ["a"])
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="holds no depth maps"):
        depth_files.read_depth_folder(tmp_path / "bare", ["a"])
