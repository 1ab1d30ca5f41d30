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

from align3r_jax.config import NetworkConfig
from tests.networks import recorded
from tests.weights import torch_writer

_RN = re.compile(r"(.*\.scratch\.)layer(\d)_rn\.weight")
_HEAD_DIMS = (16, 32)  # channels per head of the tiny networks, encoder and decoder


def seed_of(path: Path) -> int:
    """The seed of inputs and weights of a golden file."""
    with np.load(path) as file:
        return recorded.seed_of(file)


def network(
    golden_dir: Path, golden_weights: ModuleType, model: str, seed: int = 0
) -> tuple[dict[str, np.ndarray], NetworkConfig]:
    """Weights and configuration of the tiny `model` (align3r, dust3r_dpt, dust3r_linear)."""
    return recorded.weights(golden_dir, golden_weights, f"tiny_{model}", seed, _HEAD_DIMS)


def arguments(config: NetworkConfig) -> dict[str, Any]:
    """The constructor arguments of the original model."""
    same = ("enc_embed_dim", "enc_depth", "enc_num_heads")
    same += tuple(name.replace("enc", "dec") for name in same)
    return {
        "pos_embed": "RoPE100",
        "img_size": (config.img_size, config.img_size),
        "output_mode": "pts3d",
        "head_type": config.head,
        "depth_mode": ("exp", -np.inf, np.inf),
        "conf_mode": ("exp", 1, np.inf),
        "landscape_only": True,
        "patch_embed_cls": "ManyAR_PatchEmbed",
        **{name: getattr(config, name) for name in same},
    }


def constructor_call(config: NetworkConfig) -> str:
    words = ", ".join(f"{key}={value!r}" for key, value in arguments(config).items())
    return f"AsymmetricCroCo3DStereo({words})"


def alias(name: str) -> str | None:
    """The second name that PyTorch files have for the same tensor."""
    match = _RN.fullmatch(name)
    return match and f"{match[1]}layer_rn.{int(match[2]) - 1}.weight"


def checkpoint(weights: dict[str, np.ndarray], config: NetworkConfig) -> dict[str, Any]:
    """A training checkpoint: aliases, arguments, optimizer."""
    named = collections.OrderedDict(weights)
    named.update({alias(name): array for name, array in weights.items() if alias(name)})
    return {
        "model": named,
        "args": argparse.Namespace(model=constructor_call(config), lr=1e-4),
        "epoch": 9,
        "best_so_far": 0.5,
        "optimizer": {"state": {0: {"exp_avg": np.zeros(3, "f4")}}},
    }


def write_pth(path: Path, weights: dict[str, np.ndarray], config: NetworkConfig) -> Path:
    return torch_writer.write_zip(path, checkpoint(weights, config))


def write_hub(folder: Path, weights: dict[str, np.ndarray], config: NetworkConfig) -> Path:
    """A hub folder: bare infinities in config.json, aliases only in the metadata."""
    folder.mkdir()
    aliases = {alias(name): name for name in weights if alias(name)}
    safetensors_numpy.save_file(
        weights, folder / "model.safetensors", metadata={"format": "pt", **aliases}
    )
    (folder / "config.json").write_text(json.dumps(arguments(config)))
    return folder
