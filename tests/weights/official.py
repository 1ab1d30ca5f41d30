"""Official weight files in miniature: the golden weights of the tiny networks, in every format."""

from __future__ import annotations

import argparse
import collections
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from tests.weights import torch_writer

HEAD_OUTPUT = re.compile(r"downstream_head[12]\.(dpt\.head\.4|proj)\.(weight|bias)")
_RN = re.compile(r"(.*\.scratch\.)layer(\d)_rn\.weight")
TINY = {
    "pos_embed": "RoPE100",
    "img_size": (512, 512),
    "enc_embed_dim": 96,
    "enc_depth": 4,
    "enc_num_heads": 6,
    "dec_embed_dim": 64,
    "dec_depth": 8,
    "dec_num_heads": 2,
    "output_mode": "pts3d",
    "depth_mode": ("exp", -np.inf, np.inf),
    "conf_mode": ("exp", 1, np.inf),
    "landscape_only": True,
    "patch_embed_cls": "ManyAR_PatchEmbed",
}


def seed_of(path: Path) -> int:
    """The seed of inputs and weights of a golden file."""
    with np.load(path) as file:
        return int(file["seed"]) if "seed" in file.files else 0


def state(
    golden_dir: Path, golden_weights: ModuleType, model: str, seed: int = 0
) -> dict[str, np.ndarray]:
    """The weights of the golden files of `model` (align3r, dust3r_dpt, dust3r_linear)."""
    shapes = json.loads((golden_dir / f"network_tiny_{model}_shapes.json").read_text())
    filled = golden_weights.state_dict(shapes, seed)
    return {
        name: array * np.float32(0.2) if HEAD_OUTPUT.fullmatch(name) else array
        for name, array in filled.items()
    }


def arguments(model: str) -> dict[str, Any]:
    return TINY | {"head_type": "linear" if model == "dust3r_linear" else "dpt"}


def constructor_call(model: str) -> str:
    words = ", ".join(f"{key}={value!r}" for key, value in arguments(model).items())
    return f"AsymmetricCroCo3DStereo({words})"


def alias(name: str) -> str | None:
    """The second name that PyTorch files have for the same tensor."""
    match = _RN.fullmatch(name)
    return match and f"{match[1]}layer_rn.{int(match[2]) - 1}.weight"


def checkpoint(weights: dict[str, np.ndarray], model: str) -> dict[str, Any]:
    """A training checkpoint: aliases, arguments, optimizer."""
    named = collections.OrderedDict(weights)
    named.update({alias(name): array for name, array in weights.items() if alias(name)})
    return {
        "model": named,
        "args": argparse.Namespace(model=constructor_call(model), lr=1e-4),
        "epoch": 9,
        "best_so_far": 0.5,
        "optimizer": {"state": {0: {"exp_avg": np.zeros(3, "f4")}}},
    }


def write_pth(path: Path, weights: dict[str, np.ndarray], model: str) -> Path:
    return torch_writer.write_zip(path, checkpoint(weights, model))


def write_hub(folder: Path, weights: dict[str, np.ndarray], model: str) -> Path:
    """A hub folder: bare infinities in config.json, aliases only in the metadata."""
    folder.mkdir()
    aliases = {alias(name): name for name in weights if alias(name)}
    safetensors_numpy.save_file(
        weights, folder / "model.safetensors", metadata={"format": "pt", **aliases}
    )
    (folder / "config.json").write_text(json.dumps(arguments(model)))
    return folder
