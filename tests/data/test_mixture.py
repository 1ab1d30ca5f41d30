"""Mixtures: the text form, orders against recorded ones, and that a tour sees everything."""

import dataclasses
import json

import numpy as np
import pytest

from align3r_jax.errors import UserError
from data import mixture, mixture_text
from data.mixture import Joined, Repeated, Resized, Source


@pytest.fixture
def recorded(golden_dir):
    return json.loads((golden_dir / "training_schedule.json").read_text())


def test_text_becomes_the_tree_and_back():
    text = "10_000 @ pointodyssey + 5000 @ tartanair(variant=hard, root='/a b') + 2 * (x + 3 @ y)"
    tree = mixture_text.parse(text)
    assert tree == Joined(
        (
            Resized(10_000, Source("pointodyssey")),
            Resized(5000, Source("tartanair", (("variant", "hard"), ("root", "/a b")))),
            Repeated(2, Joined((Source("x"), Resized(3, Source("y"))))),
        )
    )
    assert mixture_text.parse(mixture_text.text(tree)) == tree
    assert [source.name for source in mixture.sources(tree)] == [
        "pointodyssey", "tartanair", "x", "y",
    ]  # fmt: skip
    assert mixture.size(tree, (9, 9, 5, 9)) == 10_000 + 5000 + 2 * (5 + 3)
    assert mixture_text.parse("spring(pairs=strides_1_9:linear_1_2,root=/d/spring.v2)").options == (
        ("pairs", "strides_1_9:linear_1_2"),
        ("root", "/d/spring.v2"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "character 1: it ends where a set"),
        ("10 @", "ends where a set"),
        ("a + + b", r"character 5: got '\+'"),
        ("a b", r"character 3: got 'b', expected the end"),
        ("a(x)", r"got '\)', expected '='"),
        ("a(x=1 y=2)", "got 'y', expected ','"),
        ("a(x=1, x=2)", "'x' only once"),
        ("(a + b", r"ends where '\)'"),
        ("10 a", "'@' or '\\*' after a number"),
        ("0 @ a", "at least 1"),
        ("a # b", "'#' means nothing"),
    ],
)
def test_wrong_texts_are_refused_with_the_place(text, message):
    with pytest.raises(UserError, match=message):
        mixture_text.parse(text)


@pytest.mark.golden
def test_reference_order_of_resized_sets(recorded):
    for case in recorded["resized_dataset"]:
        got = mixture.resized_items(case["new_size"], case["base_size"], case["epoch"])
        assert got.tolist() == case["mapping"]
    case = recorded["cat_dataset"]
    tree = Joined(tuple(Resized(n, Source("x")) for n in case["sizes"]))
    positions = np.arange(mixture.size(tree, tuple(case["bases"])))
    epochs = np.full_like(positions, case["epoch"])
    items = mixture.lookup(tree, tuple(case["bases"]), positions, epochs, "reference")
    assert items.index.tolist() == case["items"]
    assert items.source.tolist() == np.repeat(np.arange(len(case["sizes"])), case["sizes"]).tolist()


@pytest.mark.golden
def test_reference_order_of_batches_and_its_arithmetic(recorded):
    for case in recorded["batched_random_sampler"]:
        order = mixture.sampler_order(
            case["n"], case["batch_size"], case["pool"], case["epoch"], case["world"], case["rank"]
        )
        assert order.tolist() == case["indices"] and len(order) == case["len"]
    for case in recorded["epoch_arithmetic"]:
        got = mixture.epoch_arithmetic(
            case["pairs"], case["batch_per_device"], case["devices"], case["accum"]
        )
        assert dataclasses.astuple(got) == tuple(
            case[name]
            for name in (
                "samples_used", "iters_per_device", "updates", "dropped_iters",
                "pairs_per_update", "forward_samples_per_update",
            )
        )  # fmt: skip


def test_a_walk_sees_everything_before_anything_twice():
    tree, sizes = mixture_text.parse("6 @ a + 5 @ b + 2 * c"), (15, 3, 2)
    epochs = 10
    items, epoch = mixture.epoch_items(tree, sizes, np.arange(15 * epochs), seed=3)
    for k in range(epochs):
        counts = np.bincount(items.source[epoch == k], minlength=3)
        assert counts.tolist() == [6, 5, 4]
        in_c = items.index[(epoch == k) & (items.source == 2)]
        assert np.bincount(in_c).tolist() == [2, 2]
    of_a = [items.index[(epoch == k) & (items.source == 0)] for k in range(epochs)]
    # 60 items of a set of 15 in 10 epochs of 6: five epochs are two tours of it
    assert np.bincount(np.concatenate(of_a[:5]), minlength=15).tolist() == [2] * 15
    assert np.bincount(np.concatenate(of_a[:2]), minlength=15).max() == 1
    of_b = items.index[items.source == 1]
    assert np.ptp(np.bincount(of_b, minlength=3)) <= 1


def test_a_walk_is_a_function_of_seed_and_number():
    tree, sizes = mixture_text.parse("20 @ (a + b) + 7 @ c"), (1000, 50, 3)
    numbers = np.arange(200)
    items, _ = mixture.epoch_items(tree, sizes, numbers, seed=1)
    some = np.array([150, 3, 77])
    again, _ = mixture.epoch_items(tree, sizes, some, seed=1)
    np.testing.assert_array_equal(again.index, items.index[some])
    np.testing.assert_array_equal(again.source, items.source[some])
    other, _ = mixture.epoch_items(tree, sizes, numbers, seed=2)
    assert (other.index != items.index).mean() > 0.5
    # Sets of one size in one mixture are toured in different orders.
    twins, _ = mixture.epoch_items(
        mixture_text.parse("50 @ a + 50 @ b"), (50, 50), np.arange(100), 1
    )
    order = [twins.index[twins.source == k] for k in (0, 1)]
    assert (order[0] != order[1]).any()


def test_positions_outside_are_refused():
    with pytest.raises(ValueError, match=r"0 \.\.\. 5"):
        mixture.lookup(mixture_text.parse("6 @ a"), (3,), np.array([6]), np.array([0]))
