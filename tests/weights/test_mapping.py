"""The table of original names: round trips, aliases, earlier stages of training, errors."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from align3r_jax.config import NETWORK_PRESETS
from align3r_jax.errors import UserError
from align3r_jax.networks import align3r
from align3r_jax.weights import mapping
from align3r_jax.weights.tables import align3r as table

MODELS = ["tiny_align3r", "tiny_dust3r_dpt", "tiny_dust3r_linear"]
HINTS = {"enc_num_heads": 6, "dec_num_heads": 2, "img_size": (512, 512)}


@pytest.fixture(scope="module")
def states(golden_dir, golden_weights):
    def load(model):
        shapes = json.loads((golden_dir / f"network_{model}_shapes.json").read_text())
        return golden_weights.state_dict(shapes, 0)

    return {model: load(model) for model in MODELS}


@pytest.mark.golden
@pytest.mark.parametrize("model", MODELS)
def test_export_of_import_is_the_same_state(states, model):
    state = states[model]
    config = table.infer_config(state, HINTS)
    params = table.import_state(state, config)
    exported = table.export_state(params, config)
    assert exported.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name)
        assert exported[name].flags.c_contiguous and exported[name].dtype == np.float32


@pytest.mark.golden
@pytest.mark.parametrize("model", MODELS)
def test_configuration_is_read_off_the_shapes(states, model):
    assert table.infer_config(states[model], HINTS) == NETWORK_PRESETS[model]


@pytest.mark.golden
@pytest.mark.parametrize(
    "model, preset",
    [
        ("full_align3r", "align3r_vitl_512_dpt"),
        ("full_dust3r", "monst3r_vitl_512_dpt"),
        ("full_dust3r_linear224", "dust3r_vitl_224_linear"),
    ],
)
def test_full_tables_are_complete(golden_dir, model, preset):
    """Every name of the published networks has its place, without any memory for weights."""
    shapes = json.loads((golden_dir / f"network_{model}_shapes.json").read_text())
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    config = table.infer_config(state)
    assert config == NETWORK_PRESETS[preset]
    params = table.import_state(state, config)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == align3r.parameter_count(config)


@pytest.mark.golden
def test_aliases_and_prefix(states):
    state = dict(states["tiny_dust3r_dpt"])
    config = table.infer_config(state, HINTS)
    expected = table.import_state(state, config)
    kept = "downstream_head1.dpt.scratch.layer3_rn.weight"
    alias = "downstream_head1.dpt.scratch.layer_rn.2.weight"
    both = {**state, alias: state[kept]}
    only = {name: value for name, value in both.items() if name != kept}
    wrapped = {f"module.{name}": value for name, value in only.items()}
    for variant in (both, only, wrapped):
        jax.tree.map(np.testing.assert_array_equal, table.import_state(variant, config), expected)
    with pytest.raises(UserError, match="same tensor"):
        table.import_state({**both, alias: state[kept] + 1}, config)


@pytest.mark.golden
def test_croco_weights_start_both_decoders_and_dust3r_an_align3r(states):
    state = states["tiny_dust3r_dpt"]
    config = NETWORK_PRESETS["tiny_align3r"]
    initial = align3r.init_params(config, jax.random.key(0))
    started = table.import_state(state, config, initial)
    jax.tree.map(np.testing.assert_array_equal, started["prior_branch"], initial["prior_branch"])
    dust3r = table.import_state(state, NETWORK_PRESETS["tiny_dust3r_dpt"])
    jax.tree.map(np.testing.assert_array_equal, started["head1"], dust3r["head1"])

    croco = {
        name: value
        for name, value in state.items()
        if not name.startswith(("dec_blocks2", "downstream"))
    }
    croco["prediction_head.weight"] = np.zeros((768, 64), np.float32)
    params = table.import_state(croco, config, initial)
    jax.tree.map(np.testing.assert_array_equal, params["decoder1"], params["decoder2"])
    jax.tree.map(np.testing.assert_array_equal, params["decoder1"], dust3r["decoder1"])
    jax.tree.map(np.testing.assert_array_equal, params["head2"], initial["head2"])
    with pytest.raises(UserError, match="missing names: .*downstream_head1"):
        table.import_state(croco, NETWORK_PRESETS["tiny_dust3r_dpt"])


@pytest.mark.golden
def test_all_errors_come_at_once_by_their_original_names(states):
    state = dict(states["tiny_align3r"])
    config = NETWORK_PRESETS["tiny_align3r"]
    del state["zero_convs.1.0.weight"]
    state["enc_blocks.2.attn.qkv.weight"] = state["enc_blocks.2.attn.qkv.weight"][:-1]
    state["dec_norm.weight"] = state["dec_norm.weight"][None]
    state["enc_blocks.99.norm1.weight"] = np.zeros(96, np.float32)
    state["surprise"] = np.zeros(1, np.float32)
    with pytest.raises(UserError) as error:
        table.import_state(state, config)
    sentence = str(error.value)
    assert "2 unknown names: enc_blocks.99.norm1.weight; surprise" in sentence
    assert "1 missing names: zero_convs.1.0.weight" in sentence
    assert "2 wrong shapes" in sentence
    assert "enc_blocks.2.attn.qkv.weight is (287, 96), expected (288, 96)" in sentence
    assert "dec_norm.weight is (1, 64), expected (64,)" in sentence
    # A part of the prior branch is missing, so initial values must not hide it.
    initial = align3r.abstract_params(config)
    with pytest.raises(UserError, match="zero_convs.1.0.weight"):
        table.import_state(state, config, initial)


@pytest.mark.golden
def test_hints_are_checked_against_the_weights(states):
    state = states["tiny_align3r"]
    for hints, match in [
        ({"enc_depth": 7}, "enc_depth=7"),
        ({"head_type": "linear"}, "head_type"),
        ({"pos_embed": "cosine"}, "pos_embed"),
        ({"output_mode": "pts3d+desc24"}, "output_mode"),
        ({"depth_mode": ("exp", 0, 10)}, "depth_mode"),
    ]:
        with pytest.raises(UserError, match=match):
            table.infer_config(state, {**HINTS, **hints})
    with pytest.raises(UserError, match="enc_num_heads"):
        table.infer_config(state)  # 96 channels: not heads of 64
    sigmoid = table.infer_config(state, {**HINTS, "conf_mode": ["sigmoid", 1, 5]})
    assert (sigmoid.conf_mode, sigmoid.conf_max) == ("sigmoid", 5.0)
    square = table.infer_config(state, {**HINTS, "depth_mode": ["square", -math.inf, math.inf]})
    assert square == dataclasses.replace(NETWORK_PRESETS["tiny_align3r"], depth_mode="square")
    with pytest.raises(UserError, match="patch_embed"):
        table.infer_config({"fnet.weight": np.zeros(3)})


@pytest.mark.parametrize(
    "kind, shape, axes",
    [
        ("linear", (5, 3), (1, 0)),
        ("conv", (5, 4, 3, 2), (2, 3, 1, 0)),
        ("conv_transpose", (4, 5, 3, 2), (2, 3, 0, 1)),
    ],
)
def test_layouts(kind, shape, axes):
    rules = [mapping.Rule("block.{n}.layer", "part/level_{n:02d}", kind)]
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kernel = weight.transpose(axes)
    expected = {"part": {"level_07": {"kernel": kernel, "bias": np.zeros(5, np.float32)}}}
    state = {"block.7.layer.weight": weight, "block.7.layer.bias": np.ones(5, np.float16)}
    tree = mapping.to_tree(state, rules, expected)["part"]["level_07"]
    np.testing.assert_array_equal(tree["kernel"], kernel)
    assert tree["bias"].dtype == np.float32
    back = mapping.from_tree({"part": {"level_07": tree}}, rules)
    np.testing.assert_array_equal(back["block.7.layer.weight"], weight)
    with pytest.raises(KeyError, match="elsewhere"):
        mapping.from_tree({"elsewhere": weight}, rules)
