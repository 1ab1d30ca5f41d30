"""Trajectory metrics against recorded numbers of evo, and against evo itself."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from align3r_jax.errors import UserError
from align3r_jax.evaluation import trajectory


def _poses(rows):
    """Rows x y z qw qx qy qz."""
    return trajectory.poses_from_quaternions(rows[:, :3], rows[:, [4, 5, 6, 3]])


@pytest.fixture(scope="module")
def golden(golden_dir):
    numbers = json.loads((golden_dir / "pose_metrics.json").read_text())
    return np.load(golden_dir / "pose_metrics.npz"), numbers


@pytest.mark.golden
def test_recorded_cases(golden):
    arrays, numbers = golden
    rounded = []
    for case, expected in numbers["cases"].items():
        truth, prediction = _poses(arrays[f"{case}/gt_tum"]), _poses(arrays[f"{case}/pred_tum"])
        ours = trajectory.evaluate(prediction, truth)
        values = (ours.ate, ours.rpe_trans, ours.rpe_rot_deg)
        recorded = [expected[name] for name in ("ate", "rpe_trans", "rpe_rot_deg")]
        np.testing.assert_allclose(values, recorded, atol=1e-9)
        np.testing.assert_allclose(values, expected["text_file_values"], atol=1e-6)
        similarity = expected["umeyama"]
        assert ours.similarity.scale == pytest.approx(similarity["scale"], abs=1e-9)
        np.testing.assert_allclose(ours.similarity.rotation, similarity["rotation"], atol=1e-9)
        np.testing.assert_allclose(
            ours.similarity.translation, similarity["translation"], atol=1e-9
        )
        np.testing.assert_allclose(
            ours.similarity.apply(prediction[:, :3, 3]),
            arrays[f"{case}/aligned_positions"],
            atol=1e-9,
        )
        rounded.append(values)
    average = numbers["dataset_average_over_cases"]
    np.testing.assert_allclose(np.mean(rounded, 0), list(average.values()), atol=1e-6)


@pytest.mark.golden
def test_recorded_failures(golden):
    """What evo refuses is refused by name; nothing recorded is left out."""
    arrays, numbers = golden
    assert set(numbers) <= {"evo", "cases", "dataset_average_over_cases",
                            "static_ground_truth", "straight_line_ground_truth"}  # fmt: skip
    path = _poses(arrays[f"{next(iter(numbers['cases']))}/gt_tum"])
    still, line = path.copy(), path.copy()
    still[:, :3, 3] = [1.0, 2.0, 3.0]
    line[:, :3, 3] = np.arange(len(path))[:, None] * [1.0, 0.5, 0.0]
    for name, truth in (("static_ground_truth", still), ("straight_line_ground_truth", line)):
        assert "Degenerate" in numbers[name]
        with pytest.raises(trajectory.DegenerateTrajectory):
            trajectory.evaluate(path, truth)


@pytest.mark.golden
def test_recorded_readers(golden):
    arrays, _ = golden
    stamps = arrays["sintel/loaded_stamps"].ravel()
    assert len(stamps) == len(arrays["sintel/world2cam"])
    np.testing.assert_array_equal(np.diff(stamps), 1)  # numbers of the frames
    sintel = trajectory.poses_from_extrinsics(arrays["sintel/world2cam"], centre=True)
    np.testing.assert_allclose(sintel, _poses(arrays["sintel/loaded_tum"]), atol=1e-9)
    replica = trajectory.poses_from_rows(arrays["replica/rows"])
    np.testing.assert_allclose(replica, _poses(arrays["replica/loaded_tum"]), atol=1e-9)
    matches = trajectory.associate(arrays["associate/first"], arrays["associate/second"])
    stamps = [(arrays["associate/first"][i], arrays["associate/second"][j]) for i, j in matches]
    recorded = arrays["associate/matches"]
    if np.issubdtype(recorded.dtype, np.integer) or (recorded % 1 == 0).all():
        np.testing.assert_array_equal(matches, recorded)
    else:
        np.testing.assert_allclose(stamps, recorded, atol=1e-9)


def _random_path(rng, count):
    steps = rng.normal(size=(count, 3)) * 0.1
    return trajectory.poses_from_quaternions(np.cumsum(steps, 0), rng.normal(size=(count, 4)))


def _disturbed(rng, poses, scale, noise):
    turn = Rotation.random(random_state=int(rng.integers(1 << 30))).as_matrix()
    moved = trajectory.Similarity(scale, turn, rng.normal(size=3)).apply_to_poses(poses)
    tremor = Rotation.from_rotvec(noise * rng.normal(size=(len(poses), 3))).as_matrix()
    moved[:, :3, :3] = moved[:, :3, :3] @ tremor
    moved[:, :3, 3] += noise * rng.normal(size=(len(poses), 3))
    return moved


@pytest.mark.parametrize("seed", range(4))
def test_same_as_evo(seed):
    from evo.core.metrics import PoseRelation, Unit
    from evo.core.trajectory import PoseTrajectory3D
    from evo.main_ape import ape
    from evo.main_rpe import rpe

    rng = np.random.default_rng(seed)
    truth = _random_path(rng, 12 + seed)
    prediction = _disturbed(rng, truth, rng.uniform(0.3, 3), 0.05)
    times = np.arange(len(truth), dtype=float)
    reference, estimate = (
        PoseTrajectory3D(poses_se3=list(poses), timestamps=times) for poses in (truth, prediction)
    )
    ours = trajectory.evaluate(prediction, truth)
    theirs = ape(reference, estimate, PoseRelation.translation_part, align=True, correct_scale=True)
    assert ours.ate == pytest.approx(theirs.stats["rmse"], abs=1e-9)
    for relation, value in (
        (PoseRelation.translation_part, ours.rpe_trans),
        (PoseRelation.rotation_angle_deg, ours.rpe_rot_deg),
    ):
        theirs = rpe(
            reference, estimate, relation, delta=1, delta_unit=Unit.frames, rel_delta_tol=0.01,
            all_pairs=True, align=True, correct_scale=True,
        )  # fmt: skip
        assert value == pytest.approx(theirs.stats["rmse"], abs=1e-8)


def test_invariant_to_similarities():
    rng = np.random.default_rng(0)
    truth = _random_path(rng, 9)
    ours = trajectory.evaluate(_disturbed(rng, truth, 2.5, 0.0), truth)
    assert max(ours.ate, ours.rpe_trans, ours.rpe_rot_deg) < 1e-6


def test_degenerate_paths_are_named():
    truth = _random_path(np.random.default_rng(1), 6)
    for positions in (np.zeros((6, 3)), np.arange(6.0)[:, None] * [1.0, 0.0, 0.0]):
        other = truth.copy()
        other[:, :3, 3] = positions
        with pytest.raises(trajectory.DegenerateTrajectory, match="line"):
            trajectory.evaluate(truth, other)
        assert trajectory.evaluate(other, other, strict=False).similarity.degenerate
    with pytest.raises(UserError, match="match their frames"):
        trajectory.umeyama(np.zeros((3, 3)), np.zeros((4, 3)))


def test_standing_camera():
    truth = _random_path(np.random.default_rng(2), 8)
    standing = trajectory.standing_camera(truth)
    centred = truth[:, :3, 3] - truth[:, :3, 3].mean(0)
    assert standing.ate == pytest.approx(np.sqrt((centred**2).sum(1).mean()))
    _, angles = trajectory.relative_errors(np.tile(np.eye(4), (8, 1, 1)), truth)
    assert standing.rpe_rot_deg == pytest.approx(np.sqrt((angles**2).mean()))
    still = np.tile(np.eye(4), (8, 1, 1))
    assert trajectory.evaluate(still, truth, strict=False).ate == pytest.approx(standing.ate)
