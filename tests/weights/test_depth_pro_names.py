"""Names of Depth Pro checkpoints: both namings, what files may lack, what is refused."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util

from align3r_jax.errors import UserError
from align3r_jax.networks import depth_pro
from align3r_jax.weights import mapping
from align3r_jax.weights.tables import depth_pro as table
from tests.networks import recorded

HINTS = {"num_heads": 4, "latent_blocks": (0, 1)}


@pytest.fixture(scope="module")
def names(golden_dir):
    """Original name -> name on the hub, or the three of queries, keys and values."""
    return json.loads((golden_dir / "monodepth_names.json").read_text())["depth_pro"]


@pytest.fixture(scope="module")
def state(golden_dir, golden_weights):
    shapes = json.loads((golden_dir / "monodepth_depthpro_toy_params.json").read_text())
    return golden_weights.state_dict(shapes)


@pytest.fixture(scope="module")
def config(state):
    return table.infer_config(state, HINTS)


@pytest.fixture(scope="module")
def params(state, config):
    return table.import_state(state, config)


def to_hub(state, names):
    """The state under the hub's names."""
    hub = {}
    for name, value in state.items():
        target = names[name]
        if isinstance(target, str):
            hub[target] = value
        else:
            hub.update(zip(target, np.split(value, 3)))
    return hub


def same(tree, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, tree, other)))


@pytest.mark.golden
def test_all_released_names_have_a_place(golden_dir, names):
    """Official and converted names of the released file lead to all of our parameters."""
    shapes = json.loads((golden_dir / "monodepth_depthpro_params.json").read_text())
    flat = traverse_util.flatten_dict(
        depth_pro.abstract_params(depth_pro.DEPTH_PRO_PRESETS["depth_pro"]), sep="/"
    )
    assert set(names) == set(shapes)
    # The smallest arrays of the right rank, each with the number of its path.
    numbered = {path: np.full((1,) * leaf.ndim, n) for n, (path, leaf) in enumerate(flat.items())}
    tree = traverse_util.unflatten_dict(numbered, sep="/")
    original, hub = (
        {int(value.ravel()[0]): name for name, value in mapping.from_tree(tree, rules).items()}
        for rules in (table.ORIGINAL_RULES, table.HUB_RULES)
    )
    assert set(original.values()) == set(shapes)
    for number, name in original.items():
        target = names[name]
        if isinstance(target, list):
            joint = {part.replace(word, "(query,key,value)")
                     for part, word in zip(target, ("query", "key", "value"))}  # fmt: skip
            assert joint == {hub[number]}
        else:
            assert hub[number] == target


@pytest.mark.golden
def test_round_trip_in_original_names(state, config, params):
    exported = table.export_state(params, config)
    assert set(exported) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(exported[name], value)
        assert exported[name].dtype == np.float32


@pytest.mark.golden
def test_hub_names_give_the_same_parameters(state, names, config, params):
    hub = to_hub(state, names)
    assert table.infer_config(hub, HINTS) == config
    assert same(table.import_state(hub, config), params)


@pytest.mark.golden
def test_prefix_half_precision_mask_tokens_and_unused_unit(state, names, config, params):
    half = {f"module.{name}": value.astype(np.float16) for name, value in state.items()}
    got = table.import_state(half, config)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(got))
    kernels = got["head"]["conv_0"]["kernel"], params["head"]["conv_0"]["kernel"]
    np.testing.assert_allclose(*kernels, rtol=1e-3, atol=1e-6)
    assert table.recognise(half) and table.recognise(to_hub(state, names))

    idle = "decoder.fusions.4.resnet1."
    fewer = {name: value for name, value in state.items() if not name.startswith(idle)}
    token = "encoder.patch_encoder.mask_token"
    got = table.import_state({**fewer, token: np.zeros((1, config.embed_dim))}, config)
    assert not np.any(got["decoder"]["fusion_4"].pop("skip_unit")["conv1"]["kernel"])
    whole = table.import_state(state, config)
    whole["decoder"]["fusion_4"].pop("skip_unit")
    assert same(got, whole)


@pytest.mark.golden
def test_recorded_run_of_the_converted_model(golden_dir, golden_weights):
    """Filled by its names on disk; configured by the content of its config.json."""
    file = np.load(golden_dir / "monodepth_hf.npz")
    seed = recorded.seed_of(file)
    shapes = json.loads((golden_dir / "monodepth_hf_params.json").read_text())["depth_pro"]
    state = golden_weights.state_dict(shapes, seed)
    for name in ("head.layers.4.bias", "fov_model.head.layers.4.bias"):
        state[name] = file[f"dp/{name}"]
    encoder = {"num_attention_heads": 2, "num_hidden_layers": 4}
    arguments = {
        "model_type": "depth_pro", "intermediate_hook_ids": [2, 0], "merge_padding_value": 1,
        "patch_model_config": encoder, "image_model_config": encoder, "fov_model_config": encoder,
        "use_fov_model": True, "use_batch_norm_in_fusion_residual": False,
    }  # fmt: skip
    config = table.infer_config(state, arguments)
    assert config.latent_blocks == (0, 2) and config.num_heads == 2
    params = table.import_state(state, config)
    side = config.image_size
    images = golden_weights.image("hf_input", (1, side, side, 3), seed)
    network = depth_pro.DepthPro(config, precision="highest")
    out = jax.jit(lambda p, x: network.apply({"params": p}, x, return_intermediates=True))(
        params, images
    )
    logits = np.asarray(out.intermediates["logits"])
    step = side // file["dp/logits"].shape[-1]
    np.testing.assert_allclose(logits[:, ::step, ::step], file["dp/logits"], atol=1e-5)
    depth = np.asarray(out.inverse_depth)[:, ::step, ::step]
    np.testing.assert_allclose(depth, file["dp/predicted_depth"], atol=1e-5)
    np.testing.assert_allclose(out.fov, file["dp/field_of_view"], atol=1e-3)


@pytest.mark.parametrize("kind", ["mixed", "missing", "shape", "unknown", "no fov", "no query"])
@pytest.mark.golden
def test_unusable_files_are_refused(state, names, config, kind):
    hub = to_hub(state, names)
    query = "depth_pro.encoder.patch_encoder.model.encoder.layer.1.attention.attention.query.weight"
    broken, words = {
        "mixed": ({**state, "fov_model.conv.bias": state["fov.downsample.0.bias"]}, "two namings"),
        "missing": ({k: v for k, v in state.items() if k != "head.2.bias"}, "head.2.bias"),
        "shape": ({**state, "head.2.bias": np.zeros(7)}, r"head.2.bias is \(7,\), expected"),
        "unknown": ({**state, "decoder.convs.9.weight": np.zeros(7)}, "1 unknown names"),
        "no fov": ({k: v for k, v in hub.items() if "fov_model" not in k}, "field of view"),
        "no query": ({k: v for k, v in hub.items() if k != query}, "missing names.*attention"),
    }[kind]
    with pytest.raises(UserError, match=words):
        table.import_state(broken, config)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_heads": 4}, "give latent_blocks"),
        ({**HINTS, "merge_padding": 2}, "only meet with 1"),
        ({**HINTS, "use_batch_norm_in_fusion_residual": True}, "not supported"),
        (
            {
                "patch_model_config": {"num_attention_heads": 2},
                "fov_model_config": {"num_attention_heads": 4},
            },
            "one number for all three",
        ),
        ({**HINTS, "num_heads": 5}, "does not divide"),
    ],
)
@pytest.mark.golden
def test_arguments_of_other_networks_are_refused(state, arguments, words):
    with pytest.raises(UserError, match=words):
        table.infer_config(state, arguments)


def test_other_weights_are_not_recognised():
    assert not table.recognise(["pretrained.cls_token", "depth_head.projects.0.weight"])
    assert not table.recognise(["enc_blocks.0.norm1.weight", "head.0.weight"])
    with pytest.raises(UserError, match="not of Depth Pro"):
        table.infer_config({"enc_blocks.0.norm1.weight": np.ones(4)}, HINTS)
