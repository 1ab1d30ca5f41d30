"""Weights of every kind of network through the same door: read, saved, exported, told apart."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors import numpy as safetensors_numpy

import align3r_jax
from align3r_jax.config import NETWORK_PRESETS
from align3r_jax.errors import UserError
from align3r_jax.weights import kinds, published, reader, store
from tests.weights import tiny_networks

ROOT = Path(__file__).parents[2]
AROUND = ("depth_anything", "depth_pro", "raft", "sea_raft")


def assert_same(tree, expected):
    got = traverse_util.flatten_dict(tree, sep="/")
    wanted = traverse_util.flatten_dict(expected, sep="/")
    assert sorted(got) == sorted(wanted)
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(np.asarray(got[path]), leaf, err_msg=path)


@pytest.mark.parametrize("kind", AROUND)
def test_every_format_gives_the_same_network(kind, tmp_path):
    config, params = tiny_networks.CONFIGS[kind], tiny_networks.params(kind)
    arguments = {"latent_blocks": (0, 1)} if kind == "depth_pro" else None
    files = [
        tiny_networks.write_pth(tmp_path / "plain.pth", kind),
        tiny_networks.write_pth(tmp_path / "parallel.pt", kind, "module."),
        tiny_networks.write_safetensors(tmp_path / "hub.safetensors", kind),
    ]
    for file in files:
        loaded = store.load(file, kind=None, arguments=arguments)
        assert (loaded.kind, loaded.config) == (kind, config), file
        assert_same(loaded.params, params)

    checksum = store.save(tmp_path / "folder", params, config, {"step": 1})
    folder = store.load(tmp_path / "folder", kind=kind)
    assert (folder.kind, folder.config, folder.meta) == (kind, config, {"step": 1})
    assert folder.checksum == checksum == loaded.checksum
    assert store.stored_checksum(tmp_path / "folder") == checksum
    assert store.stored_checksum(files[0]) is None
    assert_same(folder.params, params)

    exported = store.export(params, config, tmp_path / "ours.safetensors")
    again = store.load(exported, kind=None)
    assert (again.kind, again.config) == (kind, config)
    assert_same(again.params, params)
    assert set(safetensors_numpy.load_file(exported)) == set(tiny_networks.state(kind))


def test_a_sharded_hub_folder(tmp_path):
    state = tiny_networks.state("raft")
    names, places = sorted(state), {}
    for part in range(2):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        safetensors_numpy.save_file({n: state[n] for n in names[part::2]}, tmp_path / file)
        places |= dict.fromkeys(names[part::2], file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    loaded = store.load(tmp_path, kind=None)
    assert (loaded.kind, loaded.config) == ("raft", tiny_networks.CONFIGS["raft"])


@pytest.mark.parametrize(
    ("given", "wanted", "parts"),
    [
        ("raft", "pairwise", ["raft.pth", "RAFT", "pairwise", "--flow=raft --flow_weights="]),
        ("depth_pro", "raft", ["Depth Pro", "RAFT", "--prior=depth_pro --prior_weights="]),
        ("sea_raft", ("depth_anything", "depth_pro"), ["SEA-RAFT", "Depth Anything V2 or"]),
        ("depth_anything", "depth_pro", ["Depth Anything V2", "Depth Pro"]),
    ],
)
def test_the_wrong_kind_is_named_with_the_flag_it_belongs_to(given, wanted, parts, tmp_path):
    file = tiny_networks.write_pth(tmp_path / f"{given}.pth", given)
    folder = tmp_path / "folder"
    store.save(folder, tiny_networks.params(given), tiny_networks.CONFIGS[given])
    for source in (file, folder):
        with pytest.raises(UserError) as raised:
            store.load(source, kind=wanted)
        for part in parts[1:] if source is folder else parts:
            assert part in str(raised.value), part


def test_the_public_loader_takes_pairwise_networks_unless_told(tmp_path):
    file = tiny_networks.write_pth(tmp_path / "a.pth", "raft")
    with pytest.raises(UserError, match="flow_weights"):
        align3r_jax.load(file)
    assert align3r_jax.load(file, kind=None).kind == "raft"
    assert align3r_jax.load("align3r_small").kind == "pairwise"
    with pytest.raises(UserError, match="kind of network 'resnet'"):
        align3r_jax.load(file, kind="resnet")


def test_kinds_know_their_settings():
    for name, kind in kinds.KINDS.items():
        assert kinds.get(name) is kind
        assert all(kinds.of_config(c) is kind for c in kind.known_configs.values())
        assert kind.known_configs
    assert kinds.of_config(NETWORK_PRESETS["tiny_align3r"]).name == "pairwise"
    for entry in published.PUBLISHED.values():
        assert entry.preset is None or entry.preset in kinds.get(entry.kind).known_configs
        if entry.preset is not None:
            config = kinds.get(entry.kind).known_configs[entry.preset]
            assert published.name_of(entry.kind, config) == entry.name
    assert published.name_of("depth_pro", tiny_networks.CONFIGS["depth_pro"]) is None


def test_the_name_of_a_metric_file_and_arguments_tell_its_depth(tmp_path):
    metric = tmp_path / "depth_anything_v2_metric_vkitti_vits.pth"
    tiny_networks.write_pth(metric, "depth_anything")
    assert store.load(metric, kind=None).config.max_depth == 80.0
    other = store.load(metric, kind=None, arguments={"max_depth": 20.0})
    assert other.config.max_depth == 20.0
    assert other.checksum != store.load(metric, kind=None).checksum


def test_bad_numbers_and_edited_settings(tmp_path):
    state = dict(tiny_networks.state("raft"))
    state["fnet.conv1.weight"] = np.full_like(state["fnet.conv1.weight"], np.nan)
    safetensors_numpy.save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match=r"NaN.*fnet\.conv1\.weight"):
        reader.read_weights(tmp_path / "nan.safetensors")
    params = jax.tree.map(np.copy, tiny_networks.params("sea_raft"))
    with pytest.raises(UserError, match="not those of its configuration"):
        store.save(tmp_path / "x", params, tiny_networks.CONFIGS["raft"])
    assert not (tmp_path / "x").exists()


def test_reading_pairwise_weights_imports_no_other_network():
    code = (
        "import sys; from align3r_jax.weights import store; store.load('align3r_small'); "
        "print([m for m in sys.modules if m.startswith('align3r_jax.networks.') and "
        "any(n in m for n in ('depth_anything', 'depth_pro', 'raft'))])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_the_search_path(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(published.SEARCH_VARIABLE, raising=False)
    with pytest.raises(UserError) as raised:
        published.locate("depth_anything_v2_large", "--prior_weights")
    for part in (
        "depth_anything_v2_vitl.pth", "CC BY-NC 4.0", "--prior_weights=FILE",
        "experiments.convert_weights --input=FILE", str(tmp_path / "cache/align3r_jax/weights"),
    ):  # fmt: skip
        assert part in str(raised.value)
    with pytest.raises(UserError, match="--preset=depth_anything_v2_metric_indoor_small"):
        published.locate("depth_anything_v2_metric_indoor_small", "--prior_weights")

    cached = tmp_path / "cache" / "align3r_jax" / "weights"
    cached.mkdir(parents=True)
    (cached / "raft-things.pth").write_bytes(b"")
    assert published.locate("raft", "--flow_weights") == cached / "raft-things.pth"
    mine = tmp_path / "mine"
    (mine / "raft").mkdir(parents=True)
    monkeypatch.setenv(published.SEARCH_VARIABLE, f"{tmp_path / 'absent'}{os.pathsep}{mine}")
    assert published.locate("raft", "--flow_weights") == mine / "raft"
    assert published.licence_notice("depth_anything_v2_small") is None
    assert published.licence_notice("raft") is None
    assert "research only" in published.licence_notice("depth_pro")
