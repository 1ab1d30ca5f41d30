"""Depth in 16 bits: the stated error holds, and what is unknown stays unknown."""

import numpy as np
import pytest

from align3r_jax.errors import UserError
from data.prepare import log_depth


@pytest.mark.parametrize(("near", "far", "stated"), [(0.1, 100, 5.3e-5), (0.01, 400, 8.2e-5)])
def test_error_is_within_the_bound_and_near_it(near, far, stated):
    depth = np.geomspace(near, far, 30_000, dtype=np.float32).reshape(150, 200)
    codes, near_far = log_depth.encode(depth)
    back = log_depth.decode(codes, near_far)
    error = np.abs(back / depth - 1).max()
    bound = log_depth.error_bound(near_far)
    assert 0.9 * bound < error <= bound < stated
    assert back.dtype == np.float32 and codes.dtype == np.uint16


def test_zero_nan_and_flat_maps_are_exact():
    depth = np.array([[0, np.nan, 3], [3, 3, 0]], np.float32)
    np.testing.assert_array_equal(log_depth.decode(*log_depth.encode(depth)), depth)
    empty = np.zeros((2, 3), np.float32)
    np.testing.assert_array_equal(log_depth.decode(*log_depth.encode(empty)), empty)


@pytest.mark.parametrize("value", [-1, np.inf])
def test_what_cannot_be_held_is_a_sentence(value):
    with pytest.raises(UserError, match="16 bits"):
        log_depth.encode(np.array([[1, value]], np.float32))
