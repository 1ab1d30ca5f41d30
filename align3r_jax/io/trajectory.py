"""Camera paths and intrinsics as text: TUM trajectories, nine numbers per frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from align3r_jax.errors import UserError


def write_tum(path: str | Path, times: np.ndarray, world_from_cam: np.ndarray) -> None:
    """Writes `t x y z qx qy qz qw` per frame (the TUM standard: scalar last).

    times: (T,) seconds. world_from_cam: (T, 4, 4). Neighbouring quaternions have the nearer of
    their two signs.
    """
    poses = np.asarray(world_from_cam, np.float64)
    quaternions = Rotation.from_matrix(poses[:, :3, :3]).as_quat()
    signs = np.sign((quaternions[1:] * quaternions[:-1]).sum(axis=-1) + 1e-12)
    quaternions[1:] *= np.cumprod(signs)[:, None]
    rows = np.column_stack([np.asarray(times, np.float64), poses[:, :3, 3], quaternions])
    header = "t x y z qx qy qz qw (world_from_cam, x right, y down, z forward)"
    np.savetxt(path, rows, fmt=["%.6f"] + ["%.9g"] * 7, header=header)


def write_kitti(path: str | Path, world_from_cam: np.ndarray) -> None:
    """Writes the upper three rows of `world_from_cam` (T, 4, 4), twelve numbers per frame.

    The order of KITTI's odometry benchmark: row by row, camera to world, x right, y down, z
    forward; no times.
    """
    rows = np.asarray(world_from_cam, np.float64)[:, :3].reshape(-1, 12)
    np.savetxt(path, rows, fmt="%.9g")


def read_tum(path: str | Path, *, scalar_first: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns times (T,) float64 and world_from_cam (T, 4, 4) float64.

    Quaternions of any length are normalised. scalar_first: `qw qx qy qz`, as the reference
    implementations write `pred_traj.txt`. Raises UserError if a line is not eight finite numbers
    or a quaternion is zero.
    """
    rows = _read_rows(path, 8, "t x y z qx qy qz qw")
    quaternions = rows[:, 4:]
    if scalar_first:
        quaternions = np.roll(quaternions, -1, axis=1)
    zero = np.linalg.norm(quaternions, axis=1) < 1e-6
    if zero.any():
        raise UserError(f"'{path}': the quaternion of pose {int(np.argmax(zero))} is zero.")
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3] = Rotation.from_quat(quaternions).as_matrix()
    poses[:, :3, 3] = rows[:, 1:4]
    return rows[:, 0], poses


def write_intrinsics(path: str | Path, intrinsics: np.ndarray) -> None:
    """Writes (T, 3, 3) intrinsics, nine numbers (row by row) per line."""
    np.savetxt(path, np.asarray(intrinsics, np.float64).reshape(-1, 9), fmt="%.6f")


def read_intrinsics(path: str | Path) -> np.ndarray:
    """Returns (T, 3, 3) float64; a file of one 3x3 matrix over three lines gives T = 1.

    Raises UserError if the lines are not nine finite numbers or a focal is not positive.
    """
    rows = _read_rows(path, 9, "the 3x3 matrix row by row", alternative=3)
    if rows.shape[1] == 3 and len(rows) != 3:
        raise UserError(f"'{path}': a 3x3 matrix has three lines, got {len(rows)}.")
    intrinsics = rows.reshape(-1, 3, 3)
    if not (intrinsics[:, [0, 1], [0, 1]] > 0).all() or not (intrinsics[:, 2, 2] == 1).all():
        raise UserError(f"'{path}' holds no intrinsics: fx, fy > 0 and a last row 0 0 1 expected.")
    return intrinsics


def _read_rows(
    path: str | Path, columns: int, meaning: str, alternative: int | None = None
) -> np.ndarray:
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read ({error}).") from error
    rows: list[list[float]] = []
    for number, line in enumerate(lines, 1):
        fields = line.split("#")[0].replace(",", " ").split()
        if not fields:
            continue
        try:
            row = [float(field) for field in fields]
        except ValueError:
            row = []
        allowed = (len(rows[0]),) if rows else (columns, alternative)
        if len(row) not in allowed or not np.isfinite(row).all():
            raise UserError(
                f"'{path}', line {number}: expected {columns} finite numbers ({meaning}), got "
                f"'{line.strip()[:80]}'."
            )
        rows.append(row)
    if not rows:
        raise UserError(f"'{path}' holds no numbers.")
    return np.array(rows, np.float64)
