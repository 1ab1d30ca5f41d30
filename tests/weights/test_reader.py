"""Released files of every format give the same weights and the right configuration."""

import argparse
import json
import math

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from align3r_jax.errors import UserError
from align3r_jax.weights import reader, settings
from tests.weights import official, torch_writer

MODELS = ("align3r", "dust3r_dpt", "dust3r_linear")
pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def networks(golden_dir, golden_weights):
    """model -> (weights, configuration)"""
    return {model: official.network(golden_dir, golden_weights, model) for model in MODELS}


def assert_same(state, expected):
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name], array)


@pytest.mark.parametrize("model", MODELS)
def test_every_format_gives_weights_and_configuration(networks, model, tmp_path):
    state, config = networks[model]
    checkpoint = official.checkpoint(state, config)
    named = {f"module.{name}": array for name, array in checkpoint["model"].items()}
    paths = {
        "PyTorch": official.write_pth(tmp_path / "a.pth", state, config),
        "older PyTorch": torch_writer.write_legacy(tmp_path / "b.pth", checkpoint),
        "hub folder": official.write_hub(tmp_path / "hub", state, config),
        "hub file": tmp_path / "hub" / "model.safetensors",
        "folder of one file": tmp_path / "hub",
        "parallel": torch_writer.write_zip(
            tmp_path / "c.pth", {"model": named, "args": checkpoint["args"]}
        ),
    }
    for kind, path in paths.items():
        read = reader.read_weights(path)
        assert read.config == config, kind
        names = {name.removeprefix("module."): array for name, array in read.state.items()}
        assert_same(names, state)
    assert reader.read_weights(paths["PyTorch"]).source == {
        "file": "a.pth", "format": "PyTorch", "model": "AsymmetricCroCo3DStereo", "epoch": 9,
    }  # fmt: skip


def test_sharded_hub_folder(networks, tmp_path):
    state, config = networks["align3r"]
    names = sorted(state)
    places = {}
    for part in range(2):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        safetensors_numpy.save_file({n: state[n] for n in names[part::2]}, tmp_path / file)
        places |= dict.fromkeys(names[part::2], file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (tmp_path / "config.json").write_text(json.dumps(official.arguments(config)))
    read = reader.read_weights(tmp_path)
    assert read.config == config
    assert_same(read.state, state)

    index.write_text(json.dumps({"weight_map": places | {"absent.weight": file}}))
    with pytest.raises(UserError, match=r"lack: absent\.weight"):
        reader.read_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": places | {"x": "../secret.safetensors"}}))
    with pytest.raises(UserError, match="no map"):
        reader.read_weights(tmp_path)


def test_text_infinities_and_half_precision(networks, tmp_path):
    state, config = networks["dust3r_dpt"]
    state = {name: array.astype(ml_dtypes.bfloat16) for name, array in state.items()}
    folder = official.write_hub(tmp_path / "hub", state, config)
    written = official.arguments(config)
    written |= {"depth_mode": ["exp", "-inf", "inf"], "conf_mode": ["exp", 1, "Infinity"]}
    (folder / "config.json").write_text(json.dumps(written))
    read = reader.read_weights(folder)
    assert read.config == config
    assert_same(read.state, state)


def test_croco_settings(networks, tmp_path):
    """One decoder, a head for pixels, arguments as a dictionary."""
    state, config = networks["dust3r_dpt"]
    kept = {
        name: array
        for name, array in state.items()
        if not name.startswith(("dec_blocks2", "downstream_head"))
    }
    head = {"prediction_head.weight": np.ones((768, config.dec_embed_dim), "f4")}
    path = torch_writer.write_zip(
        tmp_path / "croco.pth", {"model": kept | head, "croco_kwargs": official.arguments(config)}
    )
    read = reader.read_weights(path)
    assert read.source["model"] == "CroCo"
    names = ("enc_embed_dim", "enc_depth", "enc_num_heads", "dec_embed_dim", "dec_depth")
    assert [getattr(read.config, n) for n in names] == [getattr(config, n) for n in names]
    assert (read.config.head, read.config.prior_branch) == ("dpt", False)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["enc_blocks.0.norm1.weight", "downstream_head1.head_local_features.fc1.x"], "MASt3R"),
        (["aggregator.x", "depth_head.y"], "VGGT"),
        (["layer1.0.conv1.weight", "fc.bias"], r"names are .*layer1\.0\.conv1\.weight"),
    ],
)
def test_other_models_are_recognised(names, message, tmp_path):
    state = {name: np.ones(3, "f4") for name in names}
    safetensors_numpy.save_file(state, tmp_path / "other.safetensors")
    torch_writer.write_zip(tmp_path / "other.pth", state)
    for suffix in ("safetensors", "pth"):
        with pytest.raises(UserError, match=rf"other\.{suffix} holds .*{message}"):
            reader.read_weights(tmp_path / f"other.{suffix}")


def test_numbers_that_are_not_finite_are_named(networks, tmp_path):
    state, config = networks["dust3r_linear"]
    state = dict(state)
    for name, value in (("enc_norm.weight", np.nan), ("dec_norm.bias", -np.inf)):
        state[name] = state[name].copy()
        state[name][1] = value
    path = official.write_pth(tmp_path / "a.pth", state, config)
    with pytest.raises(UserError, match=r"enc_norm\.weight") as raised:
        reader.read_weights(path)
    assert "dec_norm.bias" in str(raised.value)


def test_contradicting_configuration(networks, tmp_path):
    state, config = networks["align3r"]
    folder = official.write_hub(tmp_path / "hub", state, config)
    (folder / "config.json").write_text(
        json.dumps(official.arguments(config) | {"enc_depth": config.enc_depth + 1})
    )
    with pytest.raises(UserError, match=r"enc_depth=\d+ contradicts"):
        reader.read_weights(folder)
    (folder / "config.json").write_text("{broken")
    with pytest.raises(UserError, match="no JSON object"):
        reader.read_weights(folder)


def test_unusable_places(tmp_path):
    with pytest.raises(UserError, match="no file"):
        reader.read_weights(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="found none"):
        reader.read_weights(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch_writer.write_zip(tmp_path / name, {"x": np.ones(1, "f4")})
    with pytest.raises(UserError, match=r"found a\.pth, b\.pth"):
        reader.read_weights(tmp_path)
    torch_writer.write_zip(tmp_path / "a.pth", {"args": argparse.Namespace(), "epoch": 1})
    with pytest.raises(UserError, match="holds no state dict"):
        reader.read_weights(tmp_path / "a.pth")
    torch_writer.write_zip(tmp_path / "a.pth", {"model": {"x": np.ones(1, "f4"), "y": 3}})
    with pytest.raises(UserError, match="the entries y of its state dict are no tensors"):
        reader.read_weights(tmp_path / "a.pth")


def test_damaged_safetensors(networks, tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors_numpy.save_file(networks["dust3r_linear"][0], path)
    data = path.read_bytes()
    for size in (0, 5, 30, 400, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match=r"a\.safetensors"):
            reader.read_weights(path)
    path.write_bytes((2**60).to_bytes(8, "little") + data[8:])
    with pytest.raises(UserError, match="damaged"):
        reader.read_weights(path)
    path.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(UserError, match="web page"):
        reader.read_weights(path)


def test_constructor_calls_are_literals():
    name, arguments = settings.parse_call(
        "Net(a=(512, -1.5), b='x', mode=('exp', -inf, inf), on=True, none=None, l=[1, [2]])", "f"
    )
    assert name == "Net"
    assert arguments == {
        "a": (512, -1.5), "b": "x", "mode": ("exp", -math.inf, math.inf), "on": True,
        "none": None, "l": (1, (2,)),
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "Net(a=__import__('os').system('touch x'))",
        "Net(a=nan)",
        "Net(a=[i for i in (1,)])",
        "Net(a=1+1)",
        "Net(**{'a': 1})",
        "Net(1)",
        "models.Net(a=1)",
        "Net",
        "Net(a=-'x')",
        "Net(a=1",
        "Net(a=" + "(" * 1000 + ")" * 1000 + ")",
        "Net(a=" + "-" * 4000 + "1)",
        "Net(a=" + "1" * 6000 + ")",
    ],
)
def test_constructor_calls_with_anything_else_are_refused(text):
    with pytest.raises(UserError, match="no constructor call"):
        settings.parse_call(text, "a.pth")
