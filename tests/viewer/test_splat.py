"""The software renderer puts known points on known pixels, and the nearer hides the farther."""

import numpy as np
import pytest

from align3r_jax.viewer import splat

BLACK = np.zeros(3, np.uint8)


def _camera(height=40, width=60, focal=50.0, pose=None):
    intrinsics = np.array([[focal, 0, 29.0], [0, focal, 19.0], [0, 0, 1]])
    return splat.Camera(np.eye(4) if pose is None else pose, intrinsics, height, width)


def _draw(points, sizes=None, camera=None, colours=None):
    points = np.asarray(points, np.float32)
    sizes = np.zeros(len(points), np.float32) if sizes is None else np.asarray(sizes, np.float32)
    colours = np.full((len(points), 3), 200, np.uint8) if colours is None else colours
    return splat.draw(points, sizes, colours, camera or _camera(), BLACK)


def test_a_point_lands_on_its_pixel():
    # x = 50 * 0.4 / 2 + 29 = 39, y = 50 * -0.2 / 2 + 19 = 14
    picture, seen = _draw([[0.4, -0.2, 2.0]])
    assert np.argwhere(seen == 0).tolist() == [[14, 39]]
    assert picture[14, 39].tolist() == [200, 200, 200] and picture.sum() == 600


def test_a_moved_and_turned_camera_sees_it_elsewhere():
    pose = np.eye(4)
    pose[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]  # looks along world +x
    pose[:3, 3] = [1.0, 0.5, 0.0]
    # In the camera: (0.2, -0.1, 2) for the world point (3, 0.4, -0.2).
    _, seen = _draw([[3.0, 0.4, -0.2]], camera=_camera(pose=pose))
    assert np.argwhere(seen == 0).tolist() == [[round(19 - 50 * 0.05), 29 + 5]]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_the_nearest_is_seen_whatever_the_order_and_the_sizes(order):
    points = np.array([[0, 0, 3.0], [0, 0, 1.0], [0, 0, 2.0]])[order]
    sizes = np.array([0.6, 0.02, 0.2])[order]  # 10, 1 and 5 pixels
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[order]
    picture, _ = _draw(points, sizes, colours=colours)
    assert picture[19, 29].tolist() == [0, 255, 0]
    assert (picture == [0, 0, 255]).all(-1).sum() == 5 * 5 - 1
    assert (picture == [255, 0, 0]).all(-1).sum() == 10 * 10 - 25


def test_squares_have_their_side_and_are_cut_at_the_border():
    _, seen = _draw([[0, 0, 2.0]], [0.28])  # 7 pixels
    rows, columns = np.nonzero(seen == 0)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 22, 26, 32)
    _, seen = _draw([[-0.58 * 2, -0.38 * 2, 2.0]], [0.28])  # its middle on the corner pixel
    assert np.argwhere(seen == 0).max() == 3 and (seen == 0).sum() == 16


def test_behind_far_outside_and_not_a_number_draw_nothing():
    picture, seen = _draw([[0, 0, -1], [0, 0, 0], [1e30, 0, 1e-30], [np.nan, 0, 1], [90, 0, 1]])
    assert (seen == -1).all() and picture.sum() == 0
    assert _draw(np.zeros((0, 3)))[0].shape == (40, 60, 3)


def test_it_agrees_with_a_depth_buffer_written_point_by_point():
    rng = np.random.default_rng(0)
    points = rng.uniform([-1, -0.8, 0.5], [1, 0.8, 4], (3000, 3)).astype(np.float32)
    sizes = rng.uniform(0, 0.08, 3000).astype(np.float32)
    camera = _camera()
    _, seen = _draw(points, sizes, camera)
    x, y, depth = splat.project(points, camera)
    buffer, expected = np.full((40, 60), np.inf), np.full((40, 60), -1)
    for k in range(len(points)):
        side = int(np.clip(np.rint(sizes[k] * (50 / depth[k])), 1, splat.LARGEST))
        left, top = (int(np.rint(v - np.float32((side - 1) / 2))) for v in (x[k], y[k]))
        for row in range(max(top, 0), min(top + side, 40)):
            for column in range(max(left, 0), min(left + side, 60)):
                if depth[k] < buffer[row, column]:
                    buffer[row, column], expected[row, column] = depth[k], k
    # Rounding of a middle that lies between two pixels may differ.
    assert (seen == expected).mean() > 0.995
