"""Videos and picture folders as frames: real files of every container, selections, bad input."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from align3r_jax.errors import UserError
from align3r_jax.io import video
from align3r_jax.structs import Frames, WorkingSize

CODECS = {
    "mp4": "libx264",
    "mov": "libx264",
    "mkv": "libx264",
    "avi": "mpeg4",
    "webm": "libvpx",
    "gif": "gif",
}


def _picture(index: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A ramp with a red corner at the top left and the frame number as the level of a stripe."""
    ramp = np.linspace(40, 200, width)[None, :, None]
    image = np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8).copy()
    image[: height // 4, : width // 4] = (255, 0, 0)
    image[height // 2 :, width // 2 :] = 8 * index
    return image


def _stripe(images: np.ndarray) -> np.ndarray:
    """The frame numbers read back."""
    height, width = images.shape[1:3]
    levels = images[:, height * 5 // 8 : height * 7 // 8, width * 5 // 8 : width * 7 // 8]
    return np.round(levels.mean(axis=(1, 2, 3)) / 8).astype(int)


def _write(path, pictures, rate=10, times=None, rotation=None):
    codec = CODECS[path.suffix[1:]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "5"}
        elif codec != "gif":
            stream.bit_rate = 4_000_000
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=stream.pix_fmt)
            if times is not None:
                frame.pts, frame.time_base = round(times[index] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    return _write(path, [_picture(index) for index in range(20)])


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_containers(tmp_path, suffix):
    path = _write(tmp_path / f"clip.{suffix}", [_picture(index) for index in range(6)])
    frames, originals = video.read_frames(path, size=64)
    assert originals.shape == (6, 64, 96, 3) and originals.dtype == np.uint8
    assert frames.images.shape == (6, 32, 64, 3)
    assert frames.size == WorkingSize((64, 96), (43, 64), (5, 0), (32, 64))
    expected = np.stack([_picture(index) for index in range(6)]).astype(int)
    error = np.abs(originals - expected)
    assert error.mean() < (20 if suffix == "gif" else 4)  # gif: 256 fixed colours
    np.testing.assert_allclose(frames.times, np.arange(6) / 10, atol=2e-3)
    if suffix != "gif":
        np.testing.assert_array_equal(_stripe(originals), np.arange(6))
    assert frames.names[3] == "000003"


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_phone_rotation(tmp_path, rotation):
    """A display matrix of +90 degrees turns the stored picture anticlockwise."""
    pictures = [_picture(index) for index in range(3)]
    path = _write(tmp_path / "phone.mp4", pictures, rotation=rotation)
    _, originals = video.read_frames(path, size=64)
    expected = np.rot90(pictures[0], k=rotation // 90)
    assert originals.shape[1:] == expected.shape
    assert np.abs(originals[0].astype(int) - expected).mean() < 4


def test_portrait_phone_matrix_as_cameras_write_it(tmp_path):
    """The track matrix (0, 1, -1, 0) of a phone held upright turns the picture clockwise."""
    path = _write(tmp_path / "phone.mp4", [_picture(index) for index in range(3)], rotation=0)
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    matrix = header + 40  # version 0: flags, times, id, duration, layer, group, volume
    one = 0x00010000
    values = (0, one, 0, -one & 0xFFFFFFFF, 0, 0, 64 * one, 0, 0x40000000)
    for k, value in enumerate(values):
        data[matrix + 4 * k : matrix + 4 * k + 4] = value.to_bytes(4, "big")
    path.write_bytes(bytes(data))
    _, originals = video.read_frames(path, size=64)
    assert originals.shape[1:3] == (96, 64)
    top_right = originals[0, 4:20, -12:-4].mean(axis=(0, 1))
    assert top_right[0] > 200 and top_right[1] < 60


def test_real_time_stamps_of_a_variable_rate(tmp_path):
    times = [0.0, 0.1, 0.25, 0.3, 0.9, 1.0]
    path = _write(tmp_path / "variable.mkv", [_picture(k) for k in range(6)], times=times)
    frames, _ = video.read_frames(path, size=64)
    np.testing.assert_allclose(frames.times, times, atol=2e-3)
    thinned, _ = video.read_frames(path, size=64, fps=4)
    np.testing.assert_allclose(thinned.times, [0.0, 0.25, 0.9, 1.0], atol=2e-3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, range(20)),
        ({"start": 5, "end": 9}, range(5, 9)),
        ({"stride": 7}, [0, 7, 14]),
        ({"start": 3, "stride": 4, "max_frames": 3}, [3, 7, 11]),
        ({"fps": 5}, range(0, 20, 2)),
        ({"fps": 2.5, "start": 1}, [1, 5, 9, 13, 17]),
        ({"fps": 60}, range(20)),
        ({"end": 1000, "start": 18}, [18, 19]),
    ],
)
def test_selections(clip, options, expected):
    frames, originals = video.read_frames(clip, size=64, **options)
    np.testing.assert_array_equal(_stripe(originals), list(expected))
    assert frames.names == tuple(f"{index:06d}" for index in expected)
    np.testing.assert_allclose(frames.times, np.array(list(expected)) / 10, atol=2e-3)


def test_only_selected_frames_are_converted_and_kept(clip, monkeypatch):
    converted = []
    convert = video._to_rgb
    monkeypatch.setattr(video, "_to_rgb", lambda *args: converted.append(1) or convert(*args))
    frames, originals = video.read_frames(
        clip, size=64, start=2, stride=3, max_frames=4, keep_originals=False
    )
    assert originals is None and frames.num_frames == 4 and len(converted) == 4
    with pytest.raises(UserError, match=r"first 3 frames of 96 x 64 .*Take fewer"):
        video.read_frames(clip, size=64, memory_limit=2 * 96 * 64 * 3)


def test_pictures_with_selection_and_rate(tmp_path):
    for index in range(12):
        Image.fromarray(_picture(index)).save(tmp_path / f"shot{index}.png")
    frames, originals = video.read_frames(tmp_path, size=64, start=1, stride=3, fps=15)
    np.testing.assert_array_equal(_stripe(originals), [1, 4, 7, 10])
    np.testing.assert_allclose(frames.times, np.array([1, 4, 7, 10]) / 15)
    assert frames.names == ("shot1", "shot4", "shot7", "shot10")
    by_glob, _ = video.read_frames(str(tmp_path / "shot?.png"), size=64)
    assert by_glob.num_frames == 10
    listed, _ = video.read_frames([tmp_path / "shot5.png", tmp_path / "shot2.png"], size=64)
    assert listed.names == ("shot5", "shot2")


def test_non_square_pixels_are_made_square(tmp_path):
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for index in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(_picture(index), "rgb24")))
        container.mux(stream.encode())
    _, originals = video.read_frames(path, size=64)
    assert originals.shape[1:3] == (64, 128)


def test_bad_sources_get_a_sentence(tmp_path, clip):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video " * 50)
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    Image.fromarray(_picture(0)).save(tmp_path / "one.png")
    for path, sentence in (
        (tmp_path / "missing.mp4", "does not exist"),
        (tmp_path / "empty.mp4", "empty file"),
        (tmp_path / "text.mp4", "cannot be read as a video"),
        (tmp_path / "sound.mkv", "no video stream"),
        (tmp_path / "one.png", "single picture"),
        (tmp_path, "Only one frame"),
        (_write(tmp_path / "one.mp4", [_picture(0)]), "Only one frame"),
        ([], "no frames"),
    ):
        with pytest.raises(UserError, match=sentence):
            video.read_frames(path, size=64)
    with pytest.raises(UserError, match=r"it has 20 frames.*--start=20"):
        video.read_frames(clip, size=64, start=20)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"start": -1}, "counted from 0"),
        ({"start": 5, "end": 5}, "must be greater than --start=5"),
        ({"stride": 0}, "--stride=0"),
        ({"fps": 0}, "--fps=0"),
        ({"fps": float("nan")}, "--fps=nan"),
        ({"max_frames": 1}, "--max_frames=1"),
        ({"fps": 5, "stride": 2}, "both thin"),
        ({"size": 8}, "working size is 8"),
        ({"start": 19}, "Only one frame"),
    ],
)
def test_odd_settings_get_a_sentence(clip, options, sentence):
    with pytest.raises(UserError, match=sentence):
        video.read_frames(clip, **{"size": 64, **options})


def test_a_cut_off_video_gives_what_it_holds(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (64, 96, 3), np.uint8) for _ in range(12)]
    whole = _write(tmp_path / "whole.mkv", noise)
    data = whole.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    frames, _ = video.read_frames(tmp_path / "cut.mkv", size=64)
    assert 2 <= frames.num_frames < 12


def test_sizes_must_agree_and_suffice(tmp_path):
    for name, shape in (("a", (64, 96)), ("b", (64, 96)), ("c", (64, 98)), ("d", (96, 64))):
        Image.fromarray(_picture(1, *shape)).save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match=r"'c' is 98 x 64 pixels, 'a' is 96 x 64"):
        video.read_frames(tmp_path, size=64)
    with pytest.raises(UserError, match=r"30 x 64 pixels; both sides must be at least 32"):
        small = [tmp_path / "s1.png", tmp_path / "s2.png"]
        for path in small:
            Image.fromarray(_picture(1, 64, 30)).save(path)
        video.read_frames(small, size=64)


def test_content_is_checked(tmp_path):
    black = _write(tmp_path / "black.mp4", [np.zeros((64, 96, 3), np.uint8)] * 4)
    with pytest.raises(UserError, match="All 4 frames are black"):
        video.read_frames(black, size=64)
    grey = [np.full((64, 96, 3), 40 * k, np.uint8) for k in range(4)]
    with pytest.raises(UserError, match="of one flat colour"):
        video.read_frames(_write(tmp_path / "grey.mp4", grey), size=64)

    def content(pictures):
        size = WorkingSize((64, 96), (64, 96), (0, 0), (64, 96))
        names = tuple(f"f{k}" for k in range(len(pictures)))
        return video.check_content(
            Frames(np.stack(pictures), np.arange(float(len(pictures))), size, names)
        )

    assert content([_picture(0), _picture(1)]) == ()
    (doubt,) = content([_picture(0), grey[0], _picture(2)])
    assert "1 of 3 frames" in doubt and "'f1'" in doubt
    (doubt,) = content([_picture(3)] * 3)
    assert "same picture" in doubt
