"""Recorded runs of RAFT and SEA-RAFT: weights, inputs and slices of the golden files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tests.networks.recorded import seed_of

# Factors that keep flows finite, of several pixels, and up-sampling weights far from uniform.
_FACTORS = {
    "raft": {"update_block.mask.2.weight": 10},
    "searaft": {
        "fnet.final_conv.weight": 0.3,
        "flow_head.2.weight": 0.2,
        "upsample_weight.2.weight": 3,
    },
}


def weights(golden_dir: Path, fill: ModuleType, model: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The official state dict of `model` ("raft", "searaft"): tied norms under both names."""
    shapes = json.loads((golden_dir / f"flow_{model}_shapes.json").read_text())
    state = fill.state_dict(shapes, seed)
    for name in state:
        if tied := re.fullmatch(r"(.*\.layer\d\.\d\.)(?:norm|bn)3(\.\w+)", name):
            state[name] = state[f"{tied[1]}downsample.1{tied[2]}"]
    for name, factor in _FACTORS[model].items():
        state[name] = state[name] * np.float32(factor)
    return state


def inputs(fill: ModuleType, file: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both images (1, H, W, 3) in [0, 255]; checked against the corners if the file has them."""
    seed, (height, width) = seed_of(file), (int(n) for n in file["size"])
    shape = (1, height, width, 3)
    first = fill.image("flow/image1", shape, seed)
    second = fill.image("flow/image2", shape, seed)
    moved = np.roll(first, (2, -3), (1, 2))
    second = np.float32(0.8) * moved + np.float32(0.2) * second
    images = [(image + 1) * np.float32(127.5) for image in (first, second)]
    for number, image in enumerate(images, 1):
        if (name := f"image{number}_corner") in file:
            np.testing.assert_allclose(channels_first(image[:, :8, :8]), file[name], atol=1e-4)
    return images[0], images[1]


def files(golden_dir: Path, model: str, key: str) -> list[Path]:
    """The files of `model` that hold the array `key` (their names tell only sizes)."""
    found = []
    for path in sorted(golden_dir.glob(f"flow_{model}_*x*.npz")):
        with np.load(path) as file:
            if key in file:
                found.append(path)
    assert found, f"no flow_{model}_*x*.npz with {key} in {golden_dir}"
    return found


def channels_first(x: Any) -> np.ndarray:
    """(..., H, W, C) -> (..., C, H, W), the layout of the files."""
    return np.moveaxis(np.asarray(x), -1, -3)
