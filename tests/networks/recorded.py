"""Recorded runs of the pairwise network: weights, inputs and outputs of one golden file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from align3r_jax.config import NetworkConfig
from align3r_jax.weights.tables import align3r as table

# The last layer of every head, scaled so that the exponentials stay in a benign range.
_LAST_LAYER = re.compile(r"^downstream_head[12]\.(dpt\.head\.4|proj)\.(weight|bias)$")


def seed_of(file: Any) -> int:
    return int(file["seed"]) if "seed" in file else 0


def weights(
    golden_dir: Path, fill: ModuleType, model: str, seed: int, head_dims: tuple[int, int]
) -> tuple[dict[str, np.ndarray], NetworkConfig]:
    """The reference's state dict of `model` and its configuration.

    head_dims: channels per head of encoder and decoder, which shapes do not tell.
    """
    shapes = json.loads((golden_dir / f"network_{model}_shapes.json").read_text())
    state = fill.state_dict(shapes, seed)
    for name in state:
        if _LAST_LAYER.match(name):
            state[name] = state[name] * np.float32(0.2)
    hints = {
        "enc_num_heads": shapes["enc_norm.weight"][0] // head_dims[0],
        "dec_num_heads": shapes["dec_norm.weight"][0] // head_dims[1],
    }
    return state, table.infer_config(state, hints)


def inputs(
    fill: ModuleType, config: NetworkConfig, batch: int, height: int, width: int, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Images and prior maps of the two views."""
    shape = (batch, height, width, 3)
    images = [fill.image(f"img{view}", shape, seed) for view in (1, 2)]
    if not config.prior_branch:
        return images, [None, None]
    maps = [(fill.image(f"pointmap{v}", shape, seed) + 1) * np.float32(0.5) for v in (1, 2)]
    return images, maps


def assert_close(got: Any, expected: np.ndarray, tolerance: float, name: str) -> None:
    """Largest difference at most `tolerance` of the largest absolute value."""
    got = np.asarray(got)
    assert got.shape == expected.shape, f"{name}: {got.shape} instead of {expected.shape}"
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"{name}: relative error {error:.2e}, allowed {tolerance:.0e}"


def linear_tokens(raw: np.ndarray, patch: int) -> np.ndarray:
    """(B, H, W, C) pixels back to the linear head's own output, (B, N, C * patch^2)."""
    batch, height, width, channels = raw.shape
    cut = raw.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return cut.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, channels * patch * patch)
