"""The ablation of trained networks: a common start, equal pairs, figures that mean something."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.evaluation import tables
from align3r_jax.training import optimizer, panels
from align3r_jax.weights import training_folder
from data.procedural import stream
from experiments import ablation_training, pair_scores, train_settings, train_setup
from experiments.configs import ablation, smoke
from tests.training import tiny

BUDGET = ablation_training.Budget(
    steps=4,
    start_steps=4,
    batch_size=2,
    resolution=(32, 48),
    evaluation=(1, 2),
    network={
        "enc_embed_dim": 32, "enc_depth": 1, "enc_num_heads": 2, "dec_embed_dim": 32,
        "dec_num_heads": 2, "head": "linear",
    },
)  # fmt: skip


def _pairs(rows=2):
    batch = tiny.rendered(rows)
    return {name: jnp.asarray(value) for name, value in batch.items()}


def test_figures_of_the_truth_and_of_known_errors():
    batch = _pairs()
    intrinsic = np.asarray(pair_scores.pair_batch.unproject(
        batch["depth"].reshape(-1, tiny.HEIGHT, tiny.WIDTH),
        pair_scores.pair_batch._centred(batch["focal"], batch["depth"].shape, None),
    ))  # fmt: skip
    turned = np.asarray(batch["cam1_from_cam2"])

    def predict(params, given):
        """Point maps of the truth, depth wrong by a factor that differs from row to row."""
        own = intrinsic[1::2].reshape(2, -1, 3)
        seen = 3 * own @ np.swapaxes(turned[:, :3, :3], 1, 2) + turned[:, None, :3, 3]
        _, rotation, _ = pair_scores.registration.weighted_procrustes(own, seen)
        return {
            "depth": 7 * params * intrinsic[..., 2],
            "rotation": rotation,
            "point_error": jnp.float32(0.25),
        }

    half = np.where(np.arange(tiny.HEIGHT) % 2, 1.0, 1.3)[:, None]
    found = pair_scores.scores(predict, 1.0, [batch])
    assert found["abs_rel"] < 1e-5 and found["delta_1.25"] == 1 and found["point_error"] == 0.25
    assert found["rotation_deg"] < 0.1
    wrong = pair_scores.scores(predict, half, [batch])
    # One scale lies between 1 and 1.3: the two errors together are that step.
    assert 0.1 < wrong["abs_rel"] < 0.16
    base = pair_scores.baselines([batch])
    assert base["prior"]["abs_rel"] < 1e-5, "1.2 x the truth, scale taken out"
    angles = np.rad2deg(np.arctan2(turned[:, 0, 2], turned[:, 0, 0]))
    assert base["constant"]["rotation_deg"] == pytest.approx(np.abs(angles).mean(), abs=0.05)
    blind = pair_scores.without_prior([batch])
    assert not blind[0]["has_prior"].any() and batch["has_prior"].any()


def test_variants_differ_in_what_they_are_named_for_alone(tmp_path):
    base = ablation_training.configured("zero_conv", BUDGET, tmp_path).to_dict()
    trained = {}
    for name in ablation.VARIANTS:
        values = ablation_training.configured(name, BUDGET, tmp_path).to_dict()
        settings = train_settings.settings_from(values)
        differing = {key for key in values if values[key] != base[key]}
        assert differing <= {"network_settings", "optimizer"}, name
        others = [{**v["optimizer"], "frozen": ""} for v in (values, base)]
        assert others[0] == others[1] and settings.init_from == str(tmp_path / "start")
        abstract = jax.eval_shape(
            train_setup.train_tasks.make_task(settings).init, jax.random.key(0)
        )
        patterns = optimizer.frozen_patterns(settings.optimizer_config().frozen)
        flat = optimizer.traverse_util.flatten_dict(optimizer.split(abstract, patterns)[0], sep="/")
        trained[name] = {path.split("/")[0] for path in flat}, "encoder/patch_embed/kernel" in flat
    decoders = {"decoder1", "decoder2", "decoder_norm", "head1", "head2"}
    assert trained["zero_conv"] == (decoders | {"prior_branch"}, False)
    assert trained["no_prior"] == (decoders, False)
    assert trained["concat"] == (decoders | {"encoder"}, True), "else its channel stays zero"
    assert trained["head_only"] == ({"head1", "head2"}, False)
    assert trained["last_layers"] == (decoders, False)
    assert trained["decoder_only"][0] == decoders - {"head1", "head2"} | {
        "decoder_embed", "prior_branch"
    }  # fmt: skip
    assert trained["full"][1] and "prior_branch" in trained["full"][0]
    start = ablation_training.configured("start", BUDGET, tmp_path)
    assert start.init_from is None and start.seed == base["seed"] + 1
    with pytest.raises(UserError, match="Did you mean 'zero_conv'"):
        ablation_training.check_variants(["zero_con"])


@pytest.fixture
def quickly():
    """Nine trainings of four steps: nearly all of it is compiling."""
    settings = train_settings.settings_from(smoke.get_config().to_dict())
    assert settings.quick_compile
    with train_setup.compiler(settings):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
def test_all_variants_train_from_one_start_and_go_on_where_they_stopped(tmp_path, monkeypatch):
    said = []
    some = ("zero_conv", "no_prior")
    results = ablation_training.run(tmp_path, BUDGET, some, said.append)
    assert list(results["variants"]) == ["start", *some] and said == [
        f"{n}:" for n in ("start", *some)
    ]
    assert ablation_training.run(tmp_path, BUDGET, some, said.append) == results
    assert len(said) == 3, "what is finished is not trained again"

    # Stopped in the third, then continued.
    real = ablation_training.train_run.train

    def stopped(settings, values, workdir):
        short = dataclasses.replace(settings, steps=2)
        return real(short if workdir.name == "concat" else settings, values, workdir)

    with monkeypatch.context() as patch:
        patch.setattr(ablation_training.train_run, "train", stopped)
        assert ablation_training.run(tmp_path, BUDGET, ablation.VARIANTS, said.append) is None
    assert training_folder.find(tmp_path / "concat").name == "2"
    results = ablation_training.run(tmp_path, BUDGET, ablation.VARIANTS, said.append)
    assert list(results["variants"]) == ["start", *ablation.VARIANTS]
    stored = json.loads((tmp_path / ablation_training.RESULTS).read_text())
    for name, entry in stored["variants"].items():
        assert entry["steps"] == 4 and np.isfinite(entry["without_prior"]["abs_rel"])
        assert (entry["with_prior"] is None) == (name in ("start", "no_prior", "last_layers"))
    text = (tmp_path / "table.md").read_text()
    assert text == tables.to_markdown([ablation_training.table(stored)])
    assert "the prior itself" in text and "head_only" in text and "nan" not in text
    # Untouched injections: heads alone see no prior.
    alone = stored["variants"]["head_only"]
    assert alone["with_prior"] == pytest.approx(alone["without_prior"], rel=1e-4)

    with pytest.raises(UserError, match="other settings .steps."):
        ablation_training.run(tmp_path, dataclasses.replace(BUDGET, steps=5), some)
    stored["data"] = "0"
    del stored["variants"]["full"]
    (tmp_path / ablation_training.RESULTS).write_text(json.dumps(stored))
    with pytest.raises(UserError, match="other pairs"):
        ablation_training.run(tmp_path, BUDGET, ablation.VARIANTS, said.append)


@pytest.mark.slow
def test_depth_of_both_views_is_what_the_pictures_of_training_show():
    settings = train_settings.settings_from(
        ablation_training.configured("zero_conv", BUDGET, ablation_training.Path("x")).to_dict()
    )
    task = train_setup.train_tasks.make_task(settings)
    params = tiny.parameters(jax.eval_shape(task.init, jax.random.key(0)))
    batch = stream.validation_batches(*BUDGET.resolution, 1, 2)[0]
    found = pair_scores.make_predict(task.network)(params, batch)
    maps = panels.pairwise_maps(task.network)(params, batch)
    np.testing.assert_allclose(found["depth"][::2], maps["predicted"][:, 0], rtol=1e-4, atol=1e-4)
    assert found["rotation"].shape == (2, 3, 3) and np.isfinite(found["point_error"])
