"""Flow formats: bytes written by hand, round trips, names, resizing, bad files."""

import struct

import cv2
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.io import flow_files, preprocess

FLOW = np.random.default_rng(0).normal(0, 20, (5, 7, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [("flo", 0), ("npy", 0), ("npz", 0), ("png", 1 / 128)]
)
def test_round_trip_keeps_unknown_pixels(tmp_path, suffix, tolerance):
    flow = FLOW.copy()
    flow[1, 2] = np.nan
    path = tmp_path / f"0_1.{suffix}"
    flow_files.write_flow(path, flow)
    loaded = flow_files.read_flow(path)
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(loaded, flow, atol=tolerance)
    assert np.isnan(loaded).sum() == 2


def test_middlebury_bytes(tmp_path):
    data = b"PIEH" + struct.pack("<2i8f", 2, 2, 1, 2, 3, 4, 5, 6, 1e10, 0)
    (tmp_path / "a.flo").write_bytes(data)
    flow = flow_files.read_flow(tmp_path / "a.flo")
    np.testing.assert_array_equal(flow, [[[1, 2], [3, 4]], [[5, 6], [np.nan, np.nan]]])


def test_kitti_bytes(tmp_path):
    rgb = np.zeros((1, 3, 3), np.uint16)
    rgb[0, 0] = (32768 + 64, 32768 - 128, 1)
    rgb[0, 1] = (32768 + 32, 32768, 1)
    cv2.imwrite(str(tmp_path / "a.png"), rgb[..., ::-1])
    flow = flow_files.read_flow(tmp_path / "a.png")
    np.testing.assert_array_equal(flow, [[[1, -2], [0.5, 0], [np.nan, np.nan]]])


def test_names(tmp_path):
    for name in ("0_1.flo", "0003_0004.npy", "cat_dog.npz"):
        flow_files.write_flow(tmp_path / name, FLOW)
    assert flow_files.find_flow(tmp_path, 0, 1).name == "0_1.flo"
    assert flow_files.find_flow(tmp_path, 3, 4).name == "0003_0004.npy"
    assert flow_files.find_flow(tmp_path, 1, 0) is None
    names = ("cat", "x", "dog")
    assert flow_files.find_flow(tmp_path, 0, 2, names).name == "cat_dog.npz"
    assert flow_files.find_flow(tmp_path, 0, 1, names).name == "0_1.flo"


def test_original_flow_at_working_size_maps_the_same_points():
    """p_working + flow' is the working position of p_original + flow, for an affine motion."""
    plan = preprocess.plan_working_size((90, 131), 64)
    y, x = np.mgrid[:90, :131].astype(np.float32)
    motion = np.stack([0.05 * x - 0.02 * y + 1, 0.03 * x + 0.04 * y - 2], axis=-1)
    working = flow_files.to_working_size(motion, plan)
    assert working.shape == (*plan.working, 2)
    scale = np.array(plan.resized[::-1]) / np.array(plan.original[::-1])
    corner = np.array(plan.crop[::-1])
    v, u = np.mgrid[: plan.working[0], : plan.working[1]]
    here = np.stack([u, v], axis=-1)
    original = (here + corner + 0.5) / scale - 0.5
    moved = original + np.stack(
        [
            0.05 * original[..., 0] - 0.02 * original[..., 1] + 1,
            0.03 * original[..., 0] + 0.04 * original[..., 1] - 2,
        ],
        axis=-1,
    )
    expected = (moved + 0.5) * scale - 0.5 - corner - here
    np.testing.assert_allclose(working[2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-3)


def test_bad_files_get_a_sentence(tmp_path):
    (tmp_path / "magic.flo").write_bytes(b"XXXX" + bytes(20))
    (tmp_path / "short.flo").write_bytes(b"PIEH" + struct.pack("<2i", 4, 4) + bytes(8))
    np.save(tmp_path / "depth.npy", np.zeros((4, 4)))
    np.savez(tmp_path / "keys.npz", a=FLOW, b=FLOW)
    cv2.imwrite(str(tmp_path / "eight.png"), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "a.txt").write_text("x")
    for name, sentence in {
        "magic.flo": "not 'PIEH'",
        "short.flo": "4 x 4 pixels but has 20 bytes, expected 140",
        "depth.npy": r"shape \(4, 4\)",
        "keys.npz": "no array 'flow'",
        "eight.png": "no KITTI flow",
        "a.txt": "no flow file",
        "missing.flo": "cannot be read",
    }.items():
        with pytest.raises(UserError, match=sentence):
            flow_files.read_flow(tmp_path / name)
    with pytest.raises(UserError, match="exceeds 511"):
        flow_files.write_flow(tmp_path / "far.png", FLOW + 600)
