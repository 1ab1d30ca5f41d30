"""Masks follow the edges of their images, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from align3r_jax.alignment import mask_outline

_HEIGHT, _WIDTH = 96, 128


def _disc(row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:_HEIGHT, :_WIDTH]
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


@pytest.fixture(scope="module")
def scene():
    """Two frames with a warm thing before cold texture, its true masks, and masks too wide."""
    rng = np.random.default_rng(0)
    truth = np.stack([_disc(48, 60, 16), _disc(50, 70, 16)])
    cold = rng.normal((70, 90, 140), 25, (2, _HEIGHT, _WIDTH, 3))
    warm = rng.normal((190, 120, 60), 25, (2, _HEIGHT, _WIDTH, 3))
    images = np.clip(np.where(truth[..., None], warm, cold), 0, 255).astype(np.uint8)
    wide = np.stack([_disc(50, 57, 21), _disc(48, 73, 21)])
    return images, truth, wide


def _iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return (mask & truth).sum() / (mask | truth).sum()


def test_a_wide_mask_shrinks_to_the_thing(scene):
    images, truth, wide = scene
    found = mask_outline.to_image_edges(wide, images)
    for mask, before, true in zip(found, wide, truth, strict=True):
        assert _iou(before, true) < 0.65
        assert _iou(mask, true) > 0.97


def test_a_narrow_mask_grows_to_the_thing_but_no_further_than_the_band(scene):
    images, truth, _ = scene
    narrow = np.stack([_disc(48, 60, 13), _disc(50, 70, 13)])
    assert _iou(mask_outline.to_image_edges(narrow, images), truth) > 0.97
    # A second thing of the same colour beyond the band stays what it was.
    images = images.copy()
    images[0, 4:14, 4:14] = (190, 120, 60)
    assert not mask_outline.to_image_edges(narrow, images)[0, 4:14, 4:14].any()


def test_the_same_masks_come_out_again_and_the_input_stays(scene):
    images, _, wide = scene
    before = wide.copy()
    first = mask_outline.to_image_edges(wide, images)
    np.testing.assert_array_equal(first, mask_outline.to_image_edges(wide, images))
    np.testing.assert_array_equal(wide, before)


def test_masks_of_the_user_are_kept(scene):
    images, _, wide = scene
    given = np.full(wide.shape, np.nan, np.float32)
    given[0] = wide[0]
    found = mask_outline.to_image_edges(wide, images, given)
    np.testing.assert_array_equal(found[0], wide[0])
    assert (found[1] != wide[1]).any()


@pytest.mark.parametrize("value", [False, True])
def test_masks_without_two_sides_stay(scene, value):
    images, _, wide = scene
    masks = np.full(wide.shape, value)
    np.testing.assert_array_equal(mask_outline.to_image_edges(masks, images), masks)


def test_a_mask_without_any_edge_in_its_image_is_not_lost():
    mask = _disc(48, 60, 16)[None]
    grey = np.full((1, _HEIGHT, _WIDTH, 3), 128, np.uint8)
    found = mask_outline.to_image_edges(mask, grey)
    assert found.sum() >= 0.2 * mask.sum()
