"""Trajectories and intrinsics as text: known lines, round trips, bad lines."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from align3r_jax.errors import UserError
from align3r_jax.io import trajectory


def _poses(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (count, 1, 1))
    turns = np.linspace(0, 7, count)[:, None] * np.array([0.3, -0.5, 0.8])
    poses[:, :3, :3] = Rotation.from_rotvec(turns).as_matrix()
    poses[:, :3, 3] = rng.normal(0, 3, (count, 3))
    return poses


def test_tum_round_trip_and_order(tmp_path):
    poses = _poses(40)
    times = np.arange(40) / 7
    trajectory.write_tum(tmp_path / "a.txt", times, poses)
    read_times, read_poses = trajectory.read_tum(tmp_path / "a.txt")
    np.testing.assert_allclose(read_times, times, atol=1e-6)
    np.testing.assert_allclose(read_poses, poses, atol=1e-7)
    quaternions = np.loadtxt(tmp_path / "a.txt")[:, 4:]
    assert ((quaternions[1:] * quaternions[:-1]).sum(axis=1) > 0.9).all()  # no sign jumps


def test_a_line_of_the_standard(tmp_path):
    """A quarter turn about z: qx qy qz qw = 0 0 sin 45 cos 45; x goes to y."""
    (tmp_path / "a.txt").write_text("# comment\n\n1.5 1 2 3 0 0 2 2  # any length\n")
    times, poses = trajectory.read_tum(tmp_path / "a.txt")
    assert times.tolist() == [1.5]
    np.testing.assert_allclose(poses[0] @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-12)
    (tmp_path / "first.txt").write_text("1.5 1 2 3 2 0 0 2\n")
    _, first = trajectory.read_tum(tmp_path / "first.txt", scalar_first=True)
    np.testing.assert_allclose(first, poses, atol=1e-12)


def test_intrinsics(tmp_path):
    intrinsics = np.array([[[500.25, 0, 250], [0, 501, 140.5], [0, 0, 1]]]) * [[[1]], [[1]]]
    trajectory.write_intrinsics(tmp_path / "k.txt", intrinsics)
    assert len((tmp_path / "k.txt").read_text().split("\n")[0].split()) == 9
    np.testing.assert_allclose(trajectory.read_intrinsics(tmp_path / "k.txt"), intrinsics)
    (tmp_path / "one.txt").write_text("500 0 250\n0 501 140\n0 0 1\n")
    np.testing.assert_array_equal(
        trajectory.read_intrinsics(tmp_path / "one.txt"),
        [[[500, 0, 250], [0, 501, 140], [0, 0, 1]]],
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no numbers"),
        ("1 2 3\n", "line 1: expected 8"),
        ("0 0 0 0 0 0 0 1\n1 a 0 0 0 0 0 1\n", "line 2.*got '1 a 0"),
        ("0 0 0 nan 0 0 0 1\n", "finite"),
        ("0 1 2 3 0 0 0 0\n", "quaternion of pose 0 is zero"),
    ],
)
def test_bad_trajectories(tmp_path, text, sentence):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=sentence):
        trajectory.read_tum(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1 0 0 0 1 0 0 0\n", "expected 9"),
        ("1 0 0\n0 1 0\n", "three lines, got 2"),
        ("0 0 2 0 5 2 0 0 1\n", "no intrinsics"),
        ("5 0 2 0 5 2 0 0 2\n", "no intrinsics"),
    ],
)
def test_bad_intrinsics(tmp_path, text, sentence):
    (tmp_path / "k.txt").write_text(text)
    with pytest.raises(UserError, match=sentence):
        trajectory.read_intrinsics(tmp_path / "k.txt")
    with pytest.raises(UserError, match="cannot be read"):
        trajectory.read_intrinsics(tmp_path / "missing.txt")
