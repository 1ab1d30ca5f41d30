"""Recorded runs of Depth Pro: what was kept of each, its weights and its input."""

import json
from typing import NamedTuple

import jax
import numpy as np

from align3r_jax.networks import depth_pro
from align3r_jax.networks import depth_pro_windows as windows_lib
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
    params = jax.tree.map(jax.numpy.asarray, table.import_state(state, config))
    return Run(arrays, config, params, images)


def thin(name, out):
    """The arrays of an output, ordered and thinned out as the recording has them."""
    how = RECORDINGS[name]
    named = dict(out.intermediates)
    cut = named.pop("windows")
    fine, middle = windows_lib.FINE**2, windows_lib.MIDDLE**2
    quarter = cut.shape[2] // 4
    pixels = (slice(quarter // 2, None, quarter), slice(quarter // 3, None, quarter))
    arrays = {}
    for key, part in (("split0", cut[:, :fine]), ("split1", cut[:, fine : fine + middle])):
        arrays[key] = _window_major(part).transpose(0, 3, 1, 2)[:, :, *pixels]
    for key, value in named.items():
        if key in ("patch_tokens", "hook0", "hook1", "patch_encoder"):
            value = _window_major(value)
        if value.ndim == 3 and key != "logits":
            arrays[key] = value[:, :: how.tokens[0], :: how.tokens[1]]
        elif value.ndim == 4:
            value = value.transpose(0, 3, 1, 2)
            if key.startswith("merge"):
                value = value[:, :: how.merged, ::5, ::5]
            elif key == "fov_downsample_pre_relu":
                value = value[:, :: how.channels]
            elif not key.startswith("fov_"):
                step = max(1, value.shape[2] // how.divisor)
                value = value[:, :: how.channels, ::step, ::step]
            arrays[key] = value
    arrays["logits"] = named["logits"][:, :: how.pixels, :: how.pixels]
    arrays["canonical_inverse_depth"] = out.inverse_depth[:, :: how.pixels, :: how.pixels]
    return arrays


def _window_major(array):
    """(B, K, ...) -> (K B, ...), the order of the recordings."""
    return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])


def compiled(name, config):
    """(params, images) -> DepthProOutput, with exact products and thinned intermediates."""
    network = depth_pro.DepthPro(config, precision="highest")

    def run(params, images):
        out = network.apply({"params": params}, images, return_intermediates=True)
        return out._replace(intermediates=thin(name, out))

    return jax.jit(run)


def check_run(name, run, forward, tolerance, depth_tolerance, fov_tolerance):
    """Compares all that was recorded with what `forward` gives, and returns that."""
    out = forward(run.params, run.images)
    step = run.config.image_size // 8
    sample = run.images.transpose(0, 3, 1, 2)[:, :, ::step, ::step]
    recorded.assert_close(sample, run.file["input_sample"], 1e-6, "input")
    compared = set()
    for key, array in out.intermediates.items():
        if key in run.file:
            recorded.assert_close(array, run.file[key], tolerance, key)
            compared.add(key)
    missing = set(run.file) - compared
    known = {"head_bias", "fov_bias", "fov_deg", "inverse_stats", "input_sample"}
    assert missing <= known, missing - known
    inverse = np.asarray(out.inverse_depth, np.float64)
    got = inverse[:, :: RECORDINGS[name].pixels, :: RECORDINGS[name].pixels]
    assert np.abs(got - run.file["canonical_inverse_depth"]).max() <= depth_tolerance
    stats = [inverse.min(), inverse.max(), inverse.mean(), inverse.std()]
    np.testing.assert_allclose(stats, run.file["inverse_stats"], atol=depth_tolerance, rtol=0)
    np.testing.assert_allclose(out.fov, run.file["fov_deg"], atol=fov_tolerance, rtol=0)
    return out


def micro():
    """(config, params) of a network with every layer of the real one and hardly any channels."""
    config = depth_pro.DepthProConfig(
        embed_dim=16, depth=1, num_heads=2, mlp_ratio=1, window=128, latent_blocks=(0, 0),
        dims=(8, 8, 8, 8), decoder_dim=8, last_dim=4,
    )  # fmt: skip
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        return values / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1 * values

    params = jax.tree_util.tree_map_with_path(fill, depth_pro.abstract_params(config))
    params["head"]["out"]["bias"] += 1.0  # most of the last ReLU is open
    params["fov"]["head_2"]["bias"] += 50.0
    return config, params
