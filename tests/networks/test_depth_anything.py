"""Depth Anything V2 against recorded runs: every intermediate, every size of the network."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.networks import depth_anything, dinov2
from align3r_jax.weights.tables import depth_anything as table

TOLERANCE = 2e-4  # the recorded network's own float32 error is up to 4.5e-5
# Encoder alone, and head too, of logits up to 2; measured 0.023 and 0.064.
BFLOAT16_TOLERANCE = {jnp.float32: 0.04, jnp.bfloat16: 0.1}
SMALL_IMAGE = 120_000  # pixels; larger ones are slow tests
_FILES = {"vits": "monodepth_da2_vits", "vitb": "monodepth_da2_vitb_vitl"}
_FILES["vitl"] = _FILES["vitb"]
# Steps of the recorded samples: (tokens, channels of tokens), (channels, rows, columns of maps).
_STEPS = {"vits": ((29, 16), (8, 6)), "vitl": ((61, 64), (32, 12))}


def _seed(recorded) -> int:
    return int(recorded["seed"]) if "seed" in recorded else 0


class Recorded:
    """Weights of one recorded network, and its cases: name -> (height, width)."""

    def __init__(self, golden_dir, weights, model):
        self.file = np.load(golden_dir / f"{_FILES[model]}.npz")
        self.seed, self.model, self._weights = _seed(self.file), model, weights
        shapes = json.loads((golden_dir / "monodepth_da2_params.json").read_text())[model]
        state = weights.state_dict(shapes, self.seed)
        state["depth_head.scratch.output_conv2.2.bias"] = self.file[f"{model}_final_bias"]
        self.config = table.infer_config(state)
        self.params = table.import_state(state, self.config)
        matches = {re.match(rf"{model}_(\d+)x(\d+)/logits", key) for key in self.file.files}
        self.sizes = sorted((int(match[1]), int(match[2])) for match in matches if match)
        assert self.sizes

    def run(self, size, dtype=jnp.float32, head_dtype=jnp.float32):
        """The recorded values of a case, by name, and the network's output on its input."""
        prefix = f"{self.model}_{size[0]}x{size[1]}/"
        expected = {
            key.removeprefix(prefix): self.file[key]
            for key in self.file.files
            if key.startswith(prefix)
        }
        images = self._weights.image("da2_input", (len(expected["logits"]), *size, 3), self.seed)
        sample = images.transpose(0, 3, 1, 2)[:, :, ::63, ::84]
        np.testing.assert_allclose(sample, expected["input_sample"], atol=1e-6)
        net = depth_anything.DepthAnything(self.config, dtype, head_dtype, "highest")
        run = jax.jit(lambda p, x: net.apply({"params": p}, x, return_intermediates=True))
        return expected, run(self.params, images)


@pytest.fixture(scope="module")
def small(golden_dir, golden_weights):
    return Recorded(golden_dir, golden_weights, "vits")


def _error(got, expected, name):
    got = np.asarray(got)
    assert got.shape == expected.shape, f"{name}: {got.shape} instead of {expected.shape}"
    return np.abs(got - expected).max()


def _check_outputs(expected, output):
    for name in ("logits", "depth"):
        got = np.asarray(getattr(output, name))
        assert got.dtype == np.float32
        assert _error(got[:, ::4, ::4], expected[name], name) <= TOLERANCE, name
    depth = np.asarray(output.depth, np.float64)
    stats = [depth.min(), depth.max(), depth.mean(), depth.std(), (depth > 0).mean()]
    np.testing.assert_allclose(stats, expected["depth_stats"], atol=TOLERANCE)


def _check_intermediates(expected, output, steps):
    (token_step, channel_step), (map_channels, map_step) = steps
    checked = 0
    for name, value in expected.items():
        ours = re.sub(r"^(block|norm|reassemble|path)(\d+)$", r"\1_\2", name)
        ours = re.sub(r"^layer(\d)_rn$", r"layer_\1", ours)
        ours = {"tokens": "embedded", "output_conv1": "output_1"}.get(ours, ours)
        if ours not in output.intermediates:
            assert name in ("input_sample", "logits", "depth", "depth_stats"), name
            continue
        got = np.asarray(output.intermediates[ours])
        if got.ndim == 3:
            got = got[:, ::token_step, ::channel_step]
        else:
            got = got.transpose(0, 3, 1, 2)[:, ::map_channels, ::map_step, ::map_step]
        # Values reach 6; the same share of the largest one as for the logits.
        scale = max(1.0, np.abs(value).max() / 2)
        assert _error(got, value, name) <= TOLERANCE * scale, name
        checked += 1
    return checked


@pytest.mark.golden
def test_small_network(small):
    for size in (size for size in small.sizes if np.prod(size) <= SMALL_IMAGE):
        expected, output = small.run(size)
        _check_outputs(expected, output)
        assert _check_intermediates(expected, output, _STEPS["vits"]) >= 22
        metric = small.file.get(f"vits_metric_{size[0]}x{size[1]}/depth")
        if metric is None:
            continue
        got = jax.nn.sigmoid(output.logits) * depth_anything.INDOOR_DEPTH
        assert _error(got[:, ::4, ::4], metric, "metric") <= 20 * TOLERANCE / 4


@pytest.mark.golden
@pytest.mark.slow
def test_small_network_on_large_images(small):
    for size in (size for size in small.sizes if np.prod(size) > SMALL_IMAGE):
        _check_outputs(*small.run(size))


@pytest.mark.golden
@pytest.mark.slow
@pytest.mark.parametrize("head_dtype", BFLOAT16_TOLERANCE)
def test_small_network_in_bfloat16(small, head_dtype):
    for size in small.sizes:
        expected, output = small.run(size, jnp.bfloat16, head_dtype)
        assert output.logits.dtype == jnp.float32
        error = _error(output.logits[:, ::4, ::4], expected["logits"], "logits")
        print(f"bfloat16, head {head_dtype.__name__}, {size}: {error:.4f}")
        assert 1e-3 < error <= BFLOAT16_TOLERANCE[head_dtype]


@pytest.mark.golden
@pytest.mark.slow
@pytest.mark.parametrize("model", ["vitb", "vitl"])
def test_larger_networks(golden_dir, golden_weights, model):
    recorded = Recorded(golden_dir, golden_weights, model)
    for size in recorded.sizes:
        expected, output = recorded.run(size)
        _check_outputs(expected, output)
        if model in _STEPS:
            assert _check_intermediates(expected, output, _STEPS[model]) >= 22


@pytest.fixture(scope="module")
def tiny(golden_dir, golden_weights):
    """The recorded network with hub names: file, configuration, state without its last bias."""
    file = np.load(golden_dir / "monodepth_hf.npz")
    shapes = json.loads((golden_dir / "monodepth_hf_params.json").read_text())["depth_anything"]
    state = golden_weights.state_dict(shapes, _seed(file))
    hub = {
        "backbone_config": {"num_attention_heads": 3, "out_indices": (2, 3, 5, 6)},
        "depth_estimation_type": "relative",
        "max_depth": 1,
    }
    config = table.infer_config(state, {**hub, "pos_embed_mode": "size"})
    return file, config, state


@pytest.mark.golden
def test_hub_network(tiny, golden_weights):
    file, config, state = tiny
    assert config.hooks == (1, 2, 4, 5) and config.grid == 9 and config.max_depth is None
    net = depth_anything.DepthAnything(config, precision="highest")
    run = jax.jit(lambda p, x: net.apply({"params": p}, x))
    for key in (key for key in file.files if re.fullmatch(r"da_\d+x\d+/logits", key)):
        case = key.split("/")[0]
        size = tuple(int(side) for side in case.removeprefix("da_").split("x"))
        bias = {"head.conv3.bias": file[f"{case}/head.conv3.bias"]}
        params = table.import_state({**state, **bias}, config)
        images = golden_weights.image("hf_input", (len(file[key]), *size, 3), _seed(file))
        output = run(params, images)
        for name, ours in (("logits", output.logits), ("predicted_depth", output.depth)):
            assert _error(ours[:, ::2, ::2], file[f"{case}/{name}"], name) <= TOLERANCE, case


# What the authors publish, the tensors that nothing reads included.
PARAMETERS = {"small": 24_785_089, "base": 97_470_785, "large": 335_315_649}
ENCODERS = {"small": 22_056_576, "base": 86_580_480, "large": 304_368_640}


def test_parameter_counts():
    presets = depth_anything.DEPTH_ANYTHING_PRESETS
    assert len(presets) == 9
    for size, count in PARAMETERS.items():
        config = presets[f"depth_anything_v2_{size}"]
        assert depth_anything.parameter_count(config) == count
        encoder = depth_anything.abstract_params(config)["encoder"]
        mask_token = config.embed_dim
        held = sum(leaf.size for leaf in jax.tree.leaves(encoder)) + mask_token
        assert held == ENCODERS[size]
        for place, metres in (("indoor", 20.0), ("outdoor", 80.0)):
            metric = presets[f"depth_anything_v2_metric_{place}_{size}"]
            assert metric == dataclasses.replace(config, max_depth=metres)


def test_initial_parameters_give_finite_depth_that_depends_on_the_image():
    config = depth_anything.DepthAnythingConfig(
        embed_dim=16, depth=1, num_heads=2, grid=3, hooks=(0, 0, 0, 0), layer_dims=(4, 4, 8, 8),
        feature_dim=8, last_dim=4, max_depth=20.0,
    )  # fmt: skip
    params = depth_anything.init_params(config, jax.random.key(0))
    expected = depth_anything.abstract_params(config)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected)
    net = depth_anything.DepthAnything(config)
    images = jax.random.normal(jax.random.key(1), (2, 28, 42, 3))
    output = jax.jit(lambda p, x: net.apply({"params": p}, x))(params, images)
    assert output.depth.shape == (2, 28, 42) and output.intermediates is None
    assert np.isfinite(output.logits).all() and np.std(output.logits[0] - output.logits[1]) > 0
    np.testing.assert_allclose(output.depth, 20 / (1 + np.exp(-output.logits)), rtol=1e-5)


def test_positions_are_learnt_ones_only_on_their_own_grid():
    learnt = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 5, 2)), jnp.float32)
    for mode in ("offset", "size"):
        assert dinov2.resize_positions(learnt, (5, 5), mode) is learnt
    size = dinov2.resize_positions(learnt, (5, 8), "size")
    offset = dinov2.resize_positions(learnt, (5, 8), "offset")
    assert size.shape == offset.shape == (1, 5, 8, 2)
    assert np.abs(size - offset).max() > 1e-3
    with pytest.raises(UserError, match="pos_embed_mode"):
        dinov2.resize_positions(learnt, (5, 8), "sizes")


def test_unusable_settings_and_images(tiny):
    _, config, _ = tiny
    net = depth_anything.DepthAnything(config)
    with pytest.raises(UserError, match="multiples of 14"):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 28, 40, 3)))
    for settings, match in [
        ({"num_heads": 5}, "num_heads=5"),
        ({"hooks": (0, 1, 2, 12)}, "four blocks from 0 to 11"),
        ({"max_depth": 0.0}, "max_depth"),
    ]:
        with pytest.raises(UserError, match=match):
            depth_anything.DepthAnythingConfig(**settings)
