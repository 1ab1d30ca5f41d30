"""Saving and loading: values, types, places, damage, and that nothing half-written appears."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors import numpy as safetensors_numpy

from align3r_jax.config import NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.networks import align3r
from align3r_jax.weights import folder, store

ROOT = Path(__file__).parents[2]
CONFIG = NetworkConfig(
    enc_embed_dim=16, enc_depth=1, enc_num_heads=2, dec_embed_dim=16, dec_depth=4,
    dec_num_heads=2, dpt_layer_dims=(4, 4, 8, 8), dpt_feature_dim=8, dpt_last_dim=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32),
        align3r.abstract_params(CONFIG),
    )


@pytest.fixture(scope="module")
def saved(params, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net"
    return path, store.save(path, params, CONFIG, {"step": 7})


def assert_same(tree, expected, dtype=np.float32):
    for path, leaf in traverse_util.flatten_dict(expected, sep="/").items():
        got = traverse_util.flatten_dict(tree, sep="/")[path]
        assert got.dtype == dtype
        np.testing.assert_array_equal(np.asarray(got), np.asarray(leaf).astype(dtype))
    assert jax.tree.structure(tree) == jax.tree.structure(expected)


def copy_of(saved, tmp_path):
    return Path(shutil.copytree(saved[0], tmp_path / "copy"))


def test_round_trip(params, saved):
    path, checksum = saved
    loaded = store.load(path)
    assert_same(loaded.params, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded.params))
    assert (loaded.config, loaded.name, loaded.checksum) == (CONFIG, "net", checksum)
    assert loaded.meta == {"step": 7}
    assert_same(store.load(str(path), dtype="bfloat16").params, params, jnp.bfloat16)
    with pytest.raises(UserError, match="dtype='int8'"):
        store.load(path, dtype="int8")
    assert os.listdir(path.parent) == ["net"]


def test_checksum_identifies_values_and_settings(params, saved, tmp_path):
    flat = traverse_util.flatten_dict(params, sep="/")
    described = folder.describe(flat)
    network = json.loads((saved[0] / "config.json").read_text())["network"]
    assert folder.checksum(network, described) == saved[1]
    other = dict(flat)
    other["mask_token"] = -flat["mask_token"]
    assert folder.checksum(network, folder.describe(other)) != saved[1]
    assert folder.checksum(network | {"rope_base": 10.0}, described) != saved[1]
    # Bytes in C order of the values, whatever the memory layout.
    kernel = np.asfortranarray(flat["decoder_embed/kernel"])
    assert folder.describe({"x": kernel})["x"] == described["decoder_embed/kernel"]


def test_half_precision_is_kept_and_float16_widened(params, tmp_path):
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    store.save(tmp_path / "bf16", rounded, CONFIG)
    assert_same(store.load(tmp_path / "bf16").params, rounded, jnp.bfloat16)
    store.save_shipped(tmp_path / "small", params, CONFIG)
    modes = {file.stat().st_mode for file in (tmp_path / "small").iterdir()}
    assert len(modes) == 1, "whoever may read the settings may read the weights"
    half = jax.tree.map(lambda x: x.astype(np.float16), params)
    loaded = store.load(tmp_path / "small")
    assert_same(loaded.params, half, np.float32)
    files = {path.name: path.stat().st_size for path in (tmp_path / "small").iterdir()}
    assert set(files) == {"config.json", "weights.safetensors"}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(half))
    assert size < files["weights.safetensors"] < size + 40_000  # names and offsets


def test_export_round_trip_is_the_identity(params, tmp_path):
    path = store.export(params, CONFIG, tmp_path / "net.safetensors")
    state = safetensors_numpy.load_file(path)
    # The reference's layouts: (out, in), (out, in, kh, kw), (D, D, 1).
    decoder_embed = params["decoder_embed"]["kernel"]
    np.testing.assert_array_equal(state["decoder_embed.weight"], decoder_embed.T)
    assert state["patch_embed.proj.weight"].shape == (16, 3, 16, 16)
    assert state["zero_convs.0.0.weight"].shape == (16, 16, 1)
    loaded = store.load(path)
    assert_same(loaded.params, params)
    assert loaded.config == CONFIG  # heads of 8 channels cannot be read off the shapes
    again = store.export(loaded.params, loaded.config, tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()


def test_shipped_networks(params, monkeypatch, tmp_path):
    monkeypatch.setattr(store.resources, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match="it has none"):
        store.load_shipped("align3r_small")
    store.save_shipped(tmp_path / "shipped" / "align3r_small", params, CONFIG)
    tree = {"conv": {"kernel": np.full((2, 3), 1.5, np.float32)}}
    store.save_shipped(tmp_path / "shipped" / "small_depth", tree, {"widths": (1, 2)})
    loaded = store.load("align3r_small")
    assert (loaded.name, loaded.config) == ("align3r_small", CONFIG)
    got, settings = store.load_shipped("small_depth")
    assert settings == {"widths": [1, 2]}
    assert_same(got, tree)
    assert store.shipped_checksum("align3r_small") == loaded.checksum
    with pytest.raises(UserError, match="another kind of network"):
        store.load("small_depth")
    with pytest.raises(UserError, match="align3r_small, small_depth"):
        store.load("align3r_large")
    with pytest.raises(UserError, match="licence"):
        store.load("align3r_vitl_512_dpt")
    with pytest.raises(UserError, match="no network"):
        store.load_shipped("../shipped/small_depth")


def test_damage_is_noticed(saved, tmp_path):
    path = copy_of(saved, tmp_path)
    largest = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = largest.read_bytes()
    largest.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="checksum differs"):
        store.load(path)
    largest.unlink()
    with pytest.raises(UserError, match="lack the file"):
        store.load(path)
    largest.write_bytes(data)
    store.load(path)

    config = json.loads((path / "config.json").read_text())
    for changed, message in (
        (config | {"network": config["network"] | {"rope_base": 10.0}}, "edited or damaged"),
        ({key: value for key, value in config.items() if key != "files"}, "edited or damaged"),
        (config | {"format": "align3r_jax weights, version 9"}, "version 9"),
    ):
        (path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            store.load(path)


def test_parameters_of_another_network_are_refused(params, tmp_path):
    wrong = traverse_util.flatten_dict(params, sep="/")
    del wrong["mask_token"]
    wrong["decoder_embed/bias"] = np.zeros(3, np.float32)
    wrong["extra/kernel"] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as raised:
        store.save(tmp_path / "x", traverse_util.unflatten_dict(wrong, sep="/"), CONFIG)
    for part in ("3 differ", "mask_token is missing", "(3,), expected (16,)", "no such parameter"):
        assert part in str(raised.value)
    broken = jax.tree.map(np.copy, params)
    broken["mask_token"][0, 0, 1] = np.nan
    with pytest.raises(UserError, match="NaN or infinite.*mask_token"):
        store.save(tmp_path / "x", broken, CONFIG)
    assert not list(tmp_path.iterdir())


def test_outputs_that_exist(params, saved, tmp_path):
    path = copy_of(saved, tmp_path)
    with pytest.raises(UserError, match="--overwrite"):
        store.save(path, params, CONFIG)
    store.save(path, params, CONFIG, {"step": 8}, overwrite=True)
    assert store.load(path).meta == {"step": 8}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no converted weights"):
        store.save(mine, params, CONFIG, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "years of work"
    with pytest.raises(UserError, match=r"\*\.safetensors"):
        store.export(params, CONFIG, mine)
    (tmp_path / "a.safetensors").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        store.export(params, CONFIG, tmp_path / "a.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "copy", "mine"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupted_writes_leave_what_was_there(params, saved, tmp_path, monkeypatch, failure):
    def fail(*_, **__):
        raise failure

    path = copy_of(saved, tmp_path)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    monkeypatch.setattr(folder, "write_manifest", fail)  # after the checkpoint
    for target in (path, tmp_path / "new"):
        with pytest.raises((KeyboardInterrupt, UserError)):
            store.save(target, params, CONFIG, overwrite=True)
    monkeypatch.setattr(store.safetensors_numpy, "save_file", fail)
    with pytest.raises((KeyboardInterrupt, UserError)):
        store.export(params, CONFIG, tmp_path / "new.safetensors")
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    assert store.load(path).checksum == saved[1]


def test_a_disk_that_is_too_small_is_noticed_before_writing(params, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="0.00 GB free"):
        store.save(tmp_path / "x", params, CONFIG)
    assert not list(tmp_path.iterdir())


SHARDED = """
    import sys, jax, numpy as np
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from align3r_jax.weights import store

    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))

    def place(abstract):
        def one(leaf):
            split = leaf.ndim and leaf.shape[0] % 8 == 0
            return NamedSharding(mesh, P("fsdp") if split else P())
        return jax.tree.map(one, abstract)

    for source in sys.argv[1:3]:
        loaded = store.load(source, sharding=place, dtype="bfloat16")
        kernel = loaded.params["decoder_embed"]["kernel"]
        assert kernel.sharding.spec == P("fsdp"), kernel.sharding
        assert {s.data.shape for s in kernel.addressable_shards} == {(2, 16)}
        assert len(loaded.params["mask_token"].sharding.device_set) == 8
        assert kernel.dtype == jax.numpy.bfloat16
    everywhere = store.load(sys.argv[1], sharding=NamedSharding(mesh, P()))
    np.save(sys.argv[3], np.asarray(everywhere.params["decoder_embed"]["kernel"]))
    # Saved from eight devices, read above on one: the reverse way.
    store.save(sys.argv[4], store.load(sys.argv[1], sharding=place).params, loaded.config)
"""


def test_restores_straight_onto_eight_devices(params, saved, tmp_path):
    exported = store.export(params, CONFIG, tmp_path / "net.safetensors")
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED), str(saved[0]), str(exported),
         str(tmp_path / "kernel.npy"), str(tmp_path / "resaved")],
        check=True, timeout=300, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    np.testing.assert_array_equal(
        np.load(tmp_path / "kernel.npy"), params["decoder_embed"]["kernel"]
    )
    resaved = store.load(tmp_path / "resaved")
    assert_same(resaved.params, params)
    assert resaved.checksum == saved[1]
