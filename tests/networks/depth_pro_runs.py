"""Recorded runs of Depth Pro: what was kept of each, its weights and its input."""

import json
from typing import NamedTuple

import numpy as np

from align3r_jax.networks import depth_pro
from align3r_jax.weights.tables import depth_pro as table
from tests.networks import recorded


class Recording(NamedTuple):
    """How a recording was thinned out: steps over (tokens, their channels), channels of merged
    maps, channels of other maps, pixels of the output, and the divisor of the step over pixels.
    """

    shapes: str
    head_dim: int
    latent_blocks: tuple[int, int]
    tokens: tuple[int, int]
    merged: int
    channels: int
    pixels: int
    divisor: int


RECORDINGS = {
    "toy": Recording("_toy_params", 16, (0, 1), (5, 8), 8, 4, 4, 16),
    "reduced": Recording("_reduced_params", 16, (0, 1), (37, 8), 8, 4, 12, 24),
    "full": Recording("_params", 64, (5, 11), (97, 128), 128, 32, 12, 12),
}


class Run(NamedTuple):
    """A recorded run and what it ran on."""

    file: dict
    config: depth_pro.DepthProConfig
    params: dict
    images: np.ndarray


def load_run(golden_dir, fill, name) -> Run:
    """The recording `name` with its weights and input."""
    how = RECORDINGS[name]
    file = np.load(golden_dir / f"monodepth_depthpro_{name}.npz")
    seed = recorded.seed_of(file)
    shapes = json.loads((golden_dir / f"monodepth_depthpro{how.shapes}.json").read_text())
    state = fill.state_dict(shapes, seed)
    state["head.4.bias"] = file[f"{name}/head_bias"]
    state["fov.head.4.bias"] = file[f"{name}/fov_bias"]
    heads = shapes["encoder.patch_encoder.norm.weight"][0] // how.head_dim
    hints = {"num_heads": heads, "latent_blocks": how.latent_blocks}
    config = table.infer_config(state, hints)
    side = config.image_size
    images = fill.image("dp_input", (len(file[f"{name}/fov_deg"]), side, side, 3), seed)
    arrays = {key.removeprefix(f"{name}/"): file[key] for key in file if key.startswith(name)}
    return Run(arrays, config, table.import_state(state, config), images)
