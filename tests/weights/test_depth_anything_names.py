"""The names of Depth Anything, original and hub: both lead to the same parameters and back."""

import json

import jax
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.networks import depth_anything
from align3r_jax.networks.depth_anything import DEPTH_ANYTHING_PRESETS
from align3r_jax.weights import mapping
from align3r_jax.weights.tables import depth_anything as table

pytestmark = pytest.mark.golden
MODELS = {"vits": "small", "vitb": "base", "vitl": "large"}
TINY = {"num_heads": 3, "hooks": (1, 2, 4, 5)}


def _shapes(golden_dir, model):
    return json.loads((golden_dir / "monodepth_da2_params.json").read_text())[model]


@pytest.fixture(scope="module")
def tiny(golden_dir, golden_weights):
    """A small network's state dict with hub names."""
    shapes = json.loads((golden_dir / "monodepth_hf_params.json").read_text())["depth_anything"]
    return golden_weights.state_dict(shapes)


def _hub_state(state, names):
    """A state dict renamed to hub names by the recorded table."""
    renamed = {}
    for name, value in state.items():
        hub = names[name]
        if isinstance(hub, list):
            renamed.update(zip(hub, np.split(value, 3)))
        else:
            renamed[hub] = value
    return renamed


@pytest.mark.parametrize("model", MODELS)
def test_full_tables_are_complete(golden_dir, model):
    """Every recorded name of the published networks has its place, in memory of one number."""
    shapes = _shapes(golden_dir, model)
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    config = table.infer_config(state)
    assert config == DEPTH_ANYTHING_PRESETS[f"depth_anything_v2_{MODELS[model]}"]
    params = mapping.to_tree(state, table.ORIGINAL_RULES, depth_anything.abstract_params(config))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(
        int(np.prod(shape)) for shape in shapes.values()
    )
    assert table.recognise(shapes) and table.recognise([f"module.{name}" for name in shapes])

    key = "depth_anything_vitl" if model == "vitl" else "depth_anything_vits_vitb"
    names = json.loads((golden_dir / "monodepth_names.json").read_text())[key]
    assert names.keys() == shapes.keys()
    flat = [hub for value in names.values() for hub in ([value] if type(value) is str else value)]
    assert table.recognise(flat)
    ours = {rule.source: rule.path for rule in table.HUB_RULES}
    assert ours["head.conv3"] == "head/output_3"
    if model == "vits":  # the others differ in numbers only
        hub = _hub_state(state, names)
        assert table.infer_config(hub) == config
        table.import_state(hub, config)


def test_both_namings_give_the_same_parameters(golden_dir, golden_weights, tiny):
    config = table.infer_config(tiny, TINY)
    params = table.import_state(tiny, config)
    exported = table.export_state(params, config)
    assert all(value.flags.c_contiguous for value in exported.values())
    names = json.loads((golden_dir / "monodepth_names.json").read_text())
    names = names["depth_anything_vits_vitb"]
    back = _hub_state(exported, names)
    assert back.keys() == tiny.keys()
    for name, value in tiny.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    assert table.infer_config(exported, TINY) == config
    again = table.import_state({f"module.{n}": v for n, v in exported.items()}, config)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    halves = {name: value.astype(np.float16) for name, value in exported.items()}
    kinds = {leaf.dtype for leaf in jax.tree.leaves(table.import_state(halves, config))}
    assert kinds == {np.dtype(np.float32)}


def test_what_nothing_reads_may_be_missing(tiny):
    config = table.infer_config(tiny, TINY)
    unused = ("backbone.embeddings.mask_token", "neck.fusion_stage.layers.0.residual_layer1")
    read = {name: value for name, value in tiny.items() if not name.startswith(unused)}
    assert len(tiny) - len(read) == 5
    params = table.import_state(read, config)
    assert not np.any(params["mask_token"])
    assert not np.any(params["head"]["fusion_4"]["skip_unit"]["conv1"]["kernel"])
    expected = table.import_state(tiny, config)
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], expected["encoder"])


def test_errors_come_at_once_by_the_names_of_the_file(tiny):
    config = table.infer_config(tiny, TINY)
    broken = dict(tiny)
    layer = "backbone.encoder.layer.3."
    del broken[f"{layer}attention.attention.key.weight"]
    broken[f"{layer}attention.attention.value.bias"] = np.zeros(95, np.float32)
    broken["head.conv2.weight"] = broken["head.conv2.weight"][:-1]
    del broken["neck.convs.2.weight"]
    broken["head.conv4.weight"] = np.zeros(1, np.float32)
    with pytest.raises(UserError) as error:
        table.import_state(broken, config)
    sentence = str(error.value)
    assert "1 unknown names: head.conv4.weight" in sentence
    assert f"{layer}attention.attention.(query,key,value).weight" in sentence
    assert "neck.convs.2.weight" in sentence and "2 missing names" in sentence
    assert "2 wrong shapes" in sentence and "head.conv2.weight is (31, 16, 3, 3)" in sentence


def test_mixed_naming_is_refused(tiny):
    config = table.infer_config(tiny, TINY)
    mixed = {**tiny, "pretrained.cls_token": tiny["backbone.embeddings.cls_token"]}
    for call in (lambda: table.import_state(mixed, config), lambda: table.infer_config(mixed)):
        with pytest.raises(UserError, match="mix two namings: pretrained.cls_token"):
            call()


def test_settings_that_shapes_do_not_tell(tiny):
    with pytest.raises(UserError, match="number of heads"):
        table.infer_config(tiny, {"hooks": TINY["hooks"]})
    with pytest.raises(UserError, match="Which of the 6 blocks"):
        table.infer_config(tiny, {"num_heads": 3})
    with pytest.raises(UserError, match="not of a Depth Anything network"):
        table.infer_config({"fnet.conv1.weight": np.zeros((1, 1, 1, 1))})
    with pytest.raises(UserError, match="SwiGLU"):
        table.infer_config(tiny, {"backbone_config": {"use_swiglu_ffn": True}})

    backbone = {"num_attention_heads": 3, "out_features": ("stage2", "stage3", "stage5", "stage6")}
    metric = {"depth_estimation_type": "metric", "max_depth": 80}
    config = table.infer_config(tiny, {"backbone_config": backbone, **metric})
    assert config.hooks == (1, 2, 4, 5) and config.max_depth == 80.0
    relative = {"depth_estimation_type": "relative", "max_depth": 1}
    config = table.infer_config(tiny, {"backbone_config": backbone, **relative})
    assert config.max_depth is None

    for name, expected in [
        ("depth_anything_v2_metric_hypersim_vits.pth", {"max_depth": 20.0}),
        ("depth_anything_v2_metric_vkitti_vitl.pth", {"max_depth": 80.0}),
        ("Depth-Anything-V2-Metric-Indoor-Small-hf", {"max_depth": 20.0}),
        ("depth_anything_v2_vitl.pth", {}),
    ]:
        assert table.arguments_from_name(name) == expected
