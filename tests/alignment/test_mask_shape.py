"""The shape of masks: against OpenCV, component by component and pixel by pixel."""

import cv2
import numpy as np

from align3r_jax.alignment import mask_shape


def _blobs(count, height, width, seed=0):
    """Random masks of many components: thresholded smooth noise."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, height, width))
    return np.stack([cv2.GaussianBlur(n, (0, 0), 2.0) > 0.02 for n in noise])


def _without_small(mask, min_area):
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    kept = stats[:, cv2.CC_STAT_AREA] >= min_area
    kept[0] = False  # label 0: where the image is 0
    return kept[labels]


def test_small_components_go_and_long_ones_stay():
    masks = _blobs(2, 50, 70)
    # A spiral: the longest way from one end of a component to the other.
    spiral = np.zeros((50, 70), bool)
    for k in range(0, 24, 4):
        spiral[k, k : 70 - k] = spiral[49 - k, k : 70 - k] = True
        spiral[k : 50 - k, 69 - k] = spiral[k + 4 : 50 - k, k] = True
        spiral[k + 4, k : k + 5] = True
    masks = np.concatenate([masks, spiral[None]])
    for area in (4, 60, 400):
        got = mask_shape.without_small(masks, area)
        expected = [_without_small(mask, area) for mask in masks]
        np.testing.assert_array_equal(got, expected)
        assert np.sum(expected) > 0 and (area == 4 or np.sum(expected) < np.sum(masks))


def test_clean_is_opening_closing_and_removal():
    masks = _blobs(2, 60, 500)  # 500 wide: a disc of 5 pixels
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    for mask, got in zip(masks, np.asarray(mask_shape.clean(masks)), strict=True):
        image = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, disc)
        image = cv2.morphologyEx(image, cv2.MORPH_CLOSE, disc, iterations=2)
        kept = _without_small(image, 60)
        expected = ~_without_small(~kept, 240)
        np.testing.assert_array_equal(got, expected)
        assert (expected != mask).any()


def test_clean_removes_spots_and_closes_holes():
    mask = np.zeros((120, 160), bool)
    mask[30:80, 40:100] = True
    expected = mask.copy()
    mask[50:53, 60:63] = False
    mask[100, 20] = mask[10:12, 140:142] = True
    empty, full = np.zeros_like(mask), np.ones_like(mask)
    got = np.asarray(mask_shape.clean(np.stack([mask, empty, full])))
    assert (got[0] & expected).sum() / (got[0] | expected).sum() > 0.99
    assert not got[1].any() and got[2].all()


def test_votes_are_fitted_by_the_depth_in_every_window():
    """The guided filter against its definition, window by window."""
    rng = np.random.default_rng(0)
    votes, trust = rng.uniform(0, 2, (1, 9, 40)), rng.uniform(0, 5, (1, 9, 40))
    depth = np.exp(rng.normal(size=(1, 9, 40)))
    got = mask_shape.snap(*(values.astype(np.float32) for values in (votes, trust, depth)))
    guide = np.log(depth[0]) - np.median(np.log(depth[0]))
    weight = np.minimum(trust[0], 4) + 1e-3

    def window(y, x):
        return slice(max(0, y - 1), y + 2), slice(max(0, x - 1), x + 2)

    fits = np.zeros((9, 40, 3))
    for y in range(9):
        for x in range(40):
            w, g, v = (a[window(y, x)] for a in (weight, guide, votes[0]))
            total = w.sum()
            g_mean, v_mean = (w * g).sum() / total, (w * v).sum() / total
            slope = ((w * g * v).sum() / total - g_mean * v_mean) / (
                (w * g * g).sum() / total - g_mean**2 + 5e-4
            )
            fits[y, x] = total, total * slope, total * (v_mean - slope * g_mean)
    for y, x in ((0, 0), (4, 20), (8, 39), (3, 39)):
        total, slope, offset = fits[window(y, x)].sum(axis=(0, 1))
        np.testing.assert_allclose(got[0, y, x], (slope * guide[y, x] + offset) / total, atol=1e-3)
