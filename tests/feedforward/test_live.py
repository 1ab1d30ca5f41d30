"""Streams to folders: the same as frame by frame, whole files at any moment, any end is an end."""

import io
import itertools

import numpy as np
import pytest

from align3r_jax.config import AlignmentConfig, FeedForwardConfig, ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.feedforward import engines, live, pairs
from align3r_jax.io import live_folder, scene_folder, stream
from tests.feedforward.test_pairs import HEIGHT, WIDTH, TruePairs

CONFIG = ReconstructConfig(feedforward=FeedForwardConfig(motion_masks=False))
COUNT = 5


def _y4m(count=COUNT):
    rng = np.random.default_rng(0)
    frames = rng.integers(60, 200, (count, HEIGHT * WIDTH), np.uint8)
    head = f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F10:1 Cmono\n".encode()
    return head + b"".join(b"FRAME\n" + frame.tobytes() for frame in frames)


def _stream(path, frames=None, **folder):
    decode = TruePairs()
    return live.stream(
        stream.open_stream("-", pipe=io.BytesIO(_y4m())) if frames is None else frames,
        size=WIDTH,
        crop=True,
        open_engine=lambda size: engines.PairEngine(
            "oracle", lambda number, image, prior: np.int32(number), decode, CONFIG
        ),
        prior_of=lambda frame, original: None,
        open_folder=lambda size: live_folder.LiveFolder(path, size, {"input": "-"}, **folder),
    )


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    path = tmp_path_factory.mktemp("live") / "out"
    return path, _stream(path)


def test_a_stream_is_the_frames_one_by_one_bit_for_bit(streamed):
    _, done = streamed
    decode = TruePairs()
    state, result = pairs.init(np.int32(0), decode)
    scene = done.folder.scene()
    for t in range(COUNT):
        if t:
            state, result = pairs.step(state, np.int32(t), decode, CONFIG.feedforward)
        np.testing.assert_array_equal(scene.depth[t], result.depth)
        np.testing.assert_array_equal(scene.confidence[t], result.confidence)
        np.testing.assert_array_equal(scene.world_from_cam[t], result.world_from_cam)
        np.testing.assert_array_equal(scene.intrinsics[t], result.intrinsics)
    np.testing.assert_allclose(scene.times, np.arange(COUNT) / 10)
    assert done.speed.frames == COUNT and done.speed.frames_per_second > 0 and not done.lost


def test_a_killed_stream_leaves_a_result(streamed, monkeypatch, tmp_path):
    monkeypatch.setattr(live_folder, "_RENEW_SECONDS", 0.0)
    done = _stream(tmp_path / "out")  # never finished: what a killed process leaves
    scene = scene_folder.load_scene(tmp_path / "out")
    np.testing.assert_array_equal(scene.depth, done.folder.scene().depth)
    np.testing.assert_allclose(scene.world_from_cam, done.folder.scene().world_from_cam, atol=1e-6)
    assert scene.names == tuple(f"{t:06d}" for t in range(COUNT))


def test_ctrl_c_ends_a_stream_and_the_folder_is_finished(tmp_path):
    def interrupted():
        yield from itertools.islice(stream.open_stream("-", pipe=io.BytesIO(_y4m())), 3)
        raise KeyboardInterrupt

    done = _stream(tmp_path / "out", interrupted())
    assert done.speed.frames == 3
    done.folder.finish({"input": "-"})
    scene = scene_folder.load_scene(tmp_path / "out")
    assert len(scene.depth) == 3 and (tmp_path / "out" / "points.ply").exists()


def test_only_the_last_frames_stay(tmp_path):
    done = _stream(tmp_path / "out", keep_last=2)
    files = sorted(path.name for path in (tmp_path / "out" / "depth").iterdir())
    assert files == ["frame_0003.npy", "frame_0004.npy"]
    done.folder.finish({"input": "-"})
    scene = scene_folder.load_scene(tmp_path / "out")
    assert scene.names == ("000003", "000004") and len(scene.depth) == 2


def test_frames_must_be_equal_in_size_and_results_are_not_replaced_unasked(streamed, tmp_path):
    path, _ = streamed
    with pytest.raises(UserError, match="overwrite"):
        _stream(path)
    frames = list(stream.open_stream("-", pipe=io.BytesIO(_y4m(2))))
    small = stream.RawFrame(2, 0.2, "2", lambda: np.zeros((32, 48, 3), np.uint8))
    with pytest.raises(UserError, match="48x32, those before are 64x48"):
        _stream(tmp_path / "out", iter([*frames, small]))


def test_masks_are_drawn_to_edges_of_the_image_unless_told_otherwise(monkeypatch):
    image = np.random.default_rng(0).integers(0, 40, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    thing, blob = np.zeros((2, HEIGHT, WIDTH), bool)
    thing[15:35, 20:45] = True
    blob[14:36, 19:46] = True
    image[thing] += 200
    _, result = pairs.init(np.int32(0), TruePairs())
    monkeypatch.setattr(pairs, "init", lambda *a: (None, result.replace(dynamic_mask=blob)))
    for drawn, expected in ((True, thing), (False, blob)):
        config = ReconstructConfig(alignment=AlignmentConfig(outline_masks=drawn))
        engine = engines.PairEngine("oracle", lambda *a: None, TruePairs(), config, False)
        np.testing.assert_array_equal(engine.push(image, None).dynamic_mask, expected)
