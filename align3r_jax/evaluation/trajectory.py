"""Camera-path metrics with the semantics of evo, in float64 on the host.

Poses are world_from_cam (T, 4, 4), OpenCV axes on both sides, frame k matched to frame k.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.spatial.transform import Rotation

from align3r_jax.errors import UserError


class DegenerateTrajectory(UserError):
    """The path does not fix a similarity: the camera stands still or moves on a straight line."""


@dataclasses.dataclass(frozen=True)
class Similarity:
    """y = scale * rotation x + translation; degenerate: the rotation is not fixed by the data."""

    scale: float
    rotation: np.ndarray
    translation: np.ndarray
    degenerate: bool = False

    def apply(self, positions: np.ndarray) -> np.ndarray:
        return self.scale * positions @ self.rotation.T + self.translation

    def apply_to_poses(self, world_from_cam: np.ndarray) -> np.ndarray:
        """Moves whole cameras: positions by the similarity, axes by its rotation."""
        moved = np.array(world_from_cam, np.float64)
        moved[:, :3, 3] = self.apply(moved[:, :3, 3])
        moved[:, :3, :3] = self.rotation @ moved[:, :3, :3]
        return moved


@dataclasses.dataclass(frozen=True)
class TrajectoryMetrics:
    """ate, rpe_trans in the units of the truth, rpe_rot_deg in degrees (root mean squares)."""

    ate: float
    rpe_trans: float
    rpe_rot_deg: float
    similarity: Similarity


def umeyama(source: np.ndarray, target: np.ndarray, strict: bool = True) -> Similarity:
    """argmin over c, R, t of sum |c R x + t - y|^2 (Umeyama 1991).

    C = mean (y - y')(x - x')^T = U D V^T, S = diag(1, 1, sign(det U det V)), R = U S V^T,
    c = tr(D S) / mean |x - x'|^2. source, target: (T, 3). Raises DegenerateTrajectory if fewer
    than two singular values exceed the machine epsilon; with strict=False returns one of the
    minimisers (scale 0 if the source stands still) and says so.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.shape != target.shape or source.ndim != 2:
        raise UserError(
            f"Trajectories have shapes {source.shape} and {target.shape}: match their frames first."
        )
    source_mean, target_mean = source.mean(0), target.mean(0)
    spread = ((source - source_mean) ** 2).sum(1).mean()
    covariance = (target - target_mean).T @ (source - source_mean) / len(source)
    left, values, right = np.linalg.svd(covariance)
    degenerate = int((values > np.finfo(np.float64).eps).sum()) < 2
    if degenerate and strict:
        raise DegenerateTrajectory(
            "Camera positions that stand still or lie on a line do not fix a similarity: "
            "leave this sequence out of pose averages."
        )
    signs = np.ones(3)
    if np.linalg.det(left) * np.linalg.det(right) < 0:
        signs[2] = -1
    rotation = (left * signs) @ right
    scale = float((values * signs).sum() / spread) if spread > 0 else 0.0
    return Similarity(scale, rotation, target_mean - scale * rotation @ source_mean, degenerate)


def ate(aligned: np.ndarray, truth: np.ndarray) -> float:
    """Absolute trajectory error sqrt(mean |x - y|^2) of aligned positions (T, 3)."""
    return float(np.sqrt(((aligned - truth) ** 2).sum(1).mean()))


def relative_errors(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E_i = (Q_i^-1 Q_{i+1})^-1 (P_i^-1 P_{i+1}) for all i: (|trans E_i|, angle E_i in degrees).

    prediction P, truth Q: (T, 4, 4). Returns two (T - 1,) arrays.
    """
    error = _inverse(_steps(truth)) @ _steps(prediction)
    return np.linalg.norm(error[:, :3, 3], axis=1), rotation_angle_deg(error[:, :3, :3])


def evaluate(prediction: np.ndarray, truth: np.ndarray, strict: bool = True) -> TrajectoryMetrics:
    """ATE and RPE after Sim(3) alignment; raises DegenerateTrajectory as `umeyama` does."""
    prediction, truth = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    similarity = umeyama(prediction[:, :3, 3], truth[:, :3, 3], strict)
    aligned = similarity.apply_to_poses(prediction)
    shifts, angles = relative_errors(aligned, truth)
    return TrajectoryMetrics(
        ate=ate(aligned[:, :3, 3], truth[:, :3, 3]),
        rpe_trans=_rms(shifts),
        rpe_rot_deg=_rms(angles),
        similarity=similarity,
    )


def standing_camera(truth: np.ndarray) -> TrajectoryMetrics:
    """What a camera that never moves would score: the baseline beside every claim.

    Its best place is the mean of the true positions.
    """
    truth = np.asarray(truth, np.float64)
    still = np.tile(np.eye(4), (len(truth), 1, 1))
    still[:, :3, 3] = truth[:, :3, 3].mean(0)
    return evaluate(still, truth, strict=False)


def path_length(world_from_cam: np.ndarray) -> float:
    """Sum of the distances between consecutive cameras."""
    positions = np.asarray(world_from_cam, np.float64)[:, :3, 3]
    return float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum())


def rotation_angle_deg(rotation: np.ndarray) -> np.ndarray:
    """Angle of rotations (..., 3, 3) in degrees, exact for small ones too."""
    skew = rotation - np.swapaxes(rotation, -1, -2)
    sine = np.sqrt(skew[..., 2, 1] ** 2 + skew[..., 0, 2] ** 2 + skew[..., 1, 0] ** 2)
    cosine = np.trace(rotation, axis1=-2, axis2=-1) - 1
    return np.degrees(np.arctan2(sine, cosine))


def associate(
    first: np.ndarray, second: np.ndarray, max_difference: float = 0.02
) -> list[tuple[int, int]]:
    """Index pairs of time stamps closer than `max_difference`, the closest taken first.

    Every stamp is used once; sorted by the first index.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    # Only neighbours in time are compared: motion capture has tens of thousands of rows.
    order = np.argsort(second, kind="stable")
    begin = np.searchsorted(second[order], first - 1.001 * max_difference)
    end = np.searchsorted(second[order], first + 1.001 * max_difference, side="right")
    i = np.repeat(np.arange(len(first)), end - begin)
    j = np.concatenate([order[:0], *(order[a:b] for a, b in zip(begin, end))])
    difference = np.abs(first[i] - second[j])
    used_first, used_second, matches = set(), set(), []
    for k in np.lexsort((j, i, difference)):
        pair = int(i[k]), int(j[k])
        if difference[k] >= max_difference:
            break
        if pair[0] not in used_first and pair[1] not in used_second:
            matches.append(pair)
            used_first.add(pair[0])
            used_second.add(pair[1])
    return sorted(matches)


def poses_from_quaternions(positions: np.ndarray, quaternions: np.ndarray) -> np.ndarray:
    """(T, 3) and (T, 4) x y z w (any length) to (T, 4, 4)."""
    return _poses(Rotation.from_quat(quaternions).as_matrix(), positions)


def poses_from_rows(rows: np.ndarray) -> np.ndarray:
    """Rows of 16 or 12 numbers, world_from_cam (ScanNet, Replica), to (T, 4, 4)."""
    matrices = np.asarray(rows, np.float64).reshape(len(rows), -1, 4)
    return _poses(matrices[:, :3, :3], matrices[:, :3, 3])


def poses_from_extrinsics(cam_from_world: np.ndarray, centre: bool = False) -> np.ndarray:
    """(T, 3 or 4, 4) cam_from_world (Sintel) to world_from_cam (T, 4, 4).

    centre: subtract the mean position, as the reference's reader does (no effect on metrics).
    """
    turn = np.swapaxes(np.asarray(cam_from_world, np.float64)[:, :3, :3], 1, 2)
    positions = -(turn @ np.asarray(cam_from_world, np.float64)[:, :3, 3:])[..., 0]
    return _poses(turn, positions - positions.mean(0) if centre else positions)


def _poses(rotation, position):
    poses = np.tile(np.eye(4), (len(position), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = rotation, position
    return poses


def _inverse(poses):
    turn = np.swapaxes(poses[:, :3, :3], 1, 2)
    return _poses(turn, -(turn @ poses[:, :3, 3:])[..., 0])


def _steps(poses):
    return _inverse(poses[:-1]) @ poses[1:]


def _rms(values):
    return float(np.sqrt((values**2).mean())) if len(values) else 0.0
