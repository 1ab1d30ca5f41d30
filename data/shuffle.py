"""Random orders that are functions: the k-th item of a permutation of n without a list of n.

A permutation of range(n) is a Feistel network on the smallest even number of bits that holds n,
walked until the value is below n (cycle walking; Black and Rogaway 2002, "Ciphers with arbitrary
finite domains"). Any part of any epoch of 10^9 pairs costs what is asked for, in memory and time,
and every host and worker gets the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_ROUNDS = 10
_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio
_ROUND_KEYS = [np.uint64(k * int(_STEP) % 2**64) for k in range(1, _ROUNDS + 1)]
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def key(*parts: Any) -> np.ndarray:
    """Returns uint64 keys from integers or integer arrays (broadcast); the order matters."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = _mix(state + _STEP + np.asarray(part).astype(np.uint64))
    return state


def permuted(positions: np.ndarray, size: Any, keys: np.ndarray) -> np.ndarray:
    """Returns the items (K,) int64 at `positions` (K,) of the permutation of range(size).

    size: one number or (K,), as keys are: position k of the permutation (size, key). A bijection
    of range(size) for every key. Raises ValueError if a position is outside of its range.
    """
    positions = np.asarray(positions, np.int64)
    size = np.broadcast_to(np.asarray(size, np.int64), positions.shape)
    if positions.size and (positions.min() < 0 or (positions >= size).any()):
        raise ValueError(f"Positions must lie in range(size); largest {positions.max()}.")
    keys = np.broadcast_to(keys, positions.shape)
    needed = np.frexp(np.maximum(size - 1, 16))[1]  # at least 5: fewer mix visibly unevenly
    bits = ((needed + 1) // 2).astype(np.uint64)
    result = _feistel(positions.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(result >= size.astype(np.uint64))
    while outside.size:
        result[outside] = _feistel(result[outside], bits[outside], keys[outside])
        outside = outside[result[outside] >= size[outside].astype(np.uint64)]
    return result.astype(np.int64)


def _feistel(values: np.ndarray, bits: np.ndarray, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left, right = values >> bits, values & mask
    for round_key in _ROUND_KEYS:
        mixed = _mix(right ^ _mix(keys + round_key))
        left, right = right, left ^ (mixed & mask)
    return (left << bits) | right


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    value = np.atleast_1d(value)
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))
