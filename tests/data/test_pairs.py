"""Pair rules against their definitions written as loops, recorded counts, and at scale."""

import json
import pickle
import time

import numpy as np
import pytest

from align3r_jax.errors import UserError
from data import pairs


def _all(table):
    found = table.lookup(np.arange(len(table)))
    return list(zip(found.scene.tolist(), found.first.tolist(), found.second.tolist()))


@pytest.mark.parametrize("reach", [1, 3, 10])
def test_windows_list_all_near_pairs_in_order(reach):
    frames = [12, 0, 1, 5, 2, 10, 11, 30]
    expected = [
        (scene, i, j)
        for scene, n in enumerate(frames)
        for i in range(n)
        for j in range(i + 1, min(i + reach, n - 1) + 1)
    ]
    assert _all(pairs.PairTable(frames, pairs.Window(reach))) == expected
    if reach == 10:
        assert len(pairs.PairTable([12], pairs.Window(10))) == 65


@pytest.mark.parametrize("spare", [0, 1])
def test_strides_stop_two_strides_before_the_end(spare):
    frames, rule = [20, 3, 7, 1, 19], pairs.Strides(spare=spare)
    expected = []
    for stride in range(1, 10):
        for scene, n in enumerate(frames):
            start = 0
            while start <= n - 2 * stride - spare:
                expected.append((scene, start, start + stride))
                start += 2
    assert _all(pairs.PairTable(frames, rule)) == expected
    # Frames that count from 1 with the bound n - 2 s + 1 (Spring) are the same pairs.
    if spare == 0:
        spring = [
            (scene, i - 1, i - 1 + s)
            for s in range(1, 10)
            for scene, n in enumerate(frames)
            for i in range(1, n - 2 * s + 2, 2)
        ]
        assert spring == expected


@pytest.mark.golden
def test_stride_weights_match_the_reference(golden_dir):
    recorded = json.loads((golden_dir / "training_schedule.json").read_text())
    for name, expected in recorded["stride_distribution"].items():
        got = pairs.stride_distribution(name, len(expected))
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)
    counts = recorded["resampled_counts"].pop("counts")
    assert recorded["resampled_counts"]
    for name, expected in recorded["resampled_counts"].items():
        np.testing.assert_array_equal(pairs.resampled_counts(counts, name), expected, name)


def test_thinning_keeps_a_random_part_of_every_stride_once():
    frames = [40, 3, 60, 50]
    every = _all(pairs.PairTable(frames, pairs.Strides()))
    table = pairs.PairTable(frames, pairs.parse_rule("monst3r"), seed=4)
    kept = _all(table)
    assert len(set(kept)) == len(kept) and set(kept) < set(every)
    strides = np.array([j - i for _, i, j in kept])
    found = np.array([sum(j - i == s for _, i, j in every) for s in range(1, 10)])
    counts = np.bincount(strides, minlength=10)[1:]
    np.testing.assert_array_equal(counts, pairs.resampled_counts(found, "linear_1_2"))
    assert counts[0] * 2 == pytest.approx(counts[-1], abs=2)
    assert {scene for scene, _, _ in kept} == {0, 2, 3}
    other = _all(pairs.PairTable(frames, pairs.parse_rule("monst3r"), seed=5))
    assert set(other) != set(kept)
    assert _all(pickle.loads(pickle.dumps(table))) == kept


def test_prescribed_pairs():
    given = [np.array([[0, 2], [3, 1]]), np.zeros((0, 2)), np.array([[1, 0]])]
    table = pairs.PairTable([4, 1, 2], pairs.Prescribed(), given)
    assert _all(table) == [(0, 0, 2), (0, 3, 1), (2, 1, 0)]
    with pytest.raises(UserError, match=r"\(3, 1\) names frames .* 3 frames"):
        pairs.PairTable([3, 1, 2], pairs.Prescribed(), given)
    with pytest.raises(UserError, match="bring their pairs"):
        pairs.PairTable([4], pairs.Prescribed(), [None])


def test_a_hundred_thousand_scenes_cost_milliseconds():
    frames = np.random.default_rng(0).integers(0, 300, 100_000)
    for rule in (pairs.Window(), pairs.parse_rule("monst3r")):
        started = time.process_time()
        table = pairs.PairTable(frames, rule)
        built = time.process_time() - started
        numbers = np.random.default_rng(1).integers(0, len(table), 30_000)
        found = table.lookup(numbers)
        assert time.process_time() - started < 1.0, (rule, built)
        assert len(table) > 10**7
        assert (found.second < frames[found.scene]).all() and (found.first >= 0).all()
        assert (found.second > found.first).all()
        started = time.process_time()
        for number in numbers[:200]:
            table.lookup(number[None])
        assert time.process_time() - started < 0.2  # one by one, as samples are loaded


def test_rules_by_name():
    assert pairs.parse_rule("align3r") == pairs.Window(10)
    assert pairs.parse_rule("window_3") == pairs.Window(3)
    assert pairs.parse_rule("monst3r") == pairs.Strides(tuple(range(1, 10)), 2, "linear_1_2")
    assert pairs.parse_rule("strides_2_4") == pairs.Strides((2, 3, 4))
    assert pairs.parse_rule("prescribed") == pairs.Prescribed()
    for bad in ("window", "window_0", "strides_4_2", "strides_1_9:square", "linear_1_2", ""):
        with pytest.raises(UserError, match="unknown; known are"):
            pairs.parse_rule(bad)


def test_no_pairs_and_numbers_outside():
    table = pairs.PairTable([1, 0], pairs.Window())
    assert len(table) == 0 and len(pairs.PairTable([], pairs.Strides())) == 0
    assert pairs.PairTable([4, 1, 12], pairs.Window()).pairs_per_scene.tolist() == [6, 0, 65]
    with pytest.raises(ValueError, match="Pair numbers"):
        table.lookup(np.array([0]))
