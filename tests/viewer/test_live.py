"""The live viewer in a real browser over its own connection: played, dragged, compared."""

import json
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.io import pointcloud
from align3r_jax.viewer import layers, live
from tests.viewer import bumpy_scene, chromium

viser = pytest.importorskip("viser", reason="viser is not installed")


def needs_browser(test):
    """Marks a test that is skipped where there is no Chromium."""
    missing = pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium on the PATH")
    return pytest.mark.browser(missing(test))


LABELLED = """[...document.querySelectorAll("label")].filter((e) => e.innerText === %s)[%d]
  .getAttribute("for")"""


class Browser:
    """The page of a viewer: its panel by what is written there, its picture beside the panel."""

    def __init__(self, page: chromium.Page, url: str):
        self.page = page
        page.resize(900, 600)
        page.open(url)
        page.wait_until("document.body.innerText.includes('See the whole scene')")
        page.evaluate(
            "document.querySelectorAll('.mantine-Notification-closeButton')"
            ".forEach((e) => e.click())"
        )

    def problems(self, url: str) -> list[str]:
        """Errors, and requests to anything but the viewer itself."""
        own = (f"request to {url}", f"request to blob:{url}")
        return [problem for problem in self.page.problems if not problem.startswith(own)]

    def picture(self) -> np.ndarray:
        """(H, W, 3) the part of the window beside the panel, once it stays as it is."""
        before = self.page.picture()[:, :570]
        for _ in range(60):
            time.sleep(0.15)
            now = self.page.picture()[:, :570]
            if np.array_equal(now, before):
                return now
            before = now
        raise AssertionError("the picture never rests")

    def changed(self, before: np.ndarray) -> np.ndarray:
        """The next picture that differs from one before."""
        for _ in range(60):
            now = self.picture()
            if not np.array_equal(now, before):
                return now
        raise AssertionError("the picture never changes")

    def slide(self, label: str, *keys: str, nth: int = 0) -> None:
        """Focuses a slider and presses keys."""
        name = self._name(label, nth)
        self.page.evaluate(
            f"document.getElementById({json.dumps(name)}).querySelector('[role=slider]').focus()"
        )
        for key in keys:
            self.page.press(key)

    def choose(self, label: str, option: str, nth: int = 0) -> None:
        """Opens a list and clicks an entry."""
        self.page.click(f"[id='{self._name(label, nth)}']")
        entry = (
            "[...document.querySelectorAll('[role=option]')].filter((e) => e.offsetParent && "
            f"e.innerText === {json.dumps(option)})[0]"
        )
        self.page.wait_until(f"Boolean({entry})")
        self.page.evaluate(f"{entry}.click()")

    def click(self, text: str) -> None:
        """Clicks a button."""
        self.page.evaluate(
            "[...document.querySelectorAll('button')].find((e) => e.innerText === "
            f"{json.dumps(text)}).click()"
        )

    def tick(self, label: str) -> None:
        """Clicks a check box."""
        self.page.click(f"[id='{self._name(label, 0)}']")

    def frame(self) -> int:
        """The frame that the slider is at."""
        name = json.dumps(self._name("Frame", 0))
        return int(self.page.evaluate(
            f"document.getElementById({name}).querySelector('[role=slider]').ariaValueNow"
        ))  # fmt: skip

    def _name(self, label: str, nth: int) -> str:
        return self.page.evaluate(LABELLED % (json.dumps(label), nth))


def _covered(picture: np.ndarray) -> float:
    """The part of a picture that is not its background."""
    return float((np.abs(picture.astype(int) - picture[-2, 2]).max(-1) > 24).mean())


def _hues(picture: np.ndarray) -> np.ndarray:
    """(18,) how hues are spread over pixels with colour, sums to 1."""
    hue, saturation, value = cv2.split(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV))
    chosen = hue[(saturation > 60) & (value > 60)]
    return np.histogram(chosen, 18, (0, 180))[0] / max(len(chosen), 1)


def _yellow(picture: np.ndarray) -> np.ndarray:
    """Where the disc of the scene, the only yellow thing, is."""
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    return (red > 180) & (green > 150) & (blue < 110)


@pytest.fixture(scope="module")
def shown():
    return layers.Layers(
        bumpy_scene.make(6, 48, 64), pointcloud.PointFilter(edge=0, max_points=12_000)
    )


@pytest.fixture
def viewer(shown):
    viewer = live.LiveViewer(shown, layers.Look(), "image", port=8931)
    thread = threading.Thread(target=viewer.run, daemon=True)
    thread.start()
    yield viewer
    viewer.stop()
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def opened(viewer):
    with chromium.launch() as page:
        opened = Browser(page, viewer.url)
        yield opened
        assert opened.problems(viewer.url) == []


@needs_browser
def test_it_plays_and_answers_its_controls(opened):
    start = opened.picture()
    assert 0.1 < _covered(start) < 0.95 and _yellow(start).any()

    opened.choose("Show", "none", nth=1)  # the cameras' pictures hold the disc as well
    start = opened.changed(start)
    opened.slide("Frame", "End")  # arrows would turn the view, too
    last = opened.changed(start)
    assert opened.frame() == 5
    # The disc is elsewhere, and at one place only.
    before, after = (np.argwhere(_yellow(p)).mean(0) for p in (start, last))
    assert after[1] > before[1] + 20

    opened.choose("Show", "what stands still")
    still = opened.changed(last)
    assert _yellow(still).sum() < 0.02 * _yellow(last).sum()

    opened.choose("Colour", "depth")
    depth = opened.changed(still)
    assert np.abs(_hues(depth) - _hues(still)).sum() > 0.8
    assert abs(_covered(depth) - _covered(still)) < 0.1

    opened.slide("Confidence", "End")
    sure = opened.changed(depth)
    assert _covered(sure) < 0.6 * _covered(depth)

    opened.click("Play")
    opened.page.wait_until("document.body.innerText.includes('Pause')")
    opened.page.wait_until(f"{_frame_text(opened)} !== '5'")
    opened.click("Pause")
    opened.page.wait_until("document.body.innerText.includes('Play')")


@pytest.mark.slow
@needs_browser
def test_the_other_controls_do_what_they_say(opened):
    start = opened.picture()
    opened.choose("Gather", "this frame only")
    alone = opened.changed(start)
    assert _covered(alone) < _covered(start)
    opened.choose("Gather", "frames so far")
    past = opened.changed(alone)
    assert _covered(past) <= _covered(start)

    opened.choose("Show", "none", nth=1)
    bare = opened.changed(past)
    assert _covered(bare) < _covered(past)
    opened.slide("Point size", "Home")
    small = opened.changed(bare)
    assert _covered(small) < 0.8 * _covered(bare)
    opened.slide("Point size", "End")
    large = opened.changed(small)
    assert _covered(large) > _covered(small)

    for colour in ("confidence", "motion", "time"):
        opened.choose("Colour", colour)
        large = opened.changed(large)
    assert np.argmax(_hues(large)) in (10, 11)  # of the first frame: blue

    # Through the camera, the picture is the video's.
    opened.slide("Point size", "Home", *["ArrowRight"] * 8)
    opened.choose("Colour", "image")
    opened.choose("Gather", "all frames")
    opened.picture()
    opened.tick("Look through the camera")
    inside = opened.changed(large)
    assert _covered(inside) > 0.85
    opened.click("See the whole scene")
    assert _covered(opened.changed(inside)) < _covered(inside)


def _frame_text(opened: Browser) -> str:
    name = json.dumps(opened._name("Frame", 0))
    return f"document.getElementById({name}).querySelector('[role=slider]').ariaValueNow"


def test_without_viser_a_sentence_says_what_to_do(shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(UserError, match=r"pip install viser.*--save"):
        live.LiveViewer(shown, layers.Look(), "image")


def test_a_host_that_is_not_ours_is_told(shown):
    with pytest.raises(UserError, match="No server can be started at --host=203.0.113.1"):
        live.LiveViewer(shown, layers.Look(), "image", host="203.0.113.1")


def test_a_taken_port_gives_the_next_one(viewer, shown):
    second = live.LiveViewer(shown, layers.Look(), "image", port=8931)
    try:
        assert second.url != viewer.url
    finally:
        second.stop()
