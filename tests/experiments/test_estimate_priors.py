"""The script that estimates priors, with networks in miniature, through the command line."""

import json

import numpy as np
import pytest

from align3r_jax.config import FlowConfig
from align3r_jax.io import flow_files, preprocess
from align3r_jax.priors import sources
from align3r_jax.structs import Frames, WorkingSize
from align3r_jax.weights import store
from tests.experiments.test_convert_weights import run_cases
from tests.experiments.test_prior_clips import pictures, write
from tests.weights import tiny_networks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two good clips and two bad ones; then bad settings: the folder, and what each run said.

    On two devices: the tests compare with networks that run on one.
    """
    root = tmp_path_factory.mktemp("clips")
    weights = {k: tiny_networks.write_pth(root / f"{k}.pth", k) for k in ("depth_anything", "raft")}
    write(root / "in" / "a", pictures(2))
    write(root / "in" / "b", pictures(2, seed=1))
    (root / "in" / "broken.mp4").write_bytes(b"no video")
    write(root / "in" / "mixed", [pictures(1)[0], pictures(1)[0][:40]])
    depth = ["--prior=auto", f"--prior_weights={weights['depth_anything']}"]
    flow = ["--flow=raft", f"--flow_weights={weights['raft']}", "--flow_iterations=2",
            "--flow_size=64"]  # fmt: skip

    def command(*flags, clips="*"):
        return [f"--input={root}/in/{clips}", f"--output={root}/out", *flags]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", "2")
        results = run_cases("estimate_priors", [
            command(*depth, *flow),
            command(*depth, *flow, clips="[ab]"),
            command(),
            command(*depth, clips="nothing"),
            command(*flow, "--flow_offsets=0"),
            command("--prior=auto", f"--prior_weights={weights['raft']}"),
            command("--prior=plane"),
        ])  # fmt: skip
    return root, weights, results


def test_good_clips_are_computed_and_bad_ones_named(run):
    root, weights, ((code, _, said), (again, printed, _), *_) = run
    assert code == 1 and "broken.mp4: depth failed" in said + run[2][0][1]
    assert again == 0 and "2 clips, 0 files computed, 0 failures" in printed
    manifest = json.loads((root / "out" / "manifest.json").read_text())
    assert set(manifest["clips"]) == {"a", "b"}
    assert manifest["settings"]["flow_iterations"] == 2
    assert (
        manifest["clips"]["a"]["depth"]["frames"] == manifest["clips"]["a"]["flow"]["frames"] == 2
    )
    # Pictures of different sizes have depth, but no flow between them.
    assert len(list((root / "out" / "mixed").glob("*.npz"))) == 2
    assert "differ in size" in said + run[2][0][1]

    network = store.load(weights["depth_anything"], kind=None)
    expected = sources.depth_model(network)(np.stack(pictures(2))).depth
    for k in range(2):
        with np.load(root / "out" / "a" / f"{k:03d}_pred_depth_depthanything.npz") as stored:
            np.testing.assert_allclose(stored["depth"], np.maximum(expected[k], 0), atol=1e-5)
    raft = store.load(weights["raft"], kind=None)
    size = preprocess.plan_working_size((48, 72), 64).resized
    whole = WorkingSize((48, 72), size, (0, 0), size)
    images = np.stack([preprocess.to_working_size(p, whole) for p in pictures(2, seed=1)])
    frames = Frames(images, np.arange(2.0), whole, ("000", "001"))
    source = sources.flow_source(FlowConfig(iterations=2), frames, raft, lambda said: None)
    expected = source.directed(frames, np.array([[1, 0]])).flow[0]
    field = flow_files.read_flow(root / "out" / "b" / "flow" / "001_000.npz")
    assert field.shape == (43, 64, 2) and np.ptp(field) > 0
    np.testing.assert_allclose(field, expected, atol=1e-3)


def test_bad_settings_get_a_sentence(run):
    sentences = (
        "Nothing to compute", "matches no video", "flow_offsets=0", "belongs to --flow=raft",
        "nothing to compute here",
    )  # fmt: skip
    for (code, _, error), sentence in zip(run[2][2:], sentences, strict=True):
        assert code == 2 and sentence in error, error
