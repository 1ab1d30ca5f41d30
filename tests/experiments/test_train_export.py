"""What pre-training learnt leaves its script as a file that other trainings start from."""

import types

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from align3r_jax.config import NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.networks import croco_pretrain as croco_pretrain_network
from align3r_jax.training import partitioning
from align3r_jax.weights import training_folder
from experiments import train, train_settings, train_setup
from experiments.configs import align3r_small, croco_pretrain
from tests.data.readers import test_own_folder
from tests.experiments import test_train
from tests.training import tiny

_TINY = {
    "enc_embed_dim": 32, "enc_depth": 1, "enc_num_heads": 2, "dec_embed_dim": 32, "dec_depth": 4,
    "dec_num_heads": 2, "head": "linear",
}  # fmt: skip


def _assert_starts(path, learnt, network, prior_branch):
    """A pairwise training of `network` that starts from a file has what pre-training learnt."""
    values = align3r_small.get_config().to_dict()
    values |= {"init_from": str(path), "network": network, "network_settings": _TINY}
    start = train_setup.train_tasks.make_task(train_settings.settings_from(values)).read(str(path))
    for mine, other in (("encoder",) * 2, ("decoder1",) * 2, ("decoder2", "decoder1")):
        pairs = zip(jax.tree.leaves(start[mine]), jax.tree.leaves(learnt[other]), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs), mine
    assert ("prior_branch" in start) == prior_branch


def test_pre_training_exports_a_file_that_starts_other_trainings(tmp_path):
    config = NetworkConfig(prior_branch=False, **_TINY)
    learnt = tiny.parameters(croco_pretrain_network.abstract_params(config))
    trainer = types.SimpleNamespace(
        settings=train_settings.settings_from(croco_pretrain.get_config().to_dict()),
        task=types.SimpleNamespace(network=config),
        mesh=partitioning.make_mesh(1),
    )
    final = types.SimpleNamespace(average=learnt, step=2)
    path = tmp_path / "croco.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        for value, refused in ((tmp_path / "weights", True), (path, False)):
            patch.setattr(train, "EXPORT", types.SimpleNamespace(value=str(value)))
            if refused:
                with pytest.raises(UserError, match="named \\*.safetensors"):
                    train.check_export(trainer.settings)
            else:
                train.check_export(trainer.settings)
                for _ in range(2):  # the same command again writes it again
                    train.export(final, trainer)
    named = safetensors_numpy.load_file(path)
    kernel = learnt["decoder1"]["block_00"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(named["dec_blocks.0.mlp.fc1.weight"], kernel.T)
    _assert_starts(path, learnt, "align3r_vitl_512_dpt", prior_branch=True)
    _assert_starts(path, learnt, "dust3r_vitl_512_dpt", prior_branch=False)


@pytest.mark.slow
def test_pre_training_on_files_from_start_to_export(tmp_path):
    test_own_folder.write(tmp_path / "set" / "train" / "a", test_own_folder.WORLD)
    config = croco_pretrain.get_config()
    config.network_settings = _TINY
    config.update(
        {
            "resolutions": ((32, 32),), "batch_size": 2, "steps": 2, "log_every": 1,
            "evaluate_every": 0, "tensorboard": False,
        }
    )  # fmt: skip
    config.data.update({"mixture": "8 @ folder", "workers": 0, "hold_out": 0, "pairs": "window_2"})
    config.data.roots.folder = str(tmp_path / "set")
    config.loss.masked = 0.5
    config.optimizer.update({"warmup": 0, "lr": 1e-2, "base_lr": 0.0})
    work, path = tmp_path / "work", tmp_path / "croco.safetensors"
    with pytest.raises(UserError, match="safetensors"):
        test_train._main(config, work, export=str(tmp_path / "weights"))
    assert not work.exists(), "refused before anything is trained"
    for _ in range(2):
        lines = test_train._main(config, work, export=str(path))
        assert [line["step"] for line in lines] == [1, 2]
    network = NetworkConfig(**_TINY)
    learnt = training_folder.restore_average(
        training_folder.find(work), croco_pretrain_network.abstract_params(network)
    )
    assert learnt["prediction_head"]["bias"].any(), "it was trained"
    _assert_starts(path, learnt, "dust3r_vitl_512_dpt", prior_branch=False)
