"""Which frames of a scene are trained on together: rules, and all pairs of a set as arithmetic.

A rule tells the pairs of a scene of n frames; `PairTable` numbers the pairs of all scenes of a set
and finds any of them from its number, so that 10^8 pairs need no list.

| text | rule | used by |
|---|---|---|
| `window_R` | all i < j, j - i <= R, in lexicographic order | Align3R (its Sintel test: 3) |
| `strides_A_B` | (i, i + s), s = A...B, i = 0, 2, 4, ... <= n - 2 s | |
| `strides_A_B:W` | the same, thinned: strides occur as the weights W say | MonST3R |
| `prescribed` | the pairs that come with the scene | Waymo |
| `align3r` | `window_10` | |
| `monst3r` | `strides_1_9:linear_1_2` | |

Weights: `uniform`, `linear_a_b` (from a at the first stride to b at the last), `exponential`
(e^-k for the k-th stride).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from align3r_jax.errors import UserError
from data import shuffle

_SHORT = {"align3r": "window_10", "monst3r": "strides_1_9:linear_1_2"}
_KNOWN = "window_R, strides_A_B, strides_A_B:WEIGHTS, prescribed, align3r, monst3r"


@dataclasses.dataclass(frozen=True)
class Window:
    """All (i, j) with 0 < j - i <= reach, ordered by i, then j."""

    reach: int = 10


@dataclasses.dataclass(frozen=True)
class Strides:
    """(i, i + s) for every stride s and i = 0, step, 2 step, ... <= n - 2 s - spare.

    parity: 2 s, not s, although i + s <= n - 1 would do. Spring's frames count from 1 and its
    bound is one higher, so its pairs are these; Sintel's count from 1 under the same bound:
    spare=1. weights: see the module, None keeps every pair.
    """

    strides: tuple[int, ...] = tuple(range(1, 10))
    step: int = 2
    weights: str | None = None
    spare: int = 0


@dataclasses.dataclass(frozen=True)
class Prescribed:
    """The pairs that the scenes bring."""


Rule = Window | Strides | Prescribed


class Pairs(NamedTuple):
    """Arrays (K,) of int64: the scene, and the frames of view 1 and view 2 in it."""

    scene: np.ndarray
    first: np.ndarray
    second: np.ndarray


def parse_rule(text: str) -> Rule:
    """Returns the rule of the module's table. Raises UserError for anything else."""
    text = _SHORT.get(text, text)
    if text == "prescribed":
        return Prescribed()
    if match := re.fullmatch(r"window_([1-9]\d*)", text):
        return Window(int(match[1]))
    if match := re.fullmatch(r"strides_([1-9]\d*)_([1-9]\d*)(?::(\w[\w.]*))?", text):
        low, high = int(match[1]), int(match[2])
        if low <= high:
            strides = tuple(range(low, high + 1))
            if match[3] is not None:
                stride_distribution(match[3], len(strides))
            return Strides(strides, weights=match[3])
    raise UserError(f"The pair rule '{text}' is unknown; known are {_KNOWN}.")


def stride_distribution(weights: str, count: int) -> np.ndarray:
    """Returns (count,) float64 probabilities of the strides. Raises UserError if unknown."""
    values = _weights(weights, count)
    return values / values.sum()


def resampled_counts(counts: Sequence[int], weights: str) -> np.ndarray:
    """How many pairs of each stride are kept so that strides occur as `weights` say.

    min(n_s, floor(w_s / max(w) * n_m)), m the stride of the largest weight: of that one all are
    kept. counts: n_s, pairs found. Returns int64 of the same shape.
    """
    counts = np.asarray(counts, np.int64)
    values = _weights(weights, len(counts))
    most = counts[int(np.argmax(values))]
    kept = np.floor(values / values.max() * most).astype(np.int64)
    return np.minimum(counts, kept)


class PairTable:
    """The pairs of all scenes of a set, numbered 0 ... len - 1. Picklable.

    frames: (S,) frames per scene. prescribed: (P, 2) arrays per scene, for `Prescribed` only.
    seed: chooses which pairs thinning keeps. Raises UserError if a prescribed pair names frames
    that its scene has not.
    """

    def __init__(
        self,
        frames: Sequence[int] | np.ndarray,
        rule: Rule,
        prescribed: Sequence[np.ndarray | None] | None = None,
        seed: int = 0,
    ):
        self.rule, self._seed = rule, seed
        self._frames = np.asarray(frames, np.int64).reshape(-1)
        self._kept: np.ndarray | None = None  # of each stride, after thinning
        if isinstance(rule, Window):
            reach = np.minimum(rule.reach, np.maximum(self._frames - 1, 0))
            counts = reach * self._frames - reach * (reach + 1) // 2
        elif isinstance(rule, Strides):
            counts = _starts(self._frames[None], np.asarray(rule.strides)[:, None], rule)
            self._found = counts.sum(axis=1)
            if rule.weights is not None:
                self._kept = resampled_counts(self._found, rule.weights)
        else:
            self._listed, counts = _checked(self._frames, prescribed)
        self._bounds = _bounds(counts)  # of (stride and) scene, one after another
        self._kept_bounds = None if self._kept is None else _bounds(self._kept)

    def __len__(self) -> int:
        return int((self._bounds if self._kept_bounds is None else self._kept_bounds)[-1])

    @property
    def pairs_per_scene(self) -> np.ndarray:
        """(S,) int64, before thinning."""
        return np.diff(self._bounds).reshape(-1, len(self._frames)).sum(axis=0)

    def lookup(self, numbers: np.ndarray) -> Pairs:
        """Returns the pairs of numbers (K,) in 0 ... len - 1. Raises ValueError outside of it."""
        numbers = np.asarray(numbers, np.int64)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise ValueError(f"Pair numbers must lie in 0 ... {len(self) - 1}.")
        if self._kept_bounds is not None:
            numbers = self._among_all(numbers, self._kept_bounds)
        group = np.searchsorted(self._bounds, numbers, side="right") - 1
        within = numbers - self._bounds[group]
        if isinstance(self.rule, Window):
            first, second = _window_pair(self._frames[group], self.rule.reach, within)
            return Pairs(group, first, second)
        if isinstance(self.rule, Strides):
            stride, scene = np.divmod(group, len(self._frames))
            first = within * self.rule.step
            return Pairs(scene, first, first + np.asarray(self.rule.strides)[stride])
        first, second = self._listed[numbers].T
        return Pairs(group, first, second)

    def _among_all(self, numbers: np.ndarray, kept_bounds: np.ndarray) -> np.ndarray:
        """From numbers after thinning to numbers before: a fixed random subset of every stride."""
        stride = np.searchsorted(kept_bounds, numbers, side="right") - 1
        within = numbers - kept_bounds[stride]
        chosen = shuffle.permuted(within, self._found[stride], shuffle.key(self._seed, stride))
        return chosen + _bounds(self._found)[stride]


def _bounds(counts: np.ndarray) -> np.ndarray:
    """(K + 1,): where each of K groups begins, and the end."""
    return np.concatenate([[0], np.cumsum(counts.reshape(-1))]).astype(np.int64)


def _weights(name: str, count: int) -> np.ndarray:
    if name == "uniform":
        return np.ones(count)
    if name == "exponential":
        return np.exp(-np.arange(count, dtype=np.float64))
    match = re.fullmatch(r"linear_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?)", name)
    if not match or max(float(match[1]), float(match[2])) <= 0:
        raise UserError(
            f"The stride weights '{name}' are unknown; known are uniform, exponential and "
            "linear_A_B with numbers A, B that are not both zero."
        )
    return np.linspace(float(match[1]), float(match[2]), count)


def _starts(frames: np.ndarray, stride: np.ndarray, rule: Strides) -> np.ndarray:
    last = frames - 2 * stride - rule.spare
    return np.where(last >= 0, last // rule.step + 1, 0)


def _window_pair(
    frames: np.ndarray, reach: int, within: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Frames i, j of pair number `within` of a scene: full rows, then a triangle at the end."""
    full = np.maximum(frames - reach, 0)
    longest = np.minimum(reach, frames) - 1  # partners of the first row of the triangle
    rest = within - full * reach
    # Counted from the end, a row of r partners ends before r (r + 1) / 2.
    left = longest * (longest + 1) // 2 - 1 - rest
    row = np.floor((np.sqrt(8.0 * np.maximum(left, 0) + 1) - 1) / 2).astype(np.int64)
    partners = row + 1
    place = partners * (partners + 1) // 2 - 1 - left
    in_full = rest < 0
    first = np.where(in_full, within // reach, frames - 1 - partners)
    return first, first + 1 + np.where(in_full, within % reach, place)


def _checked(
    frames: np.ndarray, prescribed: Sequence[np.ndarray | None] | None
) -> tuple[np.ndarray, np.ndarray]:
    if prescribed is None or any(pairs is None for pairs in prescribed):
        raise UserError(
            "The pair rule 'prescribed' needs scenes that bring their pairs; these do not. Choose "
            "another one, e.g. window_10."
        )
    arrays = [np.asarray(pairs, np.int64).reshape(-1, 2) for pairs in prescribed]
    counts = np.array([len(pairs) for pairs in arrays], np.int64)
    listed = np.concatenate([np.zeros((0, 2), np.int64), *arrays])
    bounds = np.repeat(frames, counts)[:, None]
    wrong = np.flatnonzero(((listed < 0) | (listed >= bounds)).any(axis=1))
    if wrong.size:
        raise UserError(
            f"Prescribed pair {tuple(map(int, listed[wrong[0]]))} names frames that its scene of "
            f"{int(bounds[wrong[0], 0])} frames has not ({wrong.size} such pairs)."
        )
    return listed, counts
