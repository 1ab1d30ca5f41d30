"""Mixtures of training sets as data, and which item of which set comes when.

The tree has the meaning of the text form (`mixture_text`): N items of a set per epoch, every item
n times, one set after another. An epoch is all items once in random order.

Two orders. "walk" (default): `N @ X` takes the next N items of an endless shuffled tour of X, so
that all of X is seen before anything is seen twice, and no item of the epoch is dropped. Nothing
is listed: item k of epoch e is computed, whatever the sizes. "reference": as published code draws
(`resized_items`, `sampler_order`), with NumPy's default_rng(epoch + 777).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, NamedTuple

import numpy as np

from data import shuffle

Order = Literal["walk", "reference"]
REFERENCE_SEED = 777


@dataclasses.dataclass(frozen=True)
class Source:
    """A set by its name, with options as (name, value) texts in the order given."""

    name: str
    options: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Resized:
    """count @ of."""

    count: int
    of: Mixture


@dataclasses.dataclass(frozen=True)
class Repeated:
    """times * of."""

    times: int
    of: Mixture


@dataclasses.dataclass(frozen=True)
class Joined:
    """parts[0] + parts[1] + ..."""

    parts: tuple[Mixture, ...]


Mixture = Source | Resized | Repeated | Joined


class Items(NamedTuple):
    """Arrays (K,) of int64: which source (`sources` order), and which item of it."""

    source: np.ndarray
    index: np.ndarray


def sources(mixture: Mixture) -> tuple[Source, ...]:
    """Returns the sets from left to right; one that is written twice is there twice."""
    if isinstance(mixture, Source):
        return (mixture,)
    if isinstance(mixture, Joined):
        return tuple(source for part in mixture.parts for source in sources(part))
    return sources(mixture.of)


def size(mixture: Mixture, sizes: tuple[int, ...]) -> int:
    """Items of an epoch. sizes: of every source, in the order of `sources`."""
    if isinstance(mixture, Source):
        return sizes[0]
    if isinstance(mixture, Resized):
        return mixture.count
    if isinstance(mixture, Repeated):
        return mixture.times * size(mixture.of, sizes)
    return sum(size(part, own) for part, own in zip(mixture.parts, _split(mixture, sizes)))


def lookup(
    mixture: Mixture,
    sizes: tuple[int, ...],
    positions: np.ndarray,
    epochs: np.ndarray,
    order: Order = "walk",
    seed: int = 0,
) -> Items:
    """Returns the items at unshuffled positions (K,) of epochs (K,).

    seed: of the order "walk"; "reference" has its own. Raises ValueError outside of the epoch.
    """
    positions, epochs = np.asarray(positions, np.int64), np.asarray(epochs, np.int64)
    total = size(mixture, sizes)
    if positions.size and (positions.min() < 0 or positions.max() >= total):
        raise ValueError(f"Positions must lie in 0 ... {total - 1}.")
    return _descend(mixture, sizes, positions, epochs, order, seed, 0)


def epoch_items(
    mixture: Mixture, sizes: tuple[int, ...], numbers: np.ndarray, seed: int
) -> tuple[Items, np.ndarray]:
    """Order "walk": the samples `numbers` (K,) of endless training, and the epochs they are in."""
    total = size(mixture, sizes)
    epochs, places = np.divmod(np.asarray(numbers, np.int64), total)
    positions = shuffle.permuted(places, total, shuffle.key(seed, _SHUFFLE, epochs))
    return lookup(mixture, sizes, positions, epochs, "walk", seed), epochs


@functools.lru_cache(maxsize=32)
def resized_items(count: int, base: int, epoch: int) -> np.ndarray:
    """`count @ X` of the order "reference": (count,) items of X, a permutation again and again."""
    items = np.random.default_rng(epoch + REFERENCE_SEED).permutation(base)
    return np.resize(items, count)


@functools.lru_cache(maxsize=4)
def sampler_order(
    items: int, batch_size: int, choices: int, epoch: int, world: int = 1, rank: int = 0
) -> np.ndarray:
    """Order "reference": what device `rank` of `world` sees in an epoch, (K, 2) int64.

    Columns: item, and number of the resolution (of `choices`), one per batch of the device. The
    last items that fill no batch on every device are not in the epoch at all.
    """
    generator = np.random.default_rng(epoch + REFERENCE_SEED)
    total = items // (batch_size * world) * batch_size * world
    order = generator.permutation(total)
    resolutions = generator.integers(choices, size=total // batch_size).repeat(batch_size)
    share = total // world
    return np.stack([order, resolutions], axis=1)[rank * share : (rank + 1) * share]


@dataclasses.dataclass(frozen=True)
class EpochArithmetic:
    """What an epoch of the order "reference" comes to. iterations: batches of a device."""

    samples_used: int
    iterations: int
    updates: int
    dropped_iterations: int
    pairs_per_update: int
    forward_samples_per_update: int


def epoch_arithmetic(
    pairs: int, batch_per_device: int, devices: int, accumulate: int
) -> EpochArithmetic:
    """Counts of an epoch; batches after the last whole group of `accumulate` make no update."""
    iterations = pairs // (batch_per_device * devices)
    per_update = batch_per_device * devices * accumulate
    return EpochArithmetic(
        samples_used=iterations * batch_per_device * devices,
        iterations=iterations,
        updates=iterations // accumulate,
        dropped_iterations=iterations % accumulate,
        pairs_per_update=per_update,
        forward_samples_per_update=2 * per_update,  # both orders of a pair
    )


_SHUFFLE, _TOUR = 1, 2  # what a key of the order "walk" is for


def _descend(
    mixture: Mixture,
    sizes: tuple[int, ...],
    positions: np.ndarray,
    epochs: np.ndarray,
    order: Order,
    seed: int,
    first: int,
) -> Items:
    """first: number of the leftmost source of `mixture`, part of the key of its tour."""
    if isinstance(mixture, Source):
        return Items(np.full(positions.shape, first), positions)
    if isinstance(mixture, Repeated):
        inner = positions // mixture.times
        return _descend(mixture.of, sizes, inner, epochs, order, seed, first)
    if isinstance(mixture, Resized):
        base = size(mixture.of, sizes)
        if order == "reference":
            inner = np.empty_like(positions)
            for epoch in np.unique(epochs):
                here = epochs == epoch
                inner[here] = resized_items(mixture.count, base, int(epoch))[positions[here]]
        else:
            rounds, places = np.divmod(epochs * mixture.count + positions, base)
            inner = shuffle.permuted(places, base, shuffle.key(seed, _TOUR, first, base, rounds))
        return _descend(mixture.of, sizes, inner, epochs, order, seed, first)
    parts = list(zip(mixture.parts, _split(mixture, sizes)))
    ends = np.cumsum([size(part, own) for part, own in parts])
    chosen = np.searchsorted(ends, positions, side="right")
    result = Items(np.empty_like(positions), np.empty_like(positions))
    for number, (part, own) in enumerate(parts):
        here = np.flatnonzero(chosen == number)
        if here.size:
            inner = positions[here] - (ends[number - 1] if number else 0)
            found = _descend(part, own, inner, epochs[here], order, seed, first)
            result.source[here], result.index[here] = found
        first += len(own)
    return result


def _split(mixture: Joined, sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    counts = [len(sources(part)) for part in mixture.parts]
    ends = np.cumsum(counts).tolist()
    return [tuple(sizes[end - count : end]) for end, count in zip(ends, counts)]
