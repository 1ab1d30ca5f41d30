"""What users say of their cameras: brought to working size, or refused with a sentence."""

import numpy as np
import pytest

from align3r_jax.alignment import known_cameras
from align3r_jax.errors import UserError
from align3r_jax.structs import WorkingSize

SIZE = WorkingSize(original=(480, 640), resized=(384, 512), crop=(8, 0), working=(368, 512))
INTRINSICS = np.array([[525.0, 0, 319.5], [0, 525.0, 239.5], [0, 0, 1]])


def test_intrinsics_of_the_original_frames():
    known = known_cameras.from_user(SIZE, 3, intrinsics=INTRINSICS)
    np.testing.assert_allclose(known.focal, [420.0] * 3)
    np.testing.assert_allclose(known.principal_point, [[255.5, 183.5]] * 3)
    assert known.world_from_cam is None
    per_frame = known_cameras.from_user(SIZE, 2, intrinsics=np.stack([INTRINSICS, INTRINSICS]))
    np.testing.assert_allclose(per_frame.focal, known.focal[:2])


def test_poses_pass_through():
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = [0, 1, 2]
    known = known_cameras.from_user(SIZE, 3, world_from_cam=poses, pose_mask=np.ones(3, bool))
    np.testing.assert_array_equal(known.world_from_cam, poses)
    assert known.focal is None and known.principal_point is None


def test_nothing_known_is_none():
    assert known_cameras.from_user(SIZE, 3) is None


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
        (
            {"world_from_cam": _poses(), "pose_mask": np.array([True, False, False])},
            ["1 of 3 poses", "all frames"],
        ),
        ({"world_from_cam": 2 * _poses()}, ["frame 0", "rigid"]),
        ({"world_from_cam": _poses() * np.diag([1, 1, -1, 1])}, ["rigid"]),
        ({"world_from_cam": _poses() * np.nan}, ["NaN"]),
    ],
)
def test_bad_cameras_are_sentences(arguments, words):
    with pytest.raises(UserError) as caught:
        known_cameras.from_user(SIZE, 3, **arguments)
    assert all(word in str(caught.value) for word in words), caught.value
