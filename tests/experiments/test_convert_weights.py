"""Official file -> converted folder -> recorded outputs, through the commands that users type."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from align3r_jax.weights import reader, store
from tests.weights import official, torch_writer

ROOT = Path(__file__).parents[2]
OUTPUTS = ("pts3d_1", "conf_1", "pts3d_2", "conf_2")
# Runs a script several times in one process: JSON list of flags in, list of results out.
DRIVER = """
    import contextlib, importlib, io, json, sys
    from absl.testing import flagsaver
    from experiments import cli

    main = importlib.import_module(f"experiments.{sys.argv[1]}").main
    count = int(sys.argv[2])
    results = []
    for arguments in json.load(sys.stdin):
        out, err = io.StringIO(), io.StringIO()
        sys.argv = ["script", *arguments]
        with flagsaver.flagsaver(), contextlib.redirect_stdout(out):
            with contextlib.redirect_stderr(err):
                try:
                    cli.run(main, arguments=count)
                except SystemExit as exit:
                    results.append([exit.code or 0, out.getvalue(), err.getvalue()])
    json.dump(results, sys.stdout)
"""

pytestmark = pytest.mark.golden


def run_cases(module, cases, timeout=600, arguments=0):
    """[flags] -> [(exit code, stdout, stderr)] of experiments.`module`, which takes `arguments`."""
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DRIVER), module, str(arguments)],
        input=json.dumps(cases), capture_output=True, text=True, timeout=timeout, cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def record(path, golden_dir, golden_weights, model, case):
    """The recording of a golden file, with the inputs that it was made from."""
    source = golden_dir / f"network_tiny_{case}.npz"
    seed = official.seed_of(source)
    with np.load(source) as file:
        recording = {name: file[name] for name in OUTPUTS}
    shape = recording["pts3d_1"].shape
    for view in (1, 2):
        recording[f"images{view}"] = golden_weights.image(f"img{view}", shape, seed)
        if model == "align3r":
            waves = golden_weights.image(f"pointmap{view}", shape, seed)
            recording[f"prior{view}"] = (waves + np.float32(1)) * np.float32(0.5)
    np.savez(path, **recording)
    return recording


def test_official_file_to_verified_folder(golden_dir, golden_weights, tmp_path):
    seed = official.seed_of(golden_dir / "network_tiny_align3r_landscape.npz")
    state, config = official.network(golden_dir, golden_weights, "align3r", seed)
    official.write_pth(tmp_path / "official.pth", state, config)
    record(tmp_path / "recorded.npz", golden_dir, golden_weights, "align3r", "align3r_landscape")
    for command in (
        ["convert_weights", f"--input={tmp_path}/official.pth", f"--output={tmp_path}/net"],
        ["verify_weights", f"--weights={tmp_path}/net", f"--golden={tmp_path}/recorded.npz",
         "--tolerance=1e-5"],
    ):  # fmt: skip
        process = subprocess.run(
            [sys.executable, "-m", f"experiments.{command[0]}", *command[1:]],
            capture_output=True, text=True, timeout=600, cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        assert process.returncode == 0, process.stdout + process.stderr
        assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.endswith(" ok")] == list(OUTPUTS)
    assert lines[-1] == "All within the tolerance of 1e-05."
    assert sorted(os.listdir(tmp_path)) == ["net", "official.pth", "recorded.npz"]
    loaded = store.load(tmp_path / "net")
    assert loaded.meta["source"]["epoch"] == 9
    again = reader.read_weights(
        store.export(loaded.params, loaded.config, tmp_path / "again.safetensors")
    ).state
    assert set(again) == set(state)
    for name, array in state.items():
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.slow
def test_other_networks_types_and_differences(golden_dir, golden_weights, tmp_path):
    seed = official.seed_of(golden_dir / "network_tiny_dust3r_linear.npz")
    linear, config = official.network(golden_dir, golden_weights, "dust3r_linear", seed)
    official.write_hub(tmp_path / "linear", linear, config)
    recording = record(
        tmp_path / "linear.npz", golden_dir, golden_weights, "dust3r", "dust3r_linear"
    )
    first = {name: array.transpose(0, 3, 1, 2) for name, array in recording.items() if "im" in name}
    np.savez(tmp_path / "torch.npz", **first, conf_2=recording["conf_2"], note=np.ones(1))
    recording["pts3d_2"] = recording["pts3d_2"] * (1 + 1e-3)
    np.savez(tmp_path / "changed.npz", **recording)

    dpt, config = official.network(golden_dir, golden_weights, "dust3r_dpt")
    kept = {k: v for k, v in dpt.items() if not k.startswith(("dec_blocks2", "downstream"))}
    croco = {"model": kept, "croco_kwargs": official.arguments(config)}
    torch_writer.write_zip(tmp_path / "croco.pth", croco)

    def convert(name, output, *flags):
        return [f"--input={tmp_path}/{name}", f"--output={tmp_path}/{output}", *flags]

    half, exported, headless, started = run_cases("convert_weights", [
        convert("linear", "half", "--dtype=bfloat16"),
        convert("half", "half.safetensors", "--format=safetensors"),
        convert("croco.pth", "croco"),
        convert("croco.pth", "croco", "--initialise_missing"),
    ])  # fmt: skip
    assert half[0] == 0, half
    assert "bfloat16" in half[1]
    assert exported[0] == 0, exported
    rounded = reader.read_weights(tmp_path / "half.safetensors")
    assert {str(array.dtype) for array in rounded.state.values()} == {"bfloat16"}
    assert headless[0] == 2
    assert "--initialise_missing" in headless[2]
    assert started[0] == 0, started
    kernel = store.load(tmp_path / "croco").params["decoder2"]["block_03"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(kernel, dpt["dec_blocks.3.mlp.fc1.weight"].T)

    def verify(recorded):
        return [f"--weights={tmp_path}/linear", f"--golden={tmp_path}/{recorded}.npz"]

    partial, changed = run_cases("verify_weights", [verify("torch"), verify("changed")])
    assert partial[0] == 0, partial
    assert "Not used: note." in partial[1]
    assert "pts3d_1" not in partial[1]
    assert changed[0] == 1
    verdicts = {line.split()[0]: line for line in changed[1].splitlines()}
    assert verdicts["pts3d_2"].endswith("ABOVE THE TOLERANCE")
    assert verdicts["pts3d_1"].endswith("ok")


def test_unusable_input_gives_one_sentence_and_leaves_nothing(golden_dir, golden_weights, tmp_path):
    state, config = official.network(golden_dir, golden_weights, "dust3r_linear")
    official.write_hub(tmp_path / "linear", state, config)
    whole = official.write_pth(tmp_path / "whole.pth", state, config).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.pth").write_bytes(b"<html>404")
    hostile = torch_writer.name("os", "system") + b"(" + torch_writer.text("touch owned") + b"tR"
    torch_writer.write_zip(tmp_path / "hostile.pth", torch_writer.Raw(hostile))
    torch_writer.write_zip(tmp_path / "vggt.pth", {"module.aggregator.x": np.ones(2, "f4")})
    wrong = dict(state)
    del wrong["enc_norm.bias"]
    wrong["enc_norm.extra"] = np.ones(2, "f4")
    wrong["dec_norm.bias"] = np.ones(3, "f4")
    official.write_pth(tmp_path / "wrong.pth", wrong, config)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "empty.npz", x=np.ones(3))
    np.savez(
        tmp_path / "bytes.npz", conf_1=np.ones((1, 16, 16)),
        images1=np.ones((1, 16, 16, 3), np.uint8), images2=np.ones((1, 16, 16, 3), np.uint8),
    )  # fmt: skip
    before = sorted(str(path) for path in tmp_path.rglob("*"))

    conversions = {
        ("cut.pth", "out"): "truncated or damaged",
        ("page.pth", "out"): "web page",
        ("hostile.pth", "out"): "os.system",
        ("vggt.pth", "out"): "VGGT",
        ("absent.pth", "out"): "no weights at",
        ("linear", "taken"): "exists",
        ("linear", "taken", "--overwrite"): "would remove it",
        ("linear", "out", "--format=safetensors"): "named *.safetensors",
        # All three kinds of mistakes in one message.
        ("wrong.pth", "out"): "enc_norm.bias",
    }
    recordings = {
        "absent": "no recording",
        "text": "no readable",
        "empty": "should hold images1",
        "bytes": "uint8 (1, 16, 16, 3)",
    }
    results = run_cases("convert_weights", [
        [f"--input={tmp_path}/{name}", f"--output={tmp_path}/{output}", *flags]
        for name, output, *flags in conversions
    ])  # fmt: skip
    results += run_cases("verify_weights", [
        [f"--weights={tmp_path}/linear", f"--golden={tmp_path}/{name}.npz"] for name in recordings
    ])  # fmt: skip
    cases = conversions | recordings
    for (case, sentence), (code, _, error) in zip(cases.items(), results, strict=True):
        assert code == 2, (case, error)
        assert sentence in error, (case, error)
        assert error.startswith("Error: "), case
        assert len(error.splitlines()) == 1, (case, error)
    error = results[len(conversions) - 1][2]
    for part in (
        "1 unknown names: enc_norm.extra",
        f"dec_norm.bias is (3,), expected ({config.dec_embed_dim},)",
    ):
        assert part in error
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert not (ROOT / "owned").exists()
