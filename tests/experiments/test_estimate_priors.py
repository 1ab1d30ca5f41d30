"""Priors and flow of folders of clips: files, names, resuming, failures, and who reads them."""

import json
import shutil

import cv2
import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from align3r_jax.errors import UserError
from align3r_jax.io import depth_files, flow_files, prior_files
from align3r_jax.io import video as video_lib
from align3r_jax.priors import sources
from align3r_jax.weights import store
from experiments import estimate_priors, prior_clips
from tests.weights import tiny_networks

HEIGHT, WIDTH, FRAMES = 48, 72, 3


def _pictures(count=FRAMES, seed=0):
    rng = np.random.default_rng(seed)
    wide = rng.integers(0, 255, (HEIGHT, WIDTH + 2 * count, 3)).astype(np.float32)
    wide = cv2.GaussianBlur(wide, (0, 0), 2.0)
    wide = (wide - wide.min()) / np.ptp(wide) * 255
    return [wide[:, 2 * k : 2 * k + WIDTH].astype(np.uint8) for k in range(count)]


def _write(folder, pictures, suffix=".png"):
    folder.mkdir(parents=True)
    for k, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{k:03d}{suffix}")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {k: tiny_networks.write_pth(folder / f"{k}.pth", k) for k in ("depth_anything", "raft")}


@pytest.fixture(scope="module")
def networks(tmp_path_factory, weights):
    """Two clips with priors and flow: a folder of pictures and one beside it."""
    root = tmp_path_factory.mktemp("clips")
    _write(root / "in" / "a", _pictures())
    _write(root / "in" / "b", _pictures(2, seed=1))
    code = _run(root, weights, flow_offsets=["1", "2"])
    return root, code


def _run(root, weights, **settings):
    given = {
        "input": [str(root / "in" / "*")], "output": str(root / "out"), "prior": "auto",
        "prior_weights": str(weights["depth_anything"]), "flow": "raft",
        "flow_weights": str(weights["raft"]), "flow_iterations": 2, "flow_size": 64,
    } | settings  # fmt: skip
    with flagsaver.flagsaver(**given):
        return estimate_priors.main(["estimate_priors"])


def test_files_are_those_of_the_networks(networks, weights):
    root, code = networks
    assert code == 0
    manifest = json.loads((root / "out" / "manifest.json").read_text())
    assert manifest["clips"]["a"]["depth"] | {"seconds": 0} == {
        "frames": 3, "computed": 3, "seconds": 0,
    }  # fmt: skip
    assert manifest["clips"]["a"]["flow"]["computed"] == 6  # two offsets of three frames, both ways
    loaded = store.load(weights["depth_anything"], kind=None)
    for name, count in (("a", 3), ("b", 2)):
        images = np.stack(_pictures(count, seed=int(name == "b")))
        expected = sources.depth_model(loaded)(images).depth
        for k in range(count):
            path = root / "out" / name / f"{k:03d}_pred_depth_depthanything.npz"
            with np.load(path) as stored:
                assert stored.files == ["depth"]  # nothing knows the focal
                assert stored["depth"].dtype == np.float32
                np.testing.assert_allclose(stored["depth"], np.maximum(expected[k], 0), atol=1e-5)
    folder = depth_files.read_depth_folder(root / "out" / "a", ["000", "001", "002"])
    assert folder.inverse and not folder.metric and folder.depth.shape == (3, HEIGHT, WIDTH)


def test_flow_is_read_back_at_any_working_size(networks):
    root, _ = networks
    there = flow_files.read_flow(root / "out" / "a" / "flow" / "000_001.npz")
    assert there.shape == (43, 64, 2)  # the whole frame at a long side of 64
    frames, _ = video_lib.read_frames(root / "in" / "a", size=64)
    from align3r_jax.config import FlowConfig
    from align3r_jax.priors import optical_flow

    source = optical_flow.make_source(FlowConfig(source=f"files:{root}/out/a/flow"), frames)
    flow = source.directed(frames, np.array([[0, 2], [1, 0]]))
    assert flow.flow.shape == (2, *frames.images.shape[1:3], 2)
    kept = flow_files.read_flow(root / "out" / "a" / "flow" / "000_002.npz")
    top = frames.size.crop[0]
    np.testing.assert_allclose(flow.flow[0], kept[top : top + 32], atol=1e-5)


def test_a_second_run_computes_nothing_and_changes_are_noticed(networks, weights, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(networks[0] / "in", root / "in")

    def computed(**settings):
        assert _run(root, weights, flow="none", flow_weights=None, **settings) == 0
        clips = json.loads((root / "out" / "manifest.json").read_text())["clips"]
        return [clips[name]["depth"]["computed"] for name in ("a", "b")]

    assert computed() == [3, 2]
    assert computed() == [0, 0]
    files = sorted((root / "out").rglob("*.npz"))
    (root / "out" / "a" / files[1].name).unlink()
    assert computed() == [1, 0]
    Image.fromarray(_pictures(2, seed=5)[0]).save(root / "in" / "b" / "000.png")
    assert computed() == [0, 1]
    (root / "out" / "records" / "a.json").write_text("{damaged")
    assert computed() == [3, 0]
    assert computed(focal=100.0) == [3, 2]
    with np.load(files[0]) as stored:
        assert stored["focallength_px"].shape == () and stored["focallength_px"] == 100.0
        assert stored["focallength_px"].dtype == np.float32
    assert not [path for path in (root / "out").rglob("*") if path.name.startswith(".")]


def test_an_interrupted_run_goes_on_where_it_stopped(weights, tmp_path, monkeypatch):
    _write(tmp_path / "in" / "a", _pictures(3))
    monkeypatch.setattr(prior_clips, "FRAMES_AT_ONCE", 2)
    write, written = prior_files.write_prior, []

    def stop_at_the_third(path, depth, focal):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, depth, focal)

    monkeypatch.setattr(prior_files, "write_prior", stop_at_the_third)
    settings = {"flow": "none", "flow_weights": None}
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, weights, **settings)
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(prior_files, "write_prior", write)
    assert _run(tmp_path, weights, **settings) == 0
    entry = json.loads((tmp_path / "out" / "manifest.json").read_text())["clips"]["a"]
    assert entry["depth"]["frames"] == 3 and entry["depth"]["computed"] == 1


def test_a_failing_clip_is_named_and_the_others_go_on(weights, tmp_path, capsys):
    _write(tmp_path / "in" / "good", _pictures(2))
    (tmp_path / "in" / "broken.mp4").write_bytes(b"no video")
    _write(tmp_path / "in" / "mixed", [_pictures(1)[0], _pictures(1)[0][:40]])
    assert _run(tmp_path, weights) == 1
    said = capsys.readouterr()
    assert "broken.mp4: depth failed" in said.out + said.err
    clips = json.loads((tmp_path / "out" / "manifest.json").read_text())["clips"]
    assert clips["good"]["depth"]["computed"] == clips["good"]["flow"]["computed"] == 2
    assert "error" in clips["broken"]["depth"]
    # Pictures of different sizes have depth, but no flow between them.
    assert (
        clips["mixed"]["depth"]["computed"] == 2
        and "differ in size" in (clips["mixed"]["flow"]["error"])
    )


def test_layouts(weights, tmp_path):
    image = tmp_path / "training" / "clean" / "alley" / "frame_0001.png"
    cases = {
        "beside": image.with_name("frame_0001_pred_depth_depthpro.npz"),
        "sibling": tmp_path / "training/clean/alley_depth_prediction_depthpro/frame_0001.npz",
        "scene": tmp_path / "training/depth_prediction_depthpro/alley/frame_0001.npz",
        "davis": tmp_path / "depth_prediction_depthpro/1080p/alley/frame_0001.npz",
    }
    for layout, path in cases.items():
        assert prior_files.prior_path(image, "depthpro", layout) == path
    with pytest.raises(UserError, match="unknown"):
        prior_files.prior_path(image, "depthpro", "elsewhere")

    # A processed training set: the focal comes from the metadata, the prior goes beside the image.
    clip = tmp_path / "in" / "scene"
    clip.mkdir(parents=True)
    for k, picture in enumerate(_pictures(2)):
        Image.fromarray(picture).save(clip / f"{k}_rgb.jpg")
        np.savez(clip / f"{k}_metadata.npz", camera_intrinsics=np.diag([50.0 + k, 50, 1]))
    assert _run(tmp_path, weights, flow="none", flow_weights=None, layout="beside") == 0
    for k in range(2):
        with np.load(clip / f"{k}_rgb_pred_depth_depthanything.npz") as stored:
            assert stored["focallength_px"] == np.float32(50 + k)
            assert stored["depth"].shape == (HEIGHT, WIDTH)


def test_bad_settings_get_a_sentence(weights, tmp_path):
    _write(tmp_path / "in" / "a", _pictures(2))
    for settings, sentence in (
        ({"prior": "none", "prior_weights": None, "flow": "none"}, "Nothing to compute"),
        ({"input": [str(tmp_path / "nowhere")]}, "matches no video"),
        ({"flow_offsets": ["0"]}, "flow_offsets=0"),
        ({"prior_weights": str(weights["raft"])}, "--flow=raft"),
        ({"prior": "plane", "prior_weights": None}, "nothing to compute here"),
    ):
        with pytest.raises(UserError, match=sentence):
            _run(tmp_path, weights, **settings)
