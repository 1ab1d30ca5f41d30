"""The main command with depth and flow networks in miniature: chosen, told, resumed, refused."""

import json
import os

import cv2
import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

import align3r_jax
from align3r_jax.config import AlignmentConfig, FlowConfig, PairConfig, ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.io import scene_folder
from align3r_jax.priors import mono_depth, optical_flow, sources
from align3r_jax.priors.depth_pro import DepthProModel
from align3r_jax.structs import DepthPrior
from align3r_jax.weights import published, store
from experiments import reconstruct, reconstruct_video
from tests.experiments.test_reconstruct import _layers, _write_frames
from tests.weights import tiny_networks

FRAMES, SIZE = 3, 96


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return _write_frames(tmp_path_factory.mktemp("clip") / "frames", _layers(FRAMES))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {k: tiny_networks.write_pth(folder / f"{k}.pth", k) for k in tiny_networks.CONFIGS}


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Nothing of the user's is read: no cached priors, no weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv(published.SEARCH_VARIABLE, raising=False)


def _run(video, output, **settings):
    quick = {"size": SIZE, "iterations": 5, "graph": "swin-1-noncyclic"} | settings
    with flagsaver.flagsaver(video=str(video), output=str(output), **quick):
        reconstruct.main(["reconstruct"])
    return json.loads((output / "summary.json").read_text())


def test_depth_and_flow_networks_end_to_end(video, weights, tmp_path):
    settings = {
        "prior": "auto", "prior_weights": str(weights["depth_anything"]), "flow": "raft",
        "flow_weights": str(weights["raft"]), "flow_iterations": 2,
        "weights": "align3r_small",
    }  # fmt: skip
    summary = _run(video, tmp_path / "a", **settings)
    assert (summary["prior"], summary["flow"]) == ("depth_anything", "raft")
    for key, kind in (("prior_weights", "depth_anything"), ("flow_weights", "raft")):
        loaded = store.load(weights[kind], kind=None)
        assert summary[key] == {"name": kind, "checksum": loaded.checksum}
    assert any("Depth prior: depth_anything" in said for said in summary["limits"])
    assert any("raft with 2 iterations" in said for said in summary["limits"])
    scene = scene_folder.load_scene(tmp_path / "a")
    assert np.isfinite(scene.depth).all() and scene.depth.shape[0] == FRAMES


def test_the_library_takes_networks_and_models(video, weights):
    images = np.stack([cv2.imread(str(p))[..., ::-1] for p in sorted(video.iterdir())])
    config = ReconstructConfig(
        pairs=PairConfig(graph="swin-1-noncyclic"),
        flow=FlowConfig(source="none"),
        alignment=AlignmentConfig(iterations=5),
    )
    seen = []

    class Slanted:
        name = "slanted"

        def __call__(self, images):
            seen.append(images.shape)
            ramp = np.linspace(1, 2, images.shape[1], dtype=np.float32)[:, None]
            return np.tile(ramp, (len(images), 1, images.shape[2])), None, False, True

    flow = optical_flow.DisFlow(config.flow)
    scene = align3r_jax.reconstruct(images, prior_model=Slanted(), flow_source=flow, config=config)
    assert seen == [images.shape] and scene.depth.shape == images.shape[:3]
    raft = store.load(weights["raft"], kind=None)
    with pytest.raises(UserError, match="depth prior needs"):
        align3r_jax.reconstruct(images, prior_model=raft, config=config)
    with pytest.raises(UserError, match="--flow=raft --flow_weights"):
        align3r_jax.reconstruct(images, model=raft, config=config)
    depth_pro = store.load(weights["depth_pro"], kind=None, arguments={"latent_blocks": (0, 1)})
    with pytest.raises(UserError, match="optical flow needs"):
        align3r_jax.reconstruct(images, prior_model=Slanted(), flow_source=depth_pro, config=config)


def test_a_network_prior_holds_weights_only_while_it_works(weights):
    prior = sources.NetworkPrior("auto", weights["depth_anything"])
    assert prior.checksum == store.load(weights["depth_anything"], kind=None).checksum
    assert prior.name == "depth_anything"
    assert prior._loaded is not None  # read for the checksum, kept for the work to come
    maps = prior(np.zeros((1, 32, 48, 3), np.uint8))
    assert maps.inverse and np.asarray(maps.depth).shape == (1, 32, 48)
    assert prior._loaded is None
    other = sources.NetworkPrior("auto", weights["depth_anything"], focal=50.0)
    assert other.checksum != prior.checksum


def test_inverse_depth_reaches_the_network_as_it_is(video, weights):
    frames, originals = align3r_jax.read_frames(str(video), size=SIZE)
    loaded = store.load(weights["depth_anything"], kind=None)
    prior = mono_depth.estimate_depth(
        frames, originals, "x", models={"x": sources.depth_model(loaded)}
    )
    assert isinstance(prior, DepthPrior) and prior.inverse and not prior.metric
    np.testing.assert_array_equal(prior.native, sources.depth_model(loaded)(originals).depth)
    pro = store.load(weights["depth_pro"], kind=None, arguments={"latent_blocks": (0, 1)})
    model = sources.depth_model(pro, focal=120.0, max_memory=2**30)
    assert isinstance(model, DepthProModel) and model._focal == [120.0]
    assert model.checksum != sources.depth_model(pro).checksum


def _expect(sentence, video, output, **settings):
    with pytest.raises(UserError, match=sentence):
        _run(video, output, **settings)
    assert not output.exists()


def test_what_cannot_work_gets_a_sentence(video, weights, tmp_path, monkeypatch):
    output = tmp_path / "out"
    w = {kind: str(path) for kind, path in weights.items()}
    _expect("Get depth_pro.pt of", video, output, prior="depth_pro")
    _expect("raft-things.pth", video, output, flow="raft")
    _expect("known are .*depth_pro.*small", video, output, prior="depth_oracle")
    _expect("known are dis, none, raft", video, output, flow="horn")
    _expect("belongs to --flow=raft --flow_weights", video, output, weights=w["raft"])
    _expect("Depth Anything V2 or .*Depth Pro", video, output, prior_weights=w["raft"])
    _expect("belongs to --weights", video, output, prior_weights="align3r_small")
    _expect("belongs to --flow=sea_raft", video, output, flow="raft", flow_weights=w["sea_raft"])
    _expect("uses no such weights", video, output, prior="plane", prior_weights=w["depth_pro"])
    _expect("uses no weights", video, output, flow="dis", flow_weights=w["raft"])
    small = {"prior": "depth_anything_v2_small", "prior_weights": w["depth_anything"]}
    _expect("of no published size, but --prior=depth_anything_v2_small", video, output, **small)
    folder = tmp_path / "searched"
    folder.mkdir()
    os.link(weights["depth_anything"], folder / "depth_anything_v2_small.pth")
    monkeypatch.setenv(published.SEARCH_VARIABLE, str(folder))
    _expect("but --prior=depth_anything_v2_small", video, output, prior="depth_anything_v2_small")


def test_the_focal_in_pictures_is_told_to_the_network(video, weights, tmp_path):
    assert reconstruct_video.focal_of_pictures(str(video)) is None
    assert reconstruct_video.focal_of_pictures("film.mp4") is None
    shot = tmp_path / "shot"
    shot.mkdir()
    exif = Image.Exif()
    exif[0xA405] = 28
    for k in range(2):
        Image.new("RGB", (96, 64), (k, 9, 200)).save(shot / f"{k}.jpg", exif=exif)
    expected = 28 * np.hypot(96, 64) / np.hypot(36, 24)
    for source in (shot, shot / "*.jpg"):
        np.testing.assert_allclose(reconstruct_video.focal_of_pictures(str(source)), expected)


def test_weights_are_part_of_what_a_resumed_run_depends_on(video, weights):
    frames, _ = align3r_jax.read_frames(str(video), size=SIZE)
    config = ReconstructConfig()
    loaded = [store.load(weights[kind], kind=None) for kind in ("raft", "sea_raft")]
    prints = {
        reconstruct_video.fingerprint(frames, config, networks)
        for networks in ([None, None, None], [None, None, loaded[0]], [None, None, loaded[1]],
                         [None, loaded[0], None])
    }  # fmt: skip
    assert len(prints) == 4
