"""Which points a viewer shows, and in which colours: exact, against the arrays of the scene."""

import dataclasses

import numpy as np
import pytest

from align3r_jax.io import pointcloud, preview
from align3r_jax.viewer import layers
from tests.viewer import bumpy_scene

ALL = pointcloud.PointFilter(min_confidence=1.1, edge=0, max_points=None)


@pytest.fixture(scope="module")
def scene():
    scene = bumpy_scene.make(4, 24, 32)
    confidence = scene.confidence.copy()
    confidence[2][scene.dynamic_mask[2]] = 0  # as cleaning leaves moving things
    return dataclasses.replace(scene, confidence=confidence)


@pytest.fixture(scope="module")
def shown(scene):
    return layers.Layers(scene, ALL)


def _seen(shown, look, t):
    """(T, H, W) bool of the pixels that frame t shows."""
    result = np.zeros(shown.scene.depth.shape, bool).reshape(len(shown.scene.depth), -1)
    for part in (shown.still(look, t), shown.current(look, t)):
        assert not result[part.frame, part.pixel].any()  # nothing is shown twice
        result[part.frame, part.pixel] = True
    return result.reshape(shown.scene.depth.shape)


@pytest.mark.parametrize("gather", layers.GATHERS)
@pytest.mark.parametrize("motion", layers.MOTIONS)
def test_a_look_shows_exactly_its_pixels(scene, shown, gather, motion):
    t, number = 2, np.arange(4)[:, None, None]
    for threshold in (0.0, 3.0):
        sure = scene.confidence >= threshold
        moving = scene.dynamic_mask & (number == t) & (sure | (scene.confidence == 0))
        past = {"all": number >= 0, "past": number <= t, "frame": number == t}[gather]
        static = ~scene.dynamic_mask & sure & past
        expected = {"all": static | moving, "static": static, "moving": moving}[motion]
        look = layers.Look(min_confidence=threshold, motion=motion, gather=gather)
        np.testing.assert_array_equal(_seen(shown, look, t), expected)
        assert expected.any()


def test_points_lie_where_the_scene_has_them(scene, shown):
    sample = shown.gathered
    assert (np.diff(sample.frame) >= 0).all()
    cloud = pointcloud.from_scene(scene, dataclasses.replace(ALL, min_confidence=-1))
    np.testing.assert_array_equal(sample.points, cloud.points)
    np.testing.assert_array_equal(layers.Palette(scene).of(sample, "image"), cloud.colours)
    depth = scene.depth.reshape(4, -1)[sample.frame, sample.pixel]
    np.testing.assert_allclose(sample.size * scene.intrinsics[0, 0, 0], depth, rtol=1e-6)


def test_fewer_points_are_larger_and_their_number_is_kept(scene):
    few = layers.Layers(scene, dataclasses.replace(ALL, max_points=300)).gathered
    static = ~scene.dynamic_mask
    assert len(few) == 300
    depth = scene.depth.reshape(4, -1)[few.frame, few.pixel]
    growth = few.size * scene.intrinsics[0, 0, 0] / depth
    np.testing.assert_allclose(growth, min((static.sum() / 300) ** 0.25, layers.SPARSE), rtol=1e-5)


def test_colours_are_those_of_the_pixels(scene, shown):
    palette, current = layers.Palette(scene), shown.current(layers.Look(gather="frame"), 1)
    depth_range = preview.inverse_depth_range(scene.depth)
    expected = {
        "image": scene.colours[1],
        "depth": preview.colour_depth(scene.depth[1], depth_range),
        "motion": preview.overlay_mask(scene.colours[1], scene.dynamic_mask[1]),
    }
    for colour, picture in expected.items():
        of_points = palette.of(current, colour)
        np.testing.assert_array_equal(of_points, picture.reshape(-1, 3)[current.pixel])
    # Sure is bright; the first frame is blue, the last red.
    sure = palette.of(current, "confidence").astype(int).sum(1)
    assert np.corrcoef(sure, np.log(current.confidence))[0, 1] > 0.9
    first, last = palette.image("time", 0)[0, 0], palette.image("time", 3)[0, 0]
    assert first.argmax() == 2 and last.argmax() == 0


def test_nothing_to_show_is_no_error(scene):
    empty = dataclasses.replace(scene, depth=np.full_like(scene.depth, np.nan))
    shown = layers.Layers(empty, ALL)
    assert len(shown.still(layers.Look(), 1)) == len(shown.current(layers.Look(), 1)) == 0
    assert layers.Palette(empty).of(shown.gathered, "depth").shape == (0, 3)
