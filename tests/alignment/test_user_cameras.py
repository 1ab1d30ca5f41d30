"""What users say of their cameras: brought to working size, or refused with a sentence."""

import numpy as np
import pytest

from align3r_jax.alignment import user_cameras
from align3r_jax.errors import UserError
from align3r_jax.structs import KnownCameras, WorkingSize

SIZE = WorkingSize(original=(480, 640), resized=(384, 512), crop=(8, 0), working=(368, 512))
INTRINSICS = np.array([[525.0, 0, 319.5], [0, 525.0, 239.5], [0, 0, 1]])


def from_user(size=SIZE, num_frames=3, shared_focal=False, **given):
    return user_cameras.from_user(
        size, num_frames, KnownCameras(**given), shared_focal=shared_focal
    )


def test_intrinsics_of_the_original_frames():
    known, notes = from_user(intrinsics=INTRINSICS)
    np.testing.assert_allclose(known.focal, [420.0] * 3)
    np.testing.assert_allclose(known.principal_point, [[255.5, 183.5]] * 3)
    assert known.world_from_cam is None and known.holds_all_intrinsics and notes == ()
    per_frame, _ = from_user(num_frames=2, intrinsics=np.stack([INTRINSICS, INTRINSICS]))
    np.testing.assert_allclose(per_frame.focal, known.focal[:2])


def test_intrinsics_of_other_resolutions_of_the_same_picture():
    """Half the size: f and c + 1/2 halve; the size of the images says so."""
    half = INTRINSICS * [[0.5], [0.5], [1]]
    half[:2, 2] -= 0.25
    known, _ = from_user(intrinsics=half, image_size=[240, 320])
    np.testing.assert_allclose(known.focal, [420.0] * 3)
    np.testing.assert_allclose(known.principal_point, [[255.5, 183.5]] * 3, atol=1e-4)
    # Unsaid, their principal point lies far from the centre, or (twice the size) outside.
    _, notes = from_user(intrinsics=half)
    assert len(notes) == 1 and "another resolution" in notes[0]
    with pytest.raises(UserError, match="other proportions"):
        from_user(intrinsics=INTRINSICS, image_size=[368, 512])


def test_intrinsics_of_some_frames():
    some = np.stack([INTRINSICS, np.full((3, 3), np.nan), 1.001 * INTRINSICS])
    some[2, 2, 2] = 1
    known, _ = from_user(intrinsics=some)
    np.testing.assert_array_equal(known.intrinsics_mask, [True, False, True])
    np.testing.assert_array_equal(np.isnan(known.known_focals(3)), [False, True, False])
    # One lens: known once is known always, unless the frames disagree.
    known, _ = from_user(intrinsics=some, shared_focal=True)
    assert known.intrinsics_mask is None
    np.testing.assert_allclose(known.focal, [420, 420.21, 420.42])
    some[2, :2] *= 1.1
    known, _ = from_user(intrinsics=some, shared_focal=True)
    assert known.intrinsics_mask.sum() == 2


def test_poses_and_deviations():
    poses = _poses()
    poses[:, 0, 3] = [0, 1, 2]
    known, _ = from_user(world_from_cam=poses)
    np.testing.assert_array_equal(known.world_from_cam, poses)
    assert known.focal is None and known.principal_point is None and known.holds_all_poses
    poses[1] = np.nan
    soft, _ = from_user(
        world_from_cam=poses, rotation_deviation=[1, 2, 3], translation_deviation=0.1,
        relative_translation=True,
    )  # fmt: skip
    np.testing.assert_array_equal(soft.pose_mask, [True, False, True])
    np.testing.assert_allclose(soft.rotation_deviation, np.deg2rad([1, 2, 3]))
    np.testing.assert_allclose(soft.translation_deviation, 0.1)  # the known ones lie 1 from 1
    assert not soft.holds_all_poses and np.isfinite(soft.world_from_cam).all()


def test_nothing_known_is_none():
    assert from_user()[0] is None
    assert from_user(world_from_cam=_poses() * np.nan)[0] is None


def _stretched():
    return INTRINSICS * [[1.2], [1], [1]]


def _poses(count=3):
    return np.tile(np.eye(4), (count, 1, 1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"intrinsics": np.eye(4)}, ["(3, 3)", "original"]),
        ({"intrinsics": _stretched()}, ["square", "504.0", "420.0"]),
        ({"intrinsics": -INTRINSICS}, ["positive"]),
        ({"world_from_cam": _poses(2)}, ["(2, 4, 4)", "(3, 4, 4)"]),
        ({"world_from_cam": _poses(), "rotation_deviation": 1.0}, ["both", "translation"]),
        ({"intrinsics": INTRINSICS, "focal_deviation": 0.0}, ["focal", "positive"]),
        ({"intrinsics": INTRINSICS * [[3], [3], [1]]}, ["outside", "640 x 480"]),
        ({"world_from_cam": 2 * _poses()}, ["frame 0", "rigid"]),
        ({"world_from_cam": _poses() * np.diag([1, 1, -1, 1])}, ["rigid"]),
        ({"world_from_cam": _poses() * [np.nan, 1, 1, 1]}, ["NaN"]),
    ],
)
def test_bad_cameras_are_sentences(arguments, words):
    with pytest.raises(UserError) as caught:
        from_user(**arguments)
    assert all(word in str(caught.value) for word in words), caught.value
