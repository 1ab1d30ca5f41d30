"""Depth and flow networks through the converter and the verifier, as users type them."""

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from align3r_jax.networks.raft import build
from align3r_jax.weights import store
from tests.experiments.test_convert_weights import run_cases
from tests.weights import tiny_networks


def _convert(root, name, output, *flags):
    return [f"--input={root}/{name}", f"--output={root}/{output}", *flags]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The folder with official files, converted ones, and what the converter said."""
    root = tmp_path_factory.mktemp("weights")
    for kind in ("depth_anything", "raft", "sea_raft"):
        tiny_networks.write_pth(root / f"{kind}.pth", kind)
    tiny_networks.write_safetensors(root / "pro.safetensors", "depth_pro")
    metric = "depth_anything_v2_metric_hypersim_vits.pth"
    tiny_networks.write_pth(root / metric, "depth_anything")
    results = run_cases("convert_weights", [
        _convert(root, "depth_anything.pth", "da"),
        _convert(root, "raft.pth", "raft"),
        _convert(root, "sea_raft.pth", "sea_raft", "--dtype=bfloat16"),
        _convert(root, "raft", "again.safetensors", "--format=safetensors"),
        _convert(root, metric, "metric"),
        _convert(root, "raft.pth", "x", "--preset=sea_raft"),
        _convert(root, "depth_anything.pth", "x", "--preset=depth_anything_v2_small"),
    ])  # fmt: skip
    return root, results


def test_every_kind_is_converted_and_back(converted):
    root, results = converted
    for code, _, error in results[:5]:
        assert code == 0, error
    said = [out for _, out, _ in results]
    assert "a depth network, Depth Anything V2" in said[0]
    assert f"--prior_weights={root}/da" in said[0] and "kind=None" in said[0]
    assert f"--flow=raft --flow_weights={root}/raft" in said[1]
    assert "bfloat16" in said[2]
    for folder, kind in (("da", "depth_anything"), ("raft", "raft"), ("sea_raft", "sea_raft")):
        assert store.load(root / folder, kind=None).kind == kind
    assert store.load(root / "metric", kind=None).config.max_depth == 20.0
    back = safetensors_numpy.load_file(root / "again.safetensors")
    for name, array in tiny_networks.state("raft").items():
        np.testing.assert_array_equal(back[name], array)


def test_what_is_not_the_preset_is_refused(converted):
    root, results = converted
    for (code, _, error), part in zip(results[5:], ("SEA-RAFT", "no published size"), strict=True):
        assert code == 2 and part in error, error
    assert not (root / "x").exists()


def test_verification_against_recordings_and_alone(converted):
    root, _ = converted
    rng = np.random.default_rng(0)
    loaded = store.load(root / "raft.pth", kind=None)
    images = rng.uniform(0, 255, (2, 1, 3, 64, 72)).astype(np.float32)
    network = build.make(loaded.config, precision="highest")
    flow = jax.jit(lambda p, a, b: network.apply({"params": p}, a, b, 2).flow)(
        loaded.params, *(image.transpose(0, 2, 3, 1) for image in images)
    )
    recording = {"images1": images[0], "images2": images[1], "iterations": np.array(2)}
    torch_flow = np.asarray(flow).transpose(0, 3, 1, 2)
    np.savez(root / "good.npz", **recording, flow=torch_flow)
    np.savez(root / "bad.npz", **recording, flow=torch_flow * 1.001)
    np.savez(root / "pairs.npz", images=images[0], depth=torch_flow)
    state = dict(tiny_networks.state("depth_anything"))
    dead = {name: np.zeros_like(value) for name, value in state.items()}
    safetensors_numpy.save_file(dead, root / "dead.safetensors")

    def verify(weights, *flags):
        return [f"--weights={root}/{weights}", *flags]

    good, bad, lacking, alone, dead = run_cases("verify_weights", [
        verify("raft", f"--golden={root}/good.npz"),
        verify("raft", f"--golden={root}/bad.npz"),
        verify("raft", f"--golden={root}/pairs.npz"),
        verify("da"),
        verify("dead.safetensors"),
    ])  # fmt: skip
    assert good[0] == 0 and "All within the tolerance of 0.0001" in good[1], good
    assert bad[0] == 1 and "ABOVE THE TOLERANCE" in bad[1]
    assert lacking[0] == 2 and "should hold images1, images2" in lacking[2]
    assert alone[0] == 0 and "The numbers are sound" in alone[1], alone
    assert dead[0] == 1 and "CONSTANT" in dead[1], dead
