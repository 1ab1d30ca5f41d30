"""Permutations as functions: bijective, even, the same for every host, cheap on large sets."""

import time

import numpy as np
import pytest

from data import shuffle


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 17, 64, 65, 1000])
def test_every_item_exactly_once(size):
    for seed in range(5):
        items = shuffle.permuted(np.arange(size), size, shuffle.key(3, seed))
        np.testing.assert_array_equal(np.sort(items), np.arange(size))


def test_all_orders_of_a_small_set_are_equally_likely():
    draws, keys = 24_000, shuffle.key(9, np.arange(24_000))
    orders = np.stack([shuffle.permuted(np.full(draws, k), 4, keys) for k in range(4)], axis=1)
    found, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(found) == 24
    chi_square = ((counts - draws / 24) ** 2 / (draws / 24)).sum()
    assert chi_square < 55  # 23 degrees of freedom: p = 2e-4


def test_neighbours_are_torn_apart_and_keys_differ():
    items = shuffle.permuted(np.arange(5000), 5000, shuffle.key(1))
    assert abs(np.corrcoef(np.arange(5000), items)[0, 1]) < 0.05
    assert (np.abs(np.diff(items)) == 1).sum() < 10
    other = shuffle.permuted(np.arange(5000), 5000, shuffle.key(2))
    assert (items == other).sum() < 10


def test_keys_and_sizes_may_differ_by_position_and_values_never_change():
    sizes, keys = np.array([10, 1000, 10]), shuffle.key(5, np.array([1, 2, 3]))
    together = shuffle.permuted(np.array([4, 4, 4]), sizes, keys)
    alone = [shuffle.permuted(np.array([4]), sizes[k], keys[k])[0] for k in range(3)]
    np.testing.assert_array_equal(together, alone)
    # Runs are resumed by number: these values may not change between versions.
    recorded = shuffle.permuted(np.arange(6), 10**6, shuffle.key(0, 1, 2))
    np.testing.assert_array_equal(recorded, RECORDED)


RECORDED = [439264, 998329, 664160, 489916, 541924, 163226]


def test_a_part_of_a_huge_set_costs_only_that_part():
    started = time.process_time()
    items = shuffle.permuted(np.arange(10_000), 10**12, shuffle.key(1))
    assert time.process_time() - started < 0.5
    assert len(np.unique(items)) == 10_000 and items.max() > 10**11


def test_positions_outside_are_refused():
    with pytest.raises(ValueError, match="range"):
        shuffle.permuted(np.array([5]), 5, shuffle.key(0))
