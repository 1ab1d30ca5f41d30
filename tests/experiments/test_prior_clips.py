"""Clips worked through frame by frame: files, keys, resuming, layouts; no network involved."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from align3r_jax.config import FlowConfig
from align3r_jax.errors import UserError
from align3r_jax.io import depth_files, flow_files, prior_files
from align3r_jax.io import video as video_lib
from align3r_jax.priors import optical_flow
from experiments import prior_clips

HEIGHT, WIDTH, FRAMES = 48, 72, 3
ALL = {"stride": 1, "fps": None, "max_frames": None}


def pictures(count=FRAMES, seed=0):
    """A random texture that moves two pixels a frame."""
    rng = np.random.default_rng(seed)
    wide = rng.integers(0, 255, (HEIGHT, WIDTH + 2 * count, 3)).astype(np.float32)
    wide = cv2.GaussianBlur(wide, (0, 0), 2.0)
    wide = (wide - wide.min()) / np.ptp(wide) * 255
    return [wide[:, 2 * k : 2 * k + WIDTH].astype(np.uint8) for k in range(count)]


def write(folder, shown, suffix=".png"):
    folder.mkdir(parents=True)
    for k, picture in enumerate(shown):
        Image.fromarray(picture).save(folder / f"{k:03d}{suffix}")
    return folder


def depth_of(images):
    return np.asarray(images)[..., 0].astype(np.float32) - 10


class Network:
    """Depth is the red channel less 10; counts what it sees, and the focals it is told."""

    def __init__(self, estimates=None):
        self.seen, self.focals, self.estimates = [], [], estimates

    def make(self, focal):
        self.focals.append(None if focal is None else focal.tolist())
        return self

    def __call__(self, images):
        self.seen.append(len(images))
        return depth_of(images), self.estimates, True, False


def job(network, layout="clip", focal=None, key="net 1", at_once=2):
    return prior_clips.DepthJob(network.make, "depthanything", key, layout, focal, at_once)


def clips_of(root):
    return prior_clips.find_clips([str(root / "in" / "*")], root / "out", ALL)


def test_files_of_a_clip(tmp_path):
    shown = pictures()
    write(tmp_path / "in" / "a", shown)
    network = Network()
    (clip,) = clips_of(tmp_path)
    assert prior_clips.process(clip, job(network)) == prior_clips.Done(3, 3)
    assert network.seen == [2, 1]
    for k, picture in enumerate(shown):
        with np.load(tmp_path / "out" / "a" / f"{k:03d}_pred_depth_depthanything.npz") as stored:
            assert stored.files == ["depth"]  # nobody knows the focal
            assert stored["depth"].dtype == np.float32
            np.testing.assert_array_equal(stored["depth"], np.maximum(depth_of(picture), 0))
    folder = depth_files.read_depth_folder(tmp_path / "out" / "a", ["000", "001", "002"])
    assert folder.inverse and not folder.metric and folder.depth.shape == (3, HEIGHT, WIDTH)


def test_a_second_run_computes_nothing_and_changes_are_noticed(tmp_path):
    write(tmp_path / "in" / "a", pictures())
    write(tmp_path / "in" / "b", pictures(2, seed=1))

    def computed(**settings):
        done = [
            prior_clips.process(clip, job(Network(), **settings)) for clip in clips_of(tmp_path)
        ]
        return [item.computed for item in done]

    assert computed() == [3, 2]
    assert computed() == [0, 0]
    (tmp_path / "out" / "a" / "001_pred_depth_depthanything.npz").unlink()
    assert computed() == [1, 0]
    Image.fromarray(pictures(2, seed=5)[0]).save(tmp_path / "in" / "b" / "000.png")
    assert computed() == [0, 1]
    (tmp_path / "out" / "records" / "a.json").write_text("{damaged")
    assert computed() == [3, 0]
    assert computed(key="net 2") == [3, 2]
    assert computed(key="net 2", focal=100.0) == [3, 2]
    with np.load(tmp_path / "out" / "a" / "000_pred_depth_depthanything.npz") as stored:
        assert stored["focallength_px"].shape == () and stored["focallength_px"] == 100.0
        assert stored["focallength_px"].dtype == np.float32
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    write(tmp_path / "in" / "a", pictures(5))
    (clip,) = clips_of(tmp_path)
    original, written = prior_files.write_prior, []

    def stop_in_the_second_batch(path, depth, focal):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        original(path, depth, focal)

    monkeypatch.setattr(prior_files, "write_prior", stop_in_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        prior_clips.process(clip, job(Network()))
    monkeypatch.setattr(prior_files, "write_prior", original)
    record = json.loads(clip.record_path.read_text())["depth"]
    assert not record["complete"] and len(record["files"]) == 2  # the batch that was whole
    killed = written[0].with_name(f".{written[0].name}.0123abcd")  # as kill -9 leaves it
    killed.write_bytes(b"half")
    network = Network()
    assert prior_clips.process(clip, job(network)) == prior_clips.Done(5, 3)
    assert network.seen == [2, 1]
    assert not killed.exists()


def test_focals_and_sizes(tmp_path):
    """A known focal is told to the network; what the network estimates is what is written."""
    shown = [*pictures(2), pictures(1)[0][:40]]
    clip_folder = write(tmp_path / "in" / "a", shown, ".jpg")
    exif = Image.Exif()
    exif[0xA405] = 28
    Image.fromarray(shown[1]).save(clip_folder / "001.jpg", exif=exif)
    pixels = 28 * np.hypot(HEIGHT, WIDTH) / np.hypot(36, 24)
    (clip,) = clips_of(tmp_path)
    network = Network()
    prior_clips.process(clip, job(network, at_once=8))
    assert network.seen == [1, 1, 1]  # focal known and unknown apart, sizes apart
    assert network.focals[0] is None
    np.testing.assert_allclose(network.focals[1], [pixels], rtol=1e-6)

    def focals():
        found = []
        for k in range(3):
            with np.load(tmp_path / "out/a" / f"{k:03d}_pred_depth_depthanything.npz") as stored:
                found.append(stored.get("focallength_px"))
        return found

    assert focals()[0] is None and focals()[1] == np.float32(pixels)
    prior_clips.process(clip, job(Network(estimates=np.float32(77)), key="other"))
    assert focals() == [77, 77, 77]


def test_layouts(tmp_path):
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
    assert prior_files.name_of("depth_pro", True) == "depthpro"
    assert prior_files.name_of("depth_anything", True) == "depthmetric"

    # A processed training set: the focal comes from the metadata, the prior goes beside the image.
    scene = tmp_path / "in" / "scene"
    scene.mkdir(parents=True)
    for k, picture in enumerate(pictures(2)):
        Image.fromarray(picture).save(scene / f"{k}_rgb.jpg")
        np.savez(scene / f"{k}_metadata.npz", camera_intrinsics=np.diag([50.0 + k, 50, 1]))
    network = Network()
    (clip,) = clips_of(tmp_path)
    prior_clips.process(clip, job(network, layout="beside"))
    assert network.focals == [None]
    for k in range(2):
        with np.load(scene / f"{k}_rgb_pred_depth_depthanything.npz") as stored:
            assert stored["focallength_px"] == np.float32(50 + k)
    with pytest.raises(UserError, match="is a video"):
        video_clip = prior_clips.Clip(tmp_path / "a.mp4", "a", tmp_path, ALL)
        video_clip.source.write_bytes(b"")
        prior_clips.process(video_clip, job(network, layout="beside"))


def test_flow_of_windows_is_flow_of_the_whole(tmp_path, monkeypatch):
    write(tmp_path / "in" / "a", pictures(5))
    (clip,) = clips_of(tmp_path)

    def dis(frames):
        return optical_flow.DisFlow(FlowConfig(source="dis"))

    flow_job = prior_clips.FlowJob(dis, "dis", (1, 2), 64)
    assert prior_clips.process(clip, flow_job) == prior_clips.Done(14, 14)
    assert prior_clips.process(clip, flow_job).computed == 0
    whole = {path.name: flow_files.read_flow(path) for path in (tmp_path / "out/a/flow").iterdir()}
    assert len(whole) == 14 and whole["000_001.npz"].shape == (43, 64, 2)

    monkeypatch.setattr(prior_clips, "FRAMES_AT_ONCE", 2)
    again = prior_clips.Clip(clip.source, "windows", clip.output, ALL)
    assert prior_clips.process(again, flow_job).total == 14
    for name, field in whole.items():
        np.testing.assert_array_equal(
            flow_files.read_flow(tmp_path / "out/windows/flow" / name), field
        )

    # Another working size reads them: rows are cropped, pixels scaled.
    frames, _ = video_lib.read_frames(clip.source, size=64)
    source = optical_flow.make_source(FlowConfig(source=f"files:{tmp_path}/out/a/flow"), frames)
    read = source.directed(frames, np.array([[0, 2], [1, 0]]))
    top = frames.size.crop[0]
    np.testing.assert_allclose(read.flow[0], whole["000_002.npz"][top : top + 32], atol=1e-5)


def test_clips_are_found_once_with_names_of_their_own(tmp_path):
    for name in ("x/a", "y/a", "z"):
        write(tmp_path / "in" / name, pictures(1))
    (tmp_path / "in" / "film.mp4").write_bytes(b"")
    patterns = [str(tmp_path / "in" / "*" / "a"), str(tmp_path / "in" / "z"),
                str(tmp_path / "in" / "z"), str(tmp_path / "in" / "*.mp4")]  # fmt: skip
    names = [clip.name for clip in prior_clips.find_clips(patterns, tmp_path, ALL)]
    assert len(set(names)) == 4 and all(names)
    for nothing in ("nowhere", "in/z/000.png"):
        with pytest.raises(UserError, match="matches no video"):
            prior_clips.find_clips([str(tmp_path / nothing)], tmp_path, ALL)
