"""The offline page opened from a file without any network: played, filtered, coloured, compared."""

import cv2
import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.io import pointcloud
from align3r_jax.viewer import layers, static_page
from tests.viewer import bumpy_scene, chromium

RULES = pointcloud.PointFilter(edge=0, max_points=9000)
OFFLINE = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
needs_browser = pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium on the PATH")


def _control(name):
    return f'[data-control="{name}"]'


def _covered(picture):
    return float((np.abs(picture.astype(int) - picture[2, 2]).max(-1) > 24).mean())


def _colourful(picture):
    """Mean saturation of what is not background."""
    drawn = np.abs(picture.astype(int) - picture[2, 2]).max(-1) > 24
    return float(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)[..., 1][drawn].mean())


def _yellow(picture):
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    return (red > 180) & (green > 150) & (blue < 110)


@pytest.fixture(scope="module")
def scene():
    return bumpy_scene.make(6, 48, 64)


@pytest.mark.browser
@needs_browser
def test_it_opens_offline_and_everything_works(scene, tmp_path):
    path = tmp_path / "scene.html"
    size = static_page.write(path, scene, RULES, static_page.Start(), 'My <walk> & "run"')
    assert size == path.stat().st_size < 1_000_000
    with chromium.launch() as page:
        page.send("Network.emulateNetworkConditions", **OFFLINE)
        page.prefer(prefers_color_scheme="dark")
        page.resize(1000, 600)
        page.open(path)
        page.wait_until("document.querySelector('#cloud').dataset.frame === '0'")
        assert page.evaluate("document.querySelector('h1').innerText") == 'My <walk> & "run"'
        view = page.box("#cloud")
        assert view["height"] == 600 and view["width"] > 600
        # In a low window the controls scroll and the view stays.
        page.evaluate("scrollTo(0, 60)")
        assert abs(page.evaluate("document.getElementById('cloud').getBoundingClientRect().y")) < 1
        page.evaluate("scrollTo(0, 0)")
        start = page.picture("#cloud")
        assert 0.15 < _covered(start) < 0.95
        assert np.array_equal(start, page.picture("#cloud"))  # stands still until turned

        page.set_value(_control("frame"), 5)
        page.wait_until("document.querySelector('#cloud').dataset.frame === '5'")
        last = page.picture("#cloud")
        where = [np.argwhere(_yellow(picture))[:, 1].mean() for picture in (start, last)]
        assert where[1] > where[0] + 40  # the disc went to the right
        page.click(_control("moving"))
        still = page.picture("#cloud")
        assert _yellow(still).sum() < 0.4 * _yellow(last).sum()  # the cameras are yellow, too
        page.click(_control("moving"))
        page.click(_control("still"))
        moving = page.picture("#cloud")
        assert _covered(moving) < 0.5 * _covered(last) and _yellow(moving).sum() > 100
        page.click(_control("still"))

        page.set_value(_control("confidence"), 245)
        assert _covered(page.picture("#cloud")) < 0.8 * _covered(last)
        page.set_value(_control("confidence"), 0)
        page.set_value(_control("gather"), "frame")
        assert _covered(page.picture("#cloud")) < _covered(last)
        page.set_value(_control("gather"), "all")
        page.set_value(_control("colour"), "motion")
        assert _colourful(page.picture("#cloud")) < 0.7 * _colourful(last)
        page.set_value(_control("colour"), "time")
        time = page.picture("#cloud")
        hue = cv2.cvtColor(time, cv2.COLOR_RGB2HSV)
        assert np.ptp(hue[..., 0][hue[..., 1] > 150]) > 90  # from blue to red

        page.click(_control("play"))
        page.wait_until("document.querySelector('#cloud').dataset.frame === '2'")
        assert page.problems == []


def test_the_page_starts_as_it_was_asked_to(scene):
    look = layers.Look(min_confidence=4, motion="static", gather="past")
    text = static_page.render(scene, RULES, static_page.Start(look, "depth", 2.0), "x")
    assert '{"colour": "depth", "gather": "past", "size": 1.0}' in text
    assert '{"still": true, "moving": false}' in text
    everything = static_page.render(scene, RULES, static_page.Start(), "x")
    assert len(text) < len(everything)  # points of low confidence are left out
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_more_than_browsers_open_is_refused_with_a_number(scene, monkeypatch):
    monkeypatch.setattr(static_page, "LARGEST", 100_000)
    with pytest.raises(UserError, match="pass --max_points=4000 or fewer"):
        static_page.render(scene, RULES, static_page.Start(), "x")
