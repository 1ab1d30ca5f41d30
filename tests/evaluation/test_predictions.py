"""Prediction folders of others: layouts, and sentences for what does not fit."""

import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.evaluation import predictions
from align3r_jax.io import depth_files, preview, trajectory

NAMES = ("a", "b", "c")
DEPTH = np.random.default_rng(0).uniform(1, 5, (3, 6, 8)).astype(np.float32)


def read(folder, want="depth", times=None, **settings):
    return predictions.read(folder, NAMES, times, want=want, **settings)


def test_layouts_of_depth(tmp_path):
    (tmp_path / "maps" / "depth").mkdir(parents=True)
    for name, depth in zip(NAMES, DEPTH):
        depth_files.write_depth(tmp_path / "maps" / "depth" / f"{name}.npy", depth)
        # A preview of the same name beside it, as our own results have.
        depth_files.write_depth(tmp_path / "maps" / "depth" / f"{name}.png", 0 * depth + 1)
    np.testing.assert_array_equal(read(tmp_path / "maps").depth, DEPTH)
    (tmp_path / "stack").mkdir()
    holes = DEPTH.copy()
    holes[0, 0, :3] = [0, np.inf, -1]
    np.save(tmp_path / "stack" / "depth.npy", holes)
    found = read(tmp_path / "stack")
    assert np.isnan(found.depth[0, 0, :3]).all() and not found.inverse
    np.testing.assert_array_equal(found.depth[1:], DEPTH[1:])
    (tmp_path / "stack" / "depth.json").write_text('{"inverse": true}')
    found = read(tmp_path / "stack")
    assert found.inverse and found.depth[0, 0, 0] == 0  # infinitely far is known


def test_paths_by_row_or_by_time(tmp_path):
    poses = np.tile(np.eye(4), (6, 1, 1))
    poses[:, 0, 3] = np.arange(6)
    trajectory.write_tum(tmp_path / "traj.txt", np.arange(6) * 0.1, poses)
    found = read(tmp_path, "cameras", times=np.array([0.101, 0.299, 0.5]))
    np.testing.assert_allclose(found.world_from_cam[:, 0, 3], [1, 3, 5])
    with pytest.raises(UserError, match="6 poses for 3 frames, and the frames have no time"):
        read(tmp_path, "cameras")
    with pytest.raises(UserError, match="only 2 of them"):
        read(tmp_path, "cameras", times=np.array([0.1, 0.3, 0.95]))
    trajectory.write_tum(tmp_path / "pred_traj.txt", np.arange(3), poses[:3])
    assert len(read(tmp_path, "cameras").world_from_cam) == 3


def test_what_does_not_fit_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no camera path"):
        read(tmp_path, "cameras")
    np.save(tmp_path / "depth.npy", DEPTH[:2])
    with pytest.raises(UserError, match=r"\(2, 6, 8\); expected \(T, h, w\) of 3 frames"):
        read(tmp_path)
    (tmp_path / "depth.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "dynamic_mask").mkdir()
    mask = preview.encode_png(np.zeros((6, 8), np.uint8))
    for name in ("x", "y"):
        (tmp_path / "dynamic_mask" / f"{name}.png").write_bytes(mask)
    with pytest.raises(UserError, match="2 masks for 3 frames"):
        read(tmp_path, "masks")
