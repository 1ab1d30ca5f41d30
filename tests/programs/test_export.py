"""Programs compiled ahead of time: they load without this package, and give what it gives."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import align3r_jax
from align3r_jax import pairing
from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import finish
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.predictors.network import NetworkPredictor
from align3r_jax.priors import prior_map
from align3r_jax.programs import export, run_programs
from align3r_jax.structs import (
    AlignmentPriors,
    DepthPrior,
    Frames,
    OpticalFlow,
    PairPredictions,
    WorkingSize,
)
from align3r_jax.weights.store import LoadedNetwork
from tests.networks import micro

H, W, COUNT = 32, 48, 3
RAY = dataclasses.replace(micro.ALIGN3R, dec_depth=4, prior_encoding="ray", output="anchored")
ADAM = AlignmentConfig(iterations=6, clean=False)
GAUSS_NEWTON = AlignmentConfig(solver="gauss_newton", gauss_newton_steps=4, clean=False)


def settings(**changes):
    given = {"batch": 2, "frames": 0, "graph": "swinstride-3-noncyclic", "alignment": ADAM}
    return export.Settings(H, W, precision="highest", **(given | changes))


def frames():
    images = np.random.default_rng(0).integers(0, 256, (COUNT, H, W, 3), np.uint8)
    size = WorkingSize((H, W), (H, W), (0, 0), (H, W))
    names = tuple(f"{k:05d}" for k in range(COUNT))
    return Frames(images, np.arange(COUNT) / 24, size, names)


def clip(graph, seed=0):
    """Point maps of a curved wall seen from a moving camera, each pair in a scale of its own."""
    rng = np.random.default_rng(seed)
    focal = 0.9 * W
    x, y = np.meshgrid(np.arange(W) - W / 2, np.arange(H) - H / 2)
    shifts = 0.2 * rng.normal(size=(COUNT, 3))
    depth = 3 + 0.5 * np.sin(0.2 * x + 0.1 * y) + 0.2 * rng.uniform(size=(COUNT, H, W))
    points = np.stack([x * depth / focal, y * depth / focal, depth], -1)
    scale = rng.uniform(0.8, 1.2, size=(graph.num_pairs, 1, 1, 1))
    i, j = graph.pairs.T
    moved = points[j] + (shifts[j] - shifts[i])[:, None, None]
    confidence = rng.uniform(3, 9, size=(2, graph.num_pairs, H, W))
    maps = scale * points[i], scale * moved, *confidence
    return PairPredictions(*(values.astype(np.float32) for values in maps))


def expected_scene(predictions, graph, config, flow):
    priors = AlignmentPriors(
        flow=flow,
        frame_valid=np.ones(graph.num_frames, bool),
        pair_valid=np.ones(graph.num_pairs, bool),
    )
    variables, trace = align3r_jax.align(predictions, graph, priors, config)
    result = align_lib.result_of(predictions, graph, variables, trace)
    return finish.to_scene(result, frames(), config), trace


def run_alone(folder, tmp_path, inputs):
    """What the programs give in a process that can import neither this package nor flax."""
    given, found = tmp_path / "given.npz", tmp_path / "found.npz"
    np.savez(given, **inputs)
    script = Path(__file__).with_name("alone.py")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(
        int(jax.config.read("jax_disable_most_optimizations"))
    )
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(given), str(found)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(np.load(found))


@pytest.fixture(scope="module")
def network():
    return LoadedNetwork(RAY, micro.parameters(RAY), "micro", "0", {})


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("programs") / "deployed"
    export.export_programs(path, network, settings())
    return path


def test_files_run_without_the_package_and_equal_it(folder, network, tmp_path):
    given = frames()
    graph = pairing.make_pairs(COUNT, "swinstride-3-noncyclic")
    depth = np.random.default_rng(1).uniform(1, 4, (COUNT, H, W)).astype(np.float32)
    depth[2] = np.nan
    prior = DepthPrior(depth, depth, None, "test")
    predictor = NetworkPredictor(network, pair_batch=2, precision="highest")
    features = predictor.prepare(given, prior)
    expected = predictor.predict(features, graph)
    has_prior = np.array([True, True, False])
    maps = prior_map.camera_points(depth, None)

    inputs = {"images": given.images, "prior_maps": maps, "has_prior": has_prior}
    found = run_alone(folder, tmp_path, inputs | {"pairs": graph.pairs})
    for name in ("tokens", "decoder_tokens", "injections", "anchor", "log_median"):
        np.testing.assert_allclose(
            found[f"features_{name}"], getattr(features, name), rtol=1e-5, atol=1e-5
        )
    for name, values in vars(expected).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
    alone = predictor.prepare(given, None)
    np.testing.assert_allclose(found["without"], alone.decoder_tokens, rtol=1e-5, atol=1e-5)


def test_manifest_says_what_the_files_are(folder, network):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["jax"] == jax.__version__
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert manifest["network"]["checksum"] == network.checksum
    _, inputs = manifest["programs"]["encode"]["inputs"]
    assert inputs["images"] == f"uint8[b, {H}, {W}, 3]"
    assert manifest["programs"]["decode"]["outputs"]["pointmap2"] == f"float32[b, {H}, {W}, 3]"
    assert (folder / "run_programs.py").read_text() == Path(run_programs.__file__).read_text()


def test_what_cannot_be_run_is_said_in_a_sentence(folder, tmp_path):
    programs = run_programs.load(folder)
    with pytest.raises(run_programs.ProgramError, match=rf"\(T, {H}, {W}, 3\)"):
        programs.encode(np.zeros((2, H, W + 16, 3), np.uint8))
    with pytest.raises(run_programs.ProgramError, match="no program `align`.*--frames"):
        programs.pairs(3)
    with pytest.raises(run_programs.ProgramError, match="manifest.json"):
        run_programs.load(tmp_path)

    def changed(name, **values):
        copy = tmp_path / name
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(manifest | values))
        return copy

    with pytest.raises(run_programs.ProgramError, match="exported for tpu.*--platforms"):
        run_programs.load(changed("other", platforms=["tpu"]))
    damaged = changed("damaged")
    content = bytearray((damaged / "encode.jaxexport").read_bytes())
    content[100] ^= 1
    (damaged / "encode.jaxexport").write_bytes(content)
    with pytest.raises(run_programs.ProgramError, match="checksum"):
        run_programs.load(damaged)
    short = changed("short")
    (short / "parameters.safetensors").write_bytes(b"")
    with pytest.raises(run_programs.ProgramError, match="bytes long"):
        run_programs.load(short)


def test_what_cannot_be_exported_is_said_before_any_work(folder, network):
    with pytest.raises(UserError, match="overwrite"):
        export.export_programs(folder, network, settings())
    with pytest.raises(UserError, match="Nothing to export"):
        export.export_programs(folder / "new", None, settings(frames=0))
    with pytest.raises(UserError, match="multiples of 16"):
        export.Settings(30, 48)
    with pytest.raises(UserError, match="expected some of cpu"):
        settings(platforms=("gpu",))


def assert_same_scene(found, points, graph, config, flow, tolerance):
    scene, trace = expected_scene(points, graph, config, flow)
    # Rounding decides where the steps of pixels go that hardly have a gradient.
    np.testing.assert_allclose(found["scene_depth"], scene.depth, rtol=10 * tolerance)
    for name in ("world_from_cam", "intrinsics", "confidence"):
        np.testing.assert_allclose(
            found[f"scene_{name}"], getattr(scene, name), rtol=tolerance, atol=tolerance,
            err_msg=name,
        )  # fmt: skip
    np.testing.assert_array_equal(found["scene_dynamic_mask"], scene.dynamic_mask)
    np.testing.assert_allclose(
        found["scene_pair_losses"], trace["pair_losses"], rtol=tolerance, atol=tolerance
    )
    np.testing.assert_allclose(found["scene_loss"], trace["total"], rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_alignment_equals_the_function(tmp_path):
    graph = pairing.make_pairs(COUNT, "swinstride-3-noncyclic")
    points = clip(graph)
    manifest = export.export_programs(tmp_path / "deployed", None, settings(frames=COUNT))
    assert manifest["align"]["pairs"] == graph.pairs.tolist()
    programs = run_programs.load(tmp_path / "deployed")
    np.testing.assert_array_equal(programs.pairs(COUNT), graph.pairs)
    with pytest.raises(run_programs.ProgramError, match="2 to 3"):
        programs.pairs(COUNT + 1)
    with pytest.raises(run_programs.ProgramError, match="without optical flow"):
        programs.flow_pairs(COUNT)
    with pytest.raises(run_programs.ProgramError, match="no program `encode`.*--weights"):
        programs.encode(frames().images)
    scene = programs.align(vars(points), COUNT)
    found = {f"scene_{name}": value for name, value in scene.items()}
    assert_same_scene(found, points, graph, ADAM, None, tolerance=1e-5)


@pytest.mark.slow
def test_second_order_alignment_of_a_shorter_clip_with_flow_equals_the_function(tmp_path):
    graph = pairing.make_pairs(COUNT, "swinstride-3-noncyclic")
    points = clip(graph)
    listed = pairing.directed_pairs(graph)
    vectors = np.random.default_rng(3).normal(size=(len(listed), H, W, 2)).astype(np.float32)
    flow = OpticalFlow(listed, vectors, np.ones((len(listed), H, W), np.float32))
    export.export_programs(
        tmp_path / "deployed", None, settings(frames=5, alignment=GAUSS_NEWTON, flow=True)
    )
    programs = run_programs.load(tmp_path / "deployed")
    np.testing.assert_array_equal(programs.flow_pairs(COUNT), listed)
    scene = programs.align(vars(points), COUNT, vectors)
    found = {f"scene_{name}": value for name, value in scene.items()}
    assert_same_scene(found, points, graph, GAUSS_NEWTON, flow, tolerance=1e-3)


@pytest.mark.slow
def test_the_code_of_the_page_runs(network, tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "performance.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    export.export_programs("deployed", network, settings(frames=COUNT))
    scope = {"frames": frames().images}
    exec(compile(code, str(page), "exec"), scope)
    assert scope["scene"]["depth"].shape == (COUNT, H, W)
    np.testing.assert_allclose(scope["scene"]["world_from_cam"][0], np.eye(4), atol=1e-5)
