"""The main command: what it writes, how it resumes, and what it says about bad input."""

import json
import shutil

import cv2
import numpy as np
import pytest
from absl.testing import flagsaver

from align3r_jax import stages
from align3r_jax.config import ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.io import depth_files, scene_folder
from align3r_jax.io import video as video_lib
from align3r_jax.structs import Scene
from experiments import reconstruct, reconstruct_video

HEIGHT, WIDTH, FRAMES = 64, 96, 4


def _layers(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A near textured square passing before a far textured wall (sideways camera)."""
    rng = np.random.default_rng(3)
    wall, square = (
        cv2.GaussianBlur(rng.integers(0, 255, (height, 2 * width, 3)).astype(np.float32), (0, 0), s)
        for s in (2.0, 1.5)
    )
    wall, square = ((x - x.min()) / np.ptp(x) * 255 for x in (wall, square))
    images = []
    for k in range(frames):
        image = wall[:, k : k + width].copy()
        rows = slice(height // 4, 3 * height // 4)
        image[rows, width // 3 : 2 * width // 3] = square[rows, 3 * k : 3 * k + width // 3]
        images.append(image.astype(np.uint8))
    return np.stack(images)


def _write_frames(folder, images):
    folder.mkdir()
    for k, image in enumerate(images):
        cv2.imwrite(str(folder / f"{k:03d}.png"), image[..., ::-1])
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return _write_frames(tmp_path_factory.mktemp("clip") / "frames", _layers())


def _run(video, output, **settings):
    quick = {"size": WIDTH, "iterations": 20, "graph": "swin-2-noncyclic"} | settings
    with flagsaver.flagsaver(video=str(video), output=str(output), **quick):
        return reconstruct.main(["reconstruct"])


@pytest.fixture(scope="module")
def result(video, tmp_path_factory):
    output = tmp_path_factory.mktemp("result") / "scene"
    _run(video, output)
    return output


def test_everything_promised_is_written(result):
    for name in (
        "depth/frame_0003.npy", "depth/frame_0003.png", "conf/frame_0000.npy",
        "dynamic_mask/frame_0000.png", "rgb/frame_0000.png", "pred_traj.txt",
        "pred_intrinsics.txt", "pred_intrinsics_original.txt", "points.ply", "scene.glb",
        "depth.mp4", "summary.json", "report.html",
    ):  # fmt: skip
        assert (result / name).stat().st_size > 0, name
    assert not result.with_name("scene.partial").exists()
    scene = scene_folder.load_scene(result)
    assert isinstance(scene, Scene)
    assert scene.depth.shape == (FRAMES, HEIGHT, WIDTH)
    assert np.isfinite(scene.depth).all() and (scene.depth > 0).all()
    rotations = scene.world_from_cam[:, :3, :3]
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (FRAMES, 1, 1)), atol=1e-4
    )


def test_the_summary_says_what_ran(result):
    summary = json.loads((result / "summary.json").read_text())
    assert summary["predictor"] == "flow"
    assert summary["weights"] is None
    assert summary["flow"] == "dis"
    assert any("without weights of a pairwise" in sentence for sentence in summary["limits"])
    stages_run = [record["stage"] for record in summary["stages"]]
    assert stages_run[0] == "depth prior" and stages_run[-2:] == ["alignment", "scene"]
    assert all(record["peak_memory_mb"] > 0 for record in summary["stages"])
    assert summary["settings"]["alignment"]["iterations"] == 20
    assert np.isfinite(list(summary["losses"].values())).all()


def test_an_interrupted_run_resumes_at_the_stage_it_stopped(video, tmp_path, monkeypatch):
    output = tmp_path / "scene"
    compute = stages.Run.stage

    def stop_at_alignment(self, name, function, keep=True):
        if name == "alignment":
            raise KeyboardInterrupt
        return compute(self, name, function, keep)

    monkeypatch.setattr(stages.Run, "stage", stop_at_alignment)
    with pytest.raises(KeyboardInterrupt):
        _run(video, output)
    assert not output.exists(), "nothing half-written"
    monkeypatch.setattr(stages.Run, "stage", compute)
    _run(video, output, resume=True)
    records = json.loads((output / "summary.json").read_text())["stages"]
    resumed = {record["stage"]: record.get("resumed", False) for record in records}
    assert resumed["depth prior"] and resumed["pair prediction"] and not resumed["alignment"]


def test_a_folder_of_the_users_own_is_never_removed(video, tmp_path):
    foreign = tmp_path / "scene.partial"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="thesis.tex"):
        _run(video, tmp_path / "scene")
    assert (foreign / "thesis.tex").exists()


def test_changed_prior_files_are_not_resumed(video, tmp_path):
    prior = tmp_path / "prior"
    prior.mkdir()
    (prior / "000.npy").write_bytes(b"one")
    frames, _ = video_lib.read_frames(video, size=WIDTH)
    config = ReconstructConfig(prior=f"files:{prior}")
    before = reconstruct_video.fingerprint(frames, config, [None])
    assert reconstruct_video.fingerprint(frames, config, [None]) == before
    (prior / "000.npy").write_bytes(b"another")
    assert reconstruct_video.fingerprint(frames, config, [None]) != before


@pytest.mark.slow
def test_hierarchical_two_frames_and_user_prior(tmp_path):
    images = _layers(7)
    long = _write_frames(tmp_path / "long", images)
    rates = {"lr": 0.02, "lr_min": 0.005, "schedule": "cycle5"}
    _run(long, tmp_path / "a", mode="hierarchical", clip_size=3, iterations=10, **rates)
    scene = scene_folder.load_scene(tmp_path / "a")
    assert scene.depth.shape[0] == 7
    np.testing.assert_allclose(scene.trace["lr"][:4], [0.02, 0.0125, 0.02, 0.0125], rtol=1e-5)

    pair = _write_frames(tmp_path / "pair", images[:2])
    prior = tmp_path / "prior"
    prior.mkdir()
    for k in range(2):
        depth = np.full((HEIGHT, WIDTH), 4.0, np.float32)
        depth[HEIGHT // 4 : 3 * HEIGHT // 4, WIDTH // 3 : 2 * WIDTH // 3] = 1.5
        depth_files.write_depth(prior / f"{k:03d}.npy", depth)
    _run(pair, tmp_path / "b", prior=f"files:{prior}")
    scene = scene_folder.load_scene(tmp_path / "b")
    assert scene.depth.shape[0] == 2
    centre = scene.depth[0, HEIGHT // 2, WIDTH // 2]
    assert centre < 0.7 * np.median(scene.depth[0]), "the near square stays near"


@pytest.mark.slow
def test_a_network_fills_the_same_interface(video, tmp_path):
    output = tmp_path / "scene"
    _run(video, output, weights="align3r_small", max_frames=3, iterations=10)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["predictor"] == "align3r_small"
    assert len(summary["weights"]["checksum"]) == 64
    assert any("toy weights" in sentence for sentence in summary["limits"])
    assert np.isfinite(scene_folder.load_scene(output).depth).all()


def _expect(sentence, video, output, **settings):
    with pytest.raises(UserError, match=sentence):
        _run(video, output, **settings)
    assert not output.exists()


def test_bad_videos_get_a_sentence(video, tmp_path):
    output = tmp_path / "out"
    _expect("missing.mp4", tmp_path / "missing.mp4", output)
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    _expect("broken.mp4", tmp_path / "broken.mp4", output)
    (tmp_path / "empty").mkdir()
    _expect("empty", tmp_path / "empty", output)
    _expect("(?i)frame", video, output, max_frames=1)
    black = _write_frames(tmp_path / "black", np.zeros((3, HEIGHT, WIDTH, 3), np.uint8))
    _expect("(?i)black|constant", black, output)
    mixed = _write_frames(tmp_path / "mixed", _layers(2))
    cv2.imwrite(str(mixed / "002.png"), np.full((80, 80, 3), 90, np.uint8))
    _expect("002", mixed, output)
    _expect("(?i)start", video, output, start=3, end=2)


def test_bad_priors_weights_and_settings_get_a_sentence(video, tmp_path):
    output = tmp_path / "out"
    _expect("nowhere", video, output, prior="files:nowhere")
    _expect("(?i)unknown", video, output, prior="depth_oracle")
    nan = tmp_path / "nan"
    nan.mkdir()
    for k in range(FRAMES):
        depth_files.write_depth(nan / f"{k:03d}.npy", np.full((HEIGHT, WIDTH), np.nan, np.float32))
    _expect("(?i)depth", video, output, prior=f"files:{nan}")
    _expect("flow=none", video, output, flow="none")
    _expect("(?i)unknown", video, output, flow="horn")
    _expect("(?i)weights", video, output, predictor="network")
    _expect("There are no weights", video, output, weights=str(tmp_path / "nothing"))
    _expect("(?i)graph", video, output, graph="starfish")
    _expect("cycleK", video, output, schedule="step")
    _expect("--iterations has no meaning", video, output, solver="gauss_newton")
    _expect("--steps has no meaning", video, output, solver="adam", steps=3)


def test_an_existing_output_is_kept_unless_overwritten(result, video, tmp_path):
    copy = tmp_path / "scene"
    shutil.copytree(result, copy)
    before = (copy / "summary.json").read_bytes()
    with pytest.raises(UserError, match="overwrite"):
        _run(video, copy)
    assert (copy / "summary.json").read_bytes() == before


def test_a_memory_limit_is_read_and_held_to(video, tmp_path, result):
    output = tmp_path / "out"
    _expect("like 8GB", video, output, max_memory="lots")
    _expect("at least .*GB is needed", video, output, max_memory="10MB")
    plan = json.loads((result / "summary.json").read_text())["plan"]
    assert plan["mode"] == "flat" and plan["stages"]["alignment"] < plan["limit"]
