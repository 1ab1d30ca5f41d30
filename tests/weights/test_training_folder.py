"""The work folder of a training is as good as a folder of weights; a half-written one is not."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import align3r_jax
from align3r_jax.errors import UserError
from align3r_jax.networks import align3r
from align3r_jax.training import checkpoint, optimizer, state
from align3r_jax.weights import settings as settings_lib
from align3r_jax.weights import store, training_folder
from tests.networks import micro

TX = optimizer.make_optimizer(optimizer.OptimizerConfig())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(work folder, parameters, their moving average) of a training with checkpoints 3 and 12."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        align3r.abstract_params(micro.ALIGN3R),
    )
    first = state.create(params, TX)
    average = jax.tree.map(lambda x: 2 * x + 1, params)
    network = {"kind": "pairwise", "settings": settings_lib.encode_network(micro.ALIGN3R)}
    with checkpoint.Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(first.replace(step=jnp.int32(3)), {"step": 3, "network": network})
        last = first.replace(step=jnp.int32(12), average=average)
        checkpoints.save(last, {"step": 12, "network": network})
    return folder, params, average


def _assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_newest_average_is_loaded_with_its_configuration(run):
    folder, _, average = run
    for place in (folder, folder / "checkpoints", folder / "checkpoints" / "12"):
        model = align3r_jax.load(place)
        assert model.config == micro.ALIGN3R and model.meta["step"] == 12
        _assert_equal(model.params, average)


def test_an_earlier_checkpoint_can_be_named_and_cast(run):
    folder, params, _ = run
    early = store.load(folder / "checkpoints" / "3", dtype="bfloat16")
    assert early.meta["step"] == 3 and early.checksum != store.load(folder).checksum
    assert early.params["mask_token"].dtype == "bfloat16"
    np.testing.assert_allclose(
        np.asarray(early.params["mask_token"], np.float32), params["mask_token"], rtol=1e-2
    )


def test_what_is_being_written_is_not_looked_at(run, tmp_path):
    folder, _, _ = run
    assert training_folder.find(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "3").symlink_to(folder / "checkpoints" / "3")
    (tmp_path / "checkpoints" / "40.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "checkpoints" / "50").mkdir()
    assert training_folder.find(tmp_path).name == "3"


def test_other_kinds_and_other_versions_get_a_sentence(run, tmp_path):
    folder, params, _ = run
    with pytest.raises(UserError, match="pairwise"):
        store.load(folder, kind="depth_pro")
    for name, meta, words in (
        ("old", {"format": "something else"}, "was written as 'something else'"),
        ("mono", {"network": {"kind": "settings", "settings": {}}}, "--export"),
    ):
        with checkpoint.Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
            checkpoints.save(state.create({"w": np.ones(2, np.float32)}, TX), {"step": 0, **meta})
        with pytest.raises(UserError, match=words):
            store.load(tmp_path / name)
    json.dumps(training_folder.read_meta(folder / "checkpoints" / "12"))
