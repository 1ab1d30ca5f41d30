"""Pictures for people: colours that order depth, overlays, strips, video."""

import av
import cv2
import numpy as np
import pytest

from align3r_jax.io import preview


def _brightness(colours):
    return colours.astype(float) @ [0.299, 0.587, 0.114]


def test_near_is_brighter_on_one_scale_for_the_whole_video():
    depth = np.linspace(1, 10, 64).reshape(2, 4, 8)
    scale = preview.inverse_depth_range(depth, (0, 100))
    assert scale == pytest.approx((0.1, 1.0))
    together = preview.colour_depth(depth, scale)
    assert (np.diff(_brightness(together).ravel()) <= 0.5).all()
    assert _brightness(together[0, 0, 0]) > 200 > 20 > _brightness(together[1, 3, 7])
    np.testing.assert_array_equal(preview.colour_depth(depth[1], scale), together[1])


def test_missing_depth_is_grey_and_does_not_move_the_scale():
    depth = np.linspace(1, 10, 400).reshape(20, 20)
    scale = preview.inverse_depth_range(depth)
    depth[9, :3] = [np.nan, np.inf, 0]
    assert preview.inverse_depth_range(depth) == pytest.approx(scale, rel=0.02)
    coloured = preview.colour_depth(depth, scale)
    assert (coloured[9, :3] == preview.MISSING_COLOUR).all()
    assert preview.inverse_depth_range(np.zeros((2, 2))) == (0.0, 1.0)


def test_a_constant_plane_has_a_colour_in_the_middle():
    depth = np.full((4, 4), 3.0)
    far, near = preview.inverse_depth_range(depth)
    assert far < 1 / 3 < near


def test_confidence_one_is_darkest():
    coloured = preview.colour_confidence(np.array([[1.0, 2.0, 8.0, np.nan]]), maximum=8)
    light = _brightness(coloured[0])
    assert light[0] < light[1] < light[2] and light[3] == light[0]


def test_flow_colours_tell_directions_apart():
    flow = np.array([[[4, 0], [0, 4], [-4, 0], [0, 0], [np.nan, 0]]], np.float32)
    right, down, left, still, missing = preview.colour_flow(flow, 4.0)[0].astype(int)
    assert right.argmax() == 0 and right[1] == right[2] == 0  # red
    assert len({tuple(c) for c in (right, down, left, still)}) == 4
    assert (still == 255).all() and tuple(missing) == preview.MISSING_COLOUR


def test_overlay_reddens_the_mask_only():
    image = np.full((1, 2, 3), 128, np.uint8)
    masked, plain = preview.overlay_mask(image, np.array([[True, False]]))[0].astype(int)
    assert masked[0] > masked[2] + 60
    assert plain.max() == plain.min()


def test_strip_keeps_order_and_aspect():
    images = np.stack([np.full((10, 20, 3), value, np.uint8) for value in (10, 120, 250)])
    strip = preview.strip(images, 40, gap=2)
    assert strip.shape == (20, 3 * 40 + 2 * 2, 3)
    assert [strip[5, x, 0] for x in (5, 41, 50, 100)] == [10, 0, 120, 250]


def test_even_indices_hold_both_ends():
    assert preview.even_indices(5, 8).tolist() == [0, 1, 2, 3, 4]
    chosen = preview.even_indices(100, 8)
    assert chosen[0] == 0 and chosen[-1] == 99 and len(chosen) == 8
    assert preview.even_indices(1, 8).tolist() == [0]


def test_playback_rate_is_the_videos_own_within_limits():
    assert preview.playback_rate(np.arange(9) / 25) == pytest.approx(25)
    assert preview.playback_rate(np.arange(9.0)) == 5
    assert preview.playback_rate(np.arange(9) / 1000) == 60
    assert preview.playback_rate(np.array([0.0])) == 5


def test_video_of_odd_size_keeps_frames_and_rate(tmp_path):
    frames = [np.full((31, 45, 3), 20 * k, np.uint8) for k in range(7)]
    preview.write_mp4(tmp_path / "a.mp4", iter(frames), 24)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (46, 32, 24)
        shown = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(stream)]
    np.testing.assert_allclose(shown, [20 * k for k in range(7)], atol=3)


def test_encoded_pictures_decode_to_themselves():
    rgba = np.random.default_rng(0).integers(0, 255, (5, 6, 4), np.uint8)
    decoded = cv2.imdecode(np.frombuffer(preview.encode_png(rgba), np.uint8), -1)
    np.testing.assert_array_equal(decoded[..., [2, 1, 0, 3]], rgba)
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    decoded = cv2.imdecode(np.frombuffer(preview.encode_jpeg(red), np.uint8), cv2.IMREAD_COLOR)
    assert abs(int(decoded[8, 8, 2]) - 200) < 6 and decoded[8, 8, 0] < 12
