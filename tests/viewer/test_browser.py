"""The report in a real browser: no errors, pictures and charts with content, a cloud that turns."""

import numpy as np
import pytest

from align3r_jax.viewer import report
from tests.viewer import bumpy_scene, chromium

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium on the PATH"),
]

NO_WEBGL = """
const original = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
  return kind.startsWith("webgl") ? null : original.call(this, kind, ...rest);
};
"""
PICTURES = """Promise.all([...document.images].map(async (image) => {
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = 64; canvas.height = 8;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, 64, 8);
  const values = new Set(context.getImageData(0, 0, 64, 8).data.filter((_, k) => k % 4 !== 3));
  return { alt: image.alt, width: image.naturalWidth, shown: image.clientWidth,
           values: values.size };
}))"""
CHARTS = """[...document.querySelectorAll("svg.chart")].map((chart) => ({
  name: chart.getAttribute("aria-label"), width: chart.clientWidth, height: chart.clientHeight,
  marks: chart.querySelectorAll("text").length,
  drawn: chart.querySelectorAll("image").length
    + [...chart.querySelectorAll("path.line")].reduce((sum, line) => sum + line.getTotalLength(), 0)
}))"""
# Elements that stick out of the page, except inside boxes that scroll by themselves.
WIDER = """[...document.querySelectorAll("body *")]
  .filter((e) => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1)
  .map((e) => e.tagName + "." + e.className)"""


@pytest.fixture(scope="module")
def browser():
    with chromium.launch() as page:
        yield page


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    scene = bumpy_scene.make(6, 48, 64)
    page = report.render(
        scene, bumpy_scene.summary(scene), prior_depth=scene.depth,
        true_world_from_cam=scene.world_from_cam,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, path):
    """The report in a desktop window; whatever the test does, no error may be reported."""
    browser.problems.clear()
    browser.prefer()
    browser.resize(1100, 900)
    browser.open(path)
    yield browser
    assert browser.problems == []


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def _covered(picture: np.ndarray) -> float:
    """The part of a canvas that is not its background."""
    return float((np.abs(picture.astype(int) - picture[2, 2]).max(-1) > 24).mean())


def test_pictures_and_charts_have_content(opened):
    pictures = opened.evaluate(PICTURES)
    assert len(pictures) == 5
    for picture in pictures:
        assert picture["width"] > 500 and picture["shown"] > 500 and picture["values"] > 10, picture
    charts = opened.evaluate(CHARTS)
    assert len(charts) == 4
    for chart in charts:
        assert chart["width"] > 300 and chart["height"] > 200 and chart["marks"] > 6, chart
        assert chart["drawn"] > 200 or "pair" in chart["name"], chart


def test_the_cloud_turns_until_paused(opened):
    first, second = opened.picture("#cloud"), opened.picture("#cloud")
    assert 0.15 < _covered(first) < 0.95
    assert len(np.unique(first.reshape(-1, 3) // 32, axis=0)) > 20
    assert _difference(first, second) > 0.5
    opened.click('[data-control="play"]')
    third, fourth = opened.picture("#cloud"), opened.picture("#cloud")
    assert _difference(third, fourth) == 0
    opened.click('[data-control="play"]')
    assert _difference(fourth, opened.picture("#cloud")) > 0.5


def test_the_cloud_answers_mouse_slider_and_boxes(opened):
    opened.click('[data-control="play"]')
    opened.click('[data-control="reset"]')
    start = opened.picture("#cloud")
    opened.drag("#cloud", 90, 20)
    turned = opened.picture("#cloud")
    assert _difference(start, turned) > 2
    opened.scroll("#cloud", 400)
    far = opened.picture("#cloud")
    assert _covered(far) < 0.95 * _covered(turned)
    opened.click('[data-control="reset"]')
    assert _difference(start, opened.picture("#cloud")) == 0

    opened.evaluate("""(() => { const s = document.querySelector('[data-control="frame"]');
        s.value = s.value == s.max ? 0 : s.max; s.dispatchEvent(new Event("input")); })()""")
    assert "/ 5" in opened.evaluate(
        "document.querySelector('[data-control=\"frame-name\"]').textContent"
    )
    other = opened.picture("#cloud")
    assert _difference(start, other) > 0.2  # the moving disc is elsewhere
    for name in ("cameras", "moving"):
        opened.click(f'[data-control="{name}"]')
        fewer = opened.picture("#cloud")
        assert _difference(other, fewer) > 0.1, name
        other = fewer


def test_people_who_want_less_motion_get_a_still(opened, path):
    opened.prefer(prefers_reduced_motion="reduce")
    opened.open(path)
    assert _difference(opened.picture("#cloud"), opened.picture("#cloud")) == 0
    assert _covered(opened.picture("#cloud")) > 0.15


def test_dark_mode_is_dark_and_readable(opened):
    opened.prefer(prefers_color_scheme="dark")
    picture = opened.picture("header")
    assert np.median(picture) < 40 and picture.max() > 200


def test_a_phone_shows_it_without_scrolling_sideways(opened, path):
    opened.resize(375, 780, phone=True)
    opened.open(path)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 375
    assert opened.evaluate(WIDER) == []
    assert _covered(opened.picture("#cloud")) > 0.1


def test_without_webgl_a_sentence_takes_its_place(path):
    with chromium.launch() as page:
        page.script_first(NO_WEBGL)
        page.open(path)
        shown = "[...document.querySelectorAll('.fallback')].map((e) => e.innerText).join('')"
        assert "shows no 3-D graphics" in page.evaluate(shown)
        assert page.evaluate("document.getElementById('cloud').clientHeight") == 0
        assert page.problems == []
