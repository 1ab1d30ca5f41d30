"""The player's pictures: the right ones, every n-th where there are many, within the budget."""

import base64
import dataclasses
import json

import cv2
import numpy as np
import pytest

from align3r_jax.viewer import frame_player, report
from tests.viewer import bumpy_scene

LIMIT = 15e6  # characters of a page


def _long(frames: int, height: int, width: int, noise: bool = True):
    """A result of many frames, noise being the hardest to compress of all pictures."""
    rng = np.random.default_rng(0)
    short = bumpy_scene.make(2, height, width)
    shape = (frames, height, width)
    poses = np.tile(short.world_from_cam[:1], (frames, 1, 1))
    poses[:, 0, 3] = np.linspace(0, 1, frames)
    return dataclasses.replace(
        short,
        depth=(rng.uniform(1, 8, shape) if noise else np.full(shape, 3.0)).astype(np.float32),
        confidence=rng.uniform(1, 9, shape).astype(np.float32),
        dynamic_mask=rng.random(shape) < 0.3,
        colours=rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
        world_from_cam=poses,
        intrinsics=np.tile(short.intrinsics[:1], (frames, 1, 1)),
        times=np.arange(frames) / 30,
        names=tuple(map(str, range(frames))),
    )


def _film_data(page):
    return json.loads(page.split('id="film-data">')[1].split("</script>")[0])


def test_a_long_page_stays_small_and_says_what_it_leaves_out():
    scene = _long(300, 96, 128)
    page = report.render(scene, {})
    assert len(page.encode()) < LIMIT
    data = _film_data(page)
    step = data["frames"][1]
    assert step >= 2 and data["frames"] == list(range(0, 300, step))
    assert f"every {step}" in page and "of the 300 frames" in page
    assert all(len(row) == len(data["frames"]) for row in data["pictures"].values())
    assert data["fps"] == pytest.approx(30 / step)  # as fast as the video


@pytest.mark.slow
def test_a_long_page_at_full_size_stays_small():
    scene = _long(300, 288, 512)
    flow = {t: scene.colours[t] for t in range(299)}
    page = report.render(scene, {}, prior_depth=scene.depth, flow_images=flow)
    assert len(page.encode()) < LIMIT
    assert len(_film_data(page)["frames"]) > 10


def test_every_panel_shows_its_own_frame():
    scene = bumpy_scene.make(3, 48, 64)
    colours = np.stack([np.full((48, 64, 3), 60 * (t + 1), np.uint8) for t in range(3)])
    scene = dataclasses.replace(scene, colours=colours)
    shown = frame_player.panels(scene, scene.depth, {0: colours[2], 1: colours[1]})
    film = frame_player.make_film(shown, 3)
    assert film.step == 1 and film.size == (64, 48)
    assert frame_player.subsampling_note(film, 3) == ""
    for t in range(3):
        raw = np.frombuffer(base64.b64decode(film.pictures["input"][t]), np.uint8)
        picture = cv2.imdecode(raw, cv2.IMREAD_COLOR)
        assert picture.shape == (48, 64, 3) and abs(picture.mean() - 60 * (t + 1)) < 3
    assert film.pictures["flow"][2] is None  # the last frame has no flow to a next one
    assert set(film.pictures) == {"input", "depth", "mask", "confidence", "prior", "flow"}


def test_pictures_shrink_before_frames_are_left_out(monkeypatch):
    scene = _long(6, 96, 400, noise=False)
    monkeypatch.setattr(frame_player, "SMOOTH", 6)
    shown = frame_player.panels(scene, None, {})
    full = frame_player.make_film(shown, 6)
    used = sum(len(picture) for row in full.pictures.values() for picture in row)
    assert full.size[0] == 400 and full.step == 1
    monkeypatch.setattr(frame_player, "BUDGET", used // 2)
    smaller = frame_player.make_film(shown, 6)
    assert smaller.size[0] < 400 and smaller.step == 1
    monkeypatch.setattr(frame_player, "BUDGET", used // 8)
    fewer = frame_player.make_film(shown, 6)
    assert fewer.size[0] == 192 and fewer.step > 1
    assert sum(len(p) for row in fewer.pictures.values() for p in row) <= used // 8


def test_frames_that_compress_worse_than_the_probes_are_dropped(monkeypatch):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (16, 48, 64, 3), dtype=np.uint8)
    noise[[0, 5, 10, 15]] = 90  # the frames that are probed
    panel = frame_player.Panel("input", "Input", "", lambda t: noise[t])
    monkeypatch.setattr(frame_player, "BUDGET", 20_000)
    film = frame_player.make_film([panel], 16)
    assert film.step > 1 and len(film.frames) == len(film.pictures["input"])
    assert sum(map(len, film.pictures["input"])) <= 20_000


@pytest.mark.parametrize(("step", "word"), [(2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th")])
def test_ordinals(step, word):
    film = frame_player.Film(np.arange(0, 99, step), step, (4, 4), [], {})
    assert f"every {word} of the 99 frames" in frame_player.subsampling_note(film, 99)
