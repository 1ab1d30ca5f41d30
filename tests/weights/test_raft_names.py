"""Names of RAFT and SEA-RAFT files: round trips, second names, prefixes, variants, errors."""

import functools
import json

import jax
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.networks.raft import build
from align3r_jax.networks.raft.config import FLOW_PRESETS
from align3r_jax.weights.tables import raft, sea_raft
from tests.networks import tiny_flow

TABLES = {"raft": raft, "sea_raft": sea_raft}
KINDS = list(TABLES)
NORM = {"raft": "norm3", "sea_raft": "bn3"}


@functools.cache
def official(kind):
    """The tiny network's weights under official names."""
    return TABLES[kind].export_state(tiny_flow.params(kind), tiny_flow.CONFIGS[kind])


def imported(kind, state):
    return TABLES[kind].import_state(state, TABLES[kind].infer_config(state))


def assert_same(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


@pytest.mark.golden
@pytest.mark.parametrize(
    "kind, file, preset, entries",
    [("raft", "raft", "raft", 179), ("sea_raft", "searaft", "sea_raft_m", 472)],
)
def test_published_names_all_have_a_place(golden_dir, kind, file, preset, entries):
    shapes = json.loads((golden_dir / f"flow_{file}_shapes.json").read_text())
    assert len(shapes) == entries
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    table = TABLES[kind]
    config = table.infer_config(state)
    assert config == FLOW_PRESETS[preset]
    params = table.import_state(state, config)
    exported = table.export_state(params, config)
    assert {name: list(value.shape) for name, value in exported.items()} == shapes
    # S: fewer blocks, all else the same.
    if kind == "sea_raft":
        few = {
            name: value
            for name, value in state.items()
            if not any(f"layer{stage}.{block}." in name for stage in "123" for block in "2345")
        }
        small = table.infer_config(few)
        assert small == FLOW_PRESETS["sea_raft_s"]
        table.import_state(few, small)
        large = table.infer_config(state, {"iters": 12})
        assert large == FLOW_PRESETS["sea_raft_l"]


@pytest.mark.parametrize("kind", KINDS)
def test_export_of_import_is_the_same_state(kind):
    state = official(kind)
    assert TABLES[kind].infer_config(state) == tiny_flow.CONFIGS[kind]
    params = imported(kind, state)
    assert_same(params, tiny_flow.params(kind))
    again = TABLES[kind].export_state(params, tiny_flow.CONFIGS[kind])
    assert again.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(again[name], value)
        assert value.flags.c_contiguous
        assert value.dtype == (np.int64 if name.endswith("tracked") else np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_either_name_of_a_norm_prefixes_and_counters(kind):
    state, expected = official(kind), tiny_flow.params(kind)
    twins = [name for name in state if NORM[kind] in name]
    assert twins
    without_first = {name: v for name, v in state.items() if NORM[kind] not in name}
    without_second = {name: v for name, v in state.items() if "downsample.1" not in name}
    uncounted = {name: v for name, v in without_second.items() if not name.endswith("tracked")}
    wrapped = {f"module.{name}": v for name, v in state.items()}
    for variant in (without_first, without_second, uncounted, wrapped):
        assert TABLES[kind].recognise(variant)
        assert_same(imported(kind, variant), expected)
    name = next(name for name in twins if name.endswith("weight"))
    with pytest.raises(UserError, match="same tensor"):
        imported(kind, {**state, name: state[name] + 1})


@pytest.mark.parametrize("kind", KINDS)
def test_all_errors_come_at_once_by_their_official_names(kind):
    state, config = dict(official(kind)), tiny_flow.CONFIGS[kind]
    for name in [name for name in state if "cnet.layer2.0.downsample.1.weight" in name]:
        del state[name]
    state.pop(f"cnet.layer2.0.{NORM[kind]}.weight")
    state["fnet.conv1.weight"] = state["fnet.conv1.weight"][:, :, :5]
    state["surprise"] = np.zeros(2, np.float32)
    with pytest.raises(UserError) as error:
        TABLES[kind].import_state(state, config)
    sentence = str(error.value)
    assert "1 unknown names: surprise" in sentence
    assert "1 missing names: cnet.layer2.0.downsample.1.weight" in sentence
    assert "fnet.conv1.weight is (8, 3, 5, 7), expected (8, 3, 7, 7)" in sentence


def test_kinds_are_told_apart_by_names():
    for kind, table in TABLES.items():
        assert [table.recognise(official(other)) for other in KINDS] == [
            other == kind for other in KINDS
        ]
        assert not table.recognise(["encoder.conv1.weight"]) and not table.recognise([])
        with pytest.raises(UserError, match="no weights of"):
            table.infer_config({"a.weight": np.zeros(3)})


def test_other_flow_networks_are_refused():
    state = dict(official("raft"))
    small = {name: v for name, v in state.items() if "gru" not in name}
    for gate in "zrq":
        small[f"update_block.gru.conv{gate}.weight"] = np.zeros((96, 242, 3, 3), np.float32)
    assert raft.recognise(small)
    with pytest.raises(UserError, match="RAFT small"):
        raft.infer_config({f"module.{name}": v for name, v in small.items()})
    narrow = state["update_block.encoder.convc1.weight"][:, :49]
    with pytest.raises(UserError, match="49 correlations"):
        raft.infer_config({**state, "update_block.encoder.convc1.weight": narrow})
    del state["update_block.flow_head.conv1.weight"]
    with pytest.raises(UserError, match="flow_head.conv1.weight is missing"):
        raft.infer_config(state)
    broken = {**official("sea_raft"), "update_block.refine.0.pwconv1.weight": np.zeros(3)}
    with pytest.raises(UserError, match="pwconv1"):
        sea_raft.infer_config(broken)


def test_statistics_are_read_and_used():
    """Running means and variances are leaves of the tree, not training state that is dropped."""
    state = dict(official("raft"))
    tree = imported("raft", state)
    mean = tree["context_encoder"]["stem_norm"]["mean"]
    np.testing.assert_array_equal(mean, state["cnet.norm1.running_mean"])
    assert build.parameter_count(tiny_flow.CONFIGS["raft"]) < sum(
        leaf.size for leaf in jax.tree.leaves(tree)
    )
