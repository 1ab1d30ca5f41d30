"""The fly-through: where its camera is, what it shows when, and the file that players open."""

import dataclasses

import cv2
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.io import pointcloud
from align3r_jax.viewer import camera_path, fly_through, layers, splat
from tests.viewer import bumpy_scene

SMALL = fly_through.Options(width=160, height=90, fps=10, seconds=1.2)
ANY = layers.Look(min_confidence=0)


@pytest.fixture(scope="module")
def shown():
    scene = bumpy_scene.make(6, 48, 64)
    # Pixels as written; the palette's yellow disc is the only yellow thing.
    return layers.Layers(scene, pointcloud.PointFilter(edge=0, max_points=None))


def _yellow(picture):
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    return (red > 180) & (green > 150) & (blue < 110)


def _pictures(shown, look=ANY, **options):
    return list(fly_through.render(shown, look, "image", dataclasses.replace(SMALL, **options)))


def test_on_the_recorded_path_it_draws_the_recorded_frames(shown):
    scene = shown.scene
    look = layers.Look(min_confidence=0, gather="frame")
    pictures = _pictures(shown, look, path="recorded", width=64, height=48, fps=12.5, seconds=0.48)
    assert len(pictures) == 6
    for t, picture in enumerate(pictures):
        error = np.abs(picture.astype(int) - scene.colours[t])[2:-2, 2:-2]
        assert np.median(error) <= 4 and error.mean() < 12, t


def test_moving_things_are_seen_at_their_time_and_place_alone(shown):
    scene = shown.scene
    pictures = _pictures(shown, path="recorded", width=64, height=48, fps=12.5, seconds=0.48)
    for t, picture in enumerate(pictures):
        yellow = _yellow(picture)
        assert (yellow & scene.dynamic_mask[t]).sum() > 0.8 * scene.dynamic_mask[t].sum(), t
        grown = cv2.dilate(scene.dynamic_mask[t].astype(np.uint8), np.ones((3, 3), np.uint8))
        assert not (yellow & (grown == 0)).any(), t
    static = layers.Look(min_confidence=0, motion="static")
    assert not any(_yellow(p).any() for p in _pictures(shown, static, cameras=False))


@pytest.mark.parametrize("path", ["orbit", "follow"])
def test_the_camera_moves_without_jumps_and_keeps_the_scene_in_view(shown, path):
    options = dataclasses.replace(SMALL, path=path, fps=30, seconds=None)
    moments = fly_through.schedule(shown.scene, options)
    assert len(moments) >= 30 * camera_path.SHORTEST
    cameras = camera_path.cameras(path, shown.scene, shown.gathered.points, moments, 90, 160)
    centres = np.array([c.world_from_cam[:3, 3] for c in cameras])
    steps = np.linalg.norm(np.diff(centres, axis=0, append=centres[:1]), axis=1)
    assert np.ptp(centres, axis=0).max() > 0.3
    assert steps.max() < 6 * np.median(steps) + 1e-6  # also from the last to the first
    for camera in cameras[::20]:
        rotation = camera.world_from_cam[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
        assert np.linalg.det(rotation) > 0 and rotation[1, 1] > 0.8  # upright
        x, y, depth = splat.project(shown.gathered.points, camera)
        assert ((depth > 0) & (np.abs(x - 80) < 80) & (np.abs(y - 45) < 45)).mean() > 0.7


def test_cameras_are_drawn_unless_told_otherwise(shown):
    plain = _pictures(shown, cameras=False, seconds=0.1)[0].astype(int)
    marked = _pictures(shown, seconds=0.1)[0].astype(int)
    assert 0.005 < (np.abs(plain - marked).max(-1) > 30).mean() < 0.5


def test_moments_go_round_or_there_and_back():
    around = camera_path.moments("orbit", 4, 10, 10, 1.0, 1.0)
    np.testing.assert_allclose(around, np.arange(10) % 4)
    back = camera_path.moments("follow", 4, 10, 10, 1.0, 1.0)
    np.testing.assert_allclose(back, [0, 1, 2, 3, 2, 1, 0, 1, 2, 3])
    half = camera_path.moments("orbit", 4, 10, 10, 0.5, 0.5)
    np.testing.assert_allclose(half, [0, 0.5, 1, 1.5, 2])
    assert (camera_path.moments("recorded", 1, 10, 10, None, 1.0) == 0).all()


def test_the_file_is_h264_with_every_picture(shown, tmp_path):
    path = tmp_path / "deep" / "out.mp4"
    count = fly_through.write(path, shown, ANY, "image", SMALL)
    video = cv2.VideoCapture(str(path))
    assert int(video.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little") in (b"h264", b"avc1")
    pictures = []
    while (read := video.read())[0]:
        pictures.append(read[1])
    assert len(pictures) == count == 12 and pictures[0].shape == (90, 160, 3)
    assert all(picture.std() > 20 for picture in pictures)
    differences = [np.abs(a.astype(int) - b).mean() for a, b in zip(pictures, pictures[1:])]
    assert min(differences) > 0.5
    assert [entry.name for entry in path.parent.iterdir()] == ["out.mp4"]


def test_a_file_that_cannot_be_written_is_told(shown, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        fly_through.write(tmp_path / "file" / "out.mp4", shown, ANY, "image", SMALL)
