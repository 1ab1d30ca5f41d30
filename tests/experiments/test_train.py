"""Every configuration builds, wrong ones get a sentence; the script trains, resumes, exports."""

import ast
import dataclasses
import importlib
import inspect
import json
import math
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

import align3r_jax
from align3r_jax.config import NetworkConfig
from align3r_jax.errors import UserError
from align3r_jax.networks.small_depth import SmallDepthConfig
from align3r_jax.training import loop, metrics, panels
from align3r_jax.weights import store, training_folder
from data.procedural import stream
from experiments import train, train_settings, train_setup, typed_settings
from experiments.configs import (
    ablation,
    align3r_small,
    align3r_vitl_512,
    dust3r_finetune,
    small_depth,
    smoke,
)
from tests.data.readers import folders, test_own_folder

CONFIGS = Path(align3r_small.__file__).parent
PLAIN = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem not in ("__init__",))
VARIANTS = [f"ablation:{prefix}{name}" for prefix in ("", "small-") for name in ablation.VARIANTS]
VARIANTS += [f"align3r_small:{name}" for name in align3r_small.VARIANTS if name]
ALL = [name for name in PLAIN if name != "ablation"] + ["monst3r_vitl_512:paper"] + VARIANTS
# Those whose step differs in more than numbers; all others are traced by a slow test.
TRACED = [
    "align3r_small", "small_depth", "align3r_vitl_512", "dust3r_finetune", "croco_pretrain",
    "ablation:concat", "ablation:last_layers",
]  # fmt: skip
SHALLOW = {"enc_depth": 1, "dec_depth": 4, "head": "linear"}


def _values(name):
    module, _, argument = name.partition(":")
    config = importlib.import_module(f"experiments.configs.{module}")
    return config.get_config(*([argument] if argument else [])).to_dict()


def _trace(settings):
    """Builds network, optimiser and state, and traces one step; nothing is computed."""
    trainer = train_setup.make_trainer(settings)
    state, details = jax.eval_shape(
        trainer.step, trainer.abstract, train_setup.abstract_batch(settings), jax.random.key(0)
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), trainer.abstract
    )
    assert all(value.shape == () for value in details.values())
    assert {"loss", "grad_norm"} <= set(details)
    return trainer


@pytest.mark.parametrize("name", ALL)
def test_every_configuration_is_complete(name):
    settings = train_settings.settings_from(_values(name))
    json.dumps(settings.position)
    module = importlib.import_module(f"experiments.configs.{name.partition(':')[0]}")
    text = module.__doc__
    assert "python -m experiments.train --config=experiments/configs/" in text.replace(
        "\n    ", " "
    )
    assert "Hardware" in text and "Expected" in text
    if settings.evaluate_every:
        assert settings.evaluate.sets


@pytest.mark.parametrize("name", TRACED)
def test_every_kind_of_step_can_be_traced(name):
    values = _values(name)
    if values["task"] != "mono":
        values["network_settings"] = dict(values.get("network_settings", {})) | SHALLOW
    values["resolutions"] = ((32, 48),)
    _trace(train_settings.settings_from(values))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_configuration_can_be_traced_at_full_size(name):
    _trace(train_settings.settings_from(_values(name)))


def test_the_recipe_of_align3r():
    settings = train_settings.settings_from(align3r_vitl_512.get_config().to_dict())
    counts = [12_500, 6_250, 1_000, 5_000, 3_000]
    assert sum(counts) == align3r_vitl_512.PAIRS == 27_750
    assert all(f"{count:_} @" in settings.data["mixture"] for count in counts)
    config = settings.optimizer_config()
    assert (config.lr, config.lr_min, config.weight_decay) == (5e-5, 1e-6, 0.05)
    assert (settings.batch_size, settings.steps, config.warmup) == (16, 86_700, 8_670)
    assert settings.resolutions == ((288, 512), (336, 512), (256, 512)) and settings.symmetrise


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"batchsize": 4}, "'batchsize' of config is unknown. Did you mean 'batch_size'"),
        ({"optimizer": {"learning_rate": 1e-3}}, "'learning_rate' of config.optimizer is unknown"),
        ({"optimizer": {"warm_up": 5}}, "Did you mean 'warmup'"),
        ({"optimizer": {"total": 5}}, "it is config.steps"),
        ({"optimizer": {"lr": "fast"}}, "config.optimizer.lr must be float, got 'fast'"),
        ({"data": {"source": "procedural", "prior_drop": 0.1}}, "Did you mean 'prior_dropout'"),
        ({"data": {"source": "procedural", "options": {"gap": 3}}}, "config.data.options.gap must"),
        ({"data": {"source": "nowhere"}}, "known are procedural and files"),
        ({"data": {"mixture": "5 @ spring", "thread": 4}}, "Did you mean 'threads'"),
        ({"data": {"mixture": "5 @ spring", "seed": 4}}, "config.data.seed cannot be set there"),
        ({"steps": 10.5}, "config.steps must be int"),
        ({"symmetrise": 1}, "config.symmetrise must be bool"),
        ({"task": "pairwize"}, "Did you mean 'pairwise'"),
        ({"task": "mono", "symmetrise": True}, "means nothing to the task mono"),
        ({"monitor": "near"}, "known are mean_of_medians, min_over_sets, unseen"),
        ({"evaluate": {}}, "config.evaluate.sets names no set"),
        ({"resolutions": ((128, 160), (64, 64))}, "rendered data has one"),
        ({"mesh": {"data": 1, "fdsp": 2}}, "Did you mean 'fsdp'"),
        ({"keep": 0}, "config.keep must be at least 1"),
    ],
)
def test_wrong_settings_get_a_sentence(changes, sentence):
    values = align3r_small.get_config().to_dict() | changes
    with pytest.raises(UserError) as caught:
        train_settings.settings_from(values)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"network": "align3r_smal"}, "Did you mean 'align3r_small'"),
        ({"network_settings": {"encdepth": 3}}, "Did you mean 'enc_depth'"),
        ({"loss": {"alfa": 0.1}}, "Did you mean 'alpha'"),
        ({"loss": {"norm_mode": "avg_dist"}}, "Did you mean 'avg_dis'"),
        ({"optimizer": {"accumulate": 3}}, "accumulate"),
    ],
)
def test_what_only_the_network_knows_gets_a_sentence(changes, sentence):
    values = align3r_small.get_config().to_dict() | changes
    with pytest.raises(UserError) as caught:
        train_setup.make_trainer(train_settings.settings_from(values))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "kind",
    [
        train_settings.TrainSettings, train_settings.EvaluateSettings,
        train_settings.MeshSettings, train_settings.RenderedData, loop.LoopSettings,
    ],
)  # fmt: skip
def test_every_setting_is_read_somewhere(kind):
    modules = [train_settings, train_setup, train_setup.train_tasks, loop]
    read = {
        node.attr
        for module in modules
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute)
    }
    unread = {field.name for field in dataclasses.fields(kind)} - read
    assert not unread - {"source"}, f"nobody reads {unread} of {kind.__name__}"


def test_types_are_checked_and_kept():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        sizes: tuple[tuple[int, int], ...] = ()
        share: float | None = None

    @dataclasses.dataclass(frozen=True)
    class Outer:
        inner: Inner = Inner()
        names: tuple[str, ...] | str = ()

    built = typed_settings.build(Outer, {"inner": {"sizes": [[1, 2]], "share": 1}}, "c")
    assert built == Outer(Inner(((1, 2),), 1.0)) and isinstance(built.inner.share, float)
    assert typed_settings.build(Outer, {"names": "all"}, "c").names == "all"
    for values, sentence in (
        ({"inner": {"sizes": [[1, 2.5]]}}, "c.inner.sizes[0][1] must be int, got 2.5"),
        ({"inner": {"share": True}}, "c.inner.share must be float | None, got True"),
        ({"names": 3}, "c.names must be"),
    ):
        with pytest.raises(UserError) as caught:
            typed_settings.build(Outer, values, "c")
        assert sentence in str(caught.value)


def _simplified(monkeypatch):
    """Replaces renderer and network, which take long to compile, by noise and a straight line."""

    def draw(number, size):
        rng = np.random.default_rng(number)
        x = rng.normal(size=(size, 3)).astype(np.float32)
        return {"x": x, "depth": x @ np.float32([1, 2, 3])}

    def loss(params, batch, key):
        error = jnp.mean((batch["x"] @ params["w"] - batch["depth"]) ** 2)
        return error, {"error": error}

    def make_task(settings):
        assert settings.network == "small_depth"
        return train_setup.train_tasks.Task(
            SmallDepthConfig(),
            lambda key: {"w": jax.random.normal(key, (3,))},
            lambda source: {"w": jnp.full(3, float(source))},
            loss,
            lambda params, batch: {"loss": loss(params, batch, None)[0]},
            lambda params, batch: {
                "images": jnp.zeros((2, 2, 4, 6, 3)),
                "truth": jnp.ones((2, 2, 4, 6)),
                "predicted": jnp.full((2, 2, 4, 6), params["w"][0]),
            },
        )

    monkeypatch.setattr(
        stream, "batches",
        lambda batch_size, seed, **_: lambda step: jax.device_put(draw(step + seed, batch_size)),
    )  # fmt: skip
    monkeypatch.setattr(
        stream, "validation_batches",
        lambda h, w, count, size, _: [draw(k, size) for k in range(count)],
    )  # fmt: skip
    monkeypatch.setattr(train_setup.train_tasks, "make_task", make_task)


def _main(config, work, export=None):
    """Runs the script; flags are replaced, because absl forgets those of libraries otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        for flag, value in (("CONFIG", config), ("WORKDIR", str(work)), ("EXPORT", export)):
            patch.setattr(train, flag, types.SimpleNamespace(value=value))
        train.main(["train"])
    return metrics.read(work / "metrics.jsonl")


def test_the_script_trains_resumes_and_exports(monkeypatch, tmp_path, capsys):
    _simplified(monkeypatch)
    config = small_depth.get_config()
    config.update(
        {
            "batch_size": 4, "steps": 6, "log_every": 2, "save_every": 4, "evaluate_every": 3,
            "images_every": 6, "tensorboard": False, "init_from": "0.5", "average_decay": 0.0,
        }
    )  # fmt: skip
    config.evaluate.batch_size = config.evaluate.batches = 2
    work, out = tmp_path / "work", tmp_path / "weights"
    lines = _main(config, work, export=str(out))
    assert "Weights of step 6 written" in capsys.readouterr().out
    weights = safetensors_numpy.load_file(out / "weights.safetensors")
    np.testing.assert_allclose(weights["w"], 0.5, atol=0.01)
    config.steps = 8
    lines = _main(config, work)
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 8]
    assert math.isfinite(lines[3]["eval/unseen/loss_med"])
    assert len(list((work / "images").iterdir())) == 2
    with pytest.raises(UserError, match="--export"):
        align3r_jax.load(work)
    config.seed = 5
    with pytest.raises(UserError, match="seed was 0 and is now 5"):
        _main(config, work)


def test_the_script_trains_on_files_and_goes_on_with_the_next_batch(monkeypatch, tmp_path):
    def loss(params, batch, key):
        bright = (batch["images"] / 255.0).mean((1, 2, 3, 4))
        noise = jax.random.normal(key) / 100
        return jnp.mean((bright * params["w"] - batch["depth"].mean() + noise) ** 2), {}

    task = train_setup.train_tasks.Task(
        NetworkConfig(), lambda key: {"w": jnp.zeros(1)}, lambda source: {"w": jnp.ones(1)}, loss,
        lambda params, batch: {"loss": loss(params, batch, jax.random.key(0))[0]}, None,
    )  # fmt: skip
    monkeypatch.setattr(train_setup.train_tasks, "make_task", lambda settings: task)
    for part in ("train/a", "train/b"):
        test_own_folder.write(tmp_path / "set" / part, test_own_folder.WORLD)
    config = dust3r_finetune.get_config()
    config.update(
        {
            "resolutions": ((16, 32), (24, 32)), "batch_size": 4, "steps": 6, "log_every": 1,
            "save_every": 2, "evaluate_every": 3, "images_every": 0, "tensorboard": False,
        }
    )  # fmt: skip
    config.data.update({"mixture": "20 @ folder", "workers": 0, "hold_out": 0, "pairs": "window_2"})
    config.data.roots.folder = str(tmp_path / "set")
    config.evaluate.sets.own = "6 @ folder"
    config.evaluate.update({"batch_size": 4, "resolution": (16, 32)})
    config.optimizer.update({"accumulate": 2, "warmup": 0, "lr": 0.1})
    through = _main(config, tmp_path / "through")
    config.max_minutes = 1e-9
    for _ in range(3):
        _main(config, tmp_path / "cut")
    assert training_folder.find(tmp_path / "cut").name == "3"
    config.max_minutes = 0.0
    cut = _main(config, tmp_path / "cut")
    assert [line["step"] for line in cut] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "grad_norm", "eval/own/loss_med", "eval/monitor"):
        assert [line.get(name) for line in cut] == [line.get(name) for line in through]
    assert through[-1]["loss"] != through[0]["loss"] and "eval/own/loss" in through[2]


def test_a_panel_shows_both_views_in_the_colours_of_the_truth():
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 5, (1, 2, 6, 8))
    truth[0, 0, 0, 0] = 0
    maps = {
        "images": np.zeros((1, 2, 6, 8, 3)), "truth": truth, "predicted": 3 * truth,
        "confidence": np.ones((1, 2, 6, 8)), "prior": np.full((1, 2, 6, 8), np.nan),
    }  # fmt: skip
    panel = panels.draw(maps, 0)
    assert panel.shape == (2 * 6 + 2, 5 * 8 + 4 * 2, 3) and panel.dtype == np.uint8
    image, prior, true, predicted, _ = (panel[:6, k * 10 : k * 10 + 8] for k in range(5))
    assert (image == 128).all() and (prior == prior[0, 0]).all()
    np.testing.assert_array_equal(true[1:], predicted[1:])
    assert (true[0, 0] == prior[0, 0]).all(), "unknown truth is grey as a missing prior"


@pytest.mark.slow
def test_smoke_writes_a_work_folder_that_reconstructs(tmp_path):
    lines = _main(smoke.get_config(), tmp_path)
    assert lines[-1]["step"] == 40 and lines[-1]["loss"] < lines[0]["loss"]
    model = store.load(tmp_path)
    assert model.config.enc_embed_dim == 64 and model.meta["step"] == 40
    for k, image in enumerate(test_own_folder.WORLD.images):
        folders.picture(tmp_path / "frames" / f"f{k}.png", image)
    frames, _ = align3r_jax.read_frames(tmp_path / "frames", size=64)
    scene = align3r_jax.reconstruct(frames, model=model)
    assert np.isfinite(scene.depth).all() and (scene.depth > 0).all()
