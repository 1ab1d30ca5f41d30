"""Starts from other networks: what is taken, copied, drawn and left, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util

from align3r_jax.errors import UserError
from align3r_jax.networks import align3r, croco_pretrain
from align3r_jax.training import checkpoint, initialise, optimizer, state
from align3r_jax.weights import croco_file, settings, store
from tests.training import tiny

ALIGN3R = dataclasses.replace(tiny.NETWORK, head="dpt")
DUST3R = dataclasses.replace(ALIGN3R, prior_branch=False)
LINEAR = dataclasses.replace(tiny.NETWORK, prior_branch=False)
KEY = jax.random.key(0)


def _filled(abstract, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), abstract)


def _groups(paths):
    return {path.split("/")[0] for path in paths}


def _flat(params):
    return traverse_util.flatten_dict(params, sep="/")


@pytest.fixture(scope="module")
def dust3r():
    return _filled(align3r.abstract_params(DUST3R))


def test_dust3r_starts_align3r_with_a_prior_branch_that_adds_nothing(dust3r):
    params, report = initialise.from_params(ALIGN3R, dust3r, DUST3R, KEY)
    given, got = _flat(dust3r), _flat(params)
    assert set(report.taken) == set(given) and not report.copied and not report.unused
    assert all(got[path] is given[path] or np.array_equal(got[path], given[path]) for path in given)
    assert _groups(report.fresh) == {"prior_branch"}
    injections = [value for path, value in got.items() if "injection" in path]
    assert injections and not any(value.any() for value in injections)
    assert got["prior_branch/patch_embed/kernel"].any()
    shapes = jax.tree.map(lambda s: s.shape, align3r.abstract_params(ALIGN3R))
    assert jax.tree.map(np.shape, params) == shapes
    back, report = initialise.from_params(DUST3R, params, ALIGN3R, KEY)
    assert _groups(report.unused) == {"prior_branch"} and not report.fresh
    assert all(np.array_equal(_flat(back)[path], given[path]) for path in given)


def test_linear_heads_give_way_to_dpt_heads():
    linear = _filled(align3r.abstract_params(LINEAR))
    params, report = initialise.from_params(DUST3R, linear, LINEAR, KEY)
    assert _groups(report.fresh) == _groups(report.unused) == {"head1", "head2"}
    np.testing.assert_array_equal(
        params["decoder2"]["block_03"]["mlp"]["fc1"]["kernel"],
        linear["decoder2"]["block_03"]["mlp"]["fc1"]["kernel"],
    )
    # Heads of another meaning are not taken either, though their shapes agree.
    bounded = dataclasses.replace(LINEAR, conf_mode="sigmoid", conf_max=5.0)
    _, report = initialise.from_params(bounded, linear, LINEAR, KEY)
    assert _groups(report.fresh) == {"head1", "head2"}


def test_pre_training_starts_both_decoders_from_memory_and_from_files(tmp_path, capsys):
    croco = _filled(croco_pretrain.abstract_params(LINEAR))
    params, report = initialise.from_params(tiny.NETWORK, croco, LINEAR, KEY)
    assert _groups(report.taken) == {
        "encoder", "decoder_embed", "decoder1", "decoder_norm", "mask_token"
    }  # fmt: skip
    assert _groups(report.copied) == {"decoder2"}
    assert _groups(report.fresh) == {"prior_branch", "head1", "head2"}
    assert report.unused == ("prediction_head/bias", "prediction_head/kernel")
    for a, b in zip(*(jax.tree.leaves(params[f"decoder{k}"]) for k in (1, 2)), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        params["encoder"]["norm"]["scale"], croco["encoder"]["norm"]["scale"]
    )

    path = croco_file.export(croco, LINEAR, tmp_path / "croco.safetensors")
    with pytest.raises(UserError, match="no heads"):
        store.load(path)
    with checkpoint.Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        network = {"kind": "croco", "settings": settings.encode_network(LINEAR)}
        meta = {"network": network, "step": 0}
        tx = optimizer.make_optimizer(optimizer.OptimizerConfig())
        checkpoints.save(state.create(croco, tx), meta)
    for source in (path, tmp_path / "run"):
        again, report = initialise.from_weights(tiny.NETWORK, source, KEY)
        assert _groups(report.fresh) == {"prior_branch", "head1", "head2"}
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(a, b)
    printed = capsys.readouterr().out
    assert "Start from croco" in printed and "Start from run" in printed and "fresh" in printed


def test_what_cannot_start_a_network_gets_a_sentence(dust3r):
    wider = dataclasses.replace(ALIGN3R, dec_num_heads=4)
    with pytest.raises(UserError, match="dec_num_heads is 2, expected 4"):
        initialise.from_params(wider, dust3r, DUST3R, KEY)
    without = {name: value for name, value in dust3r.items() if name != "decoder_norm"}
    with pytest.raises(UserError, match="decoder_norm/bias is missing"):
        initialise.from_params(ALIGN3R, without, DUST3R, KEY)
