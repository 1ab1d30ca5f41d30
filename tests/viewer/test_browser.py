"""The report in a real browser: no errors, pictures and charts with content, a cloud that turns."""

import dataclasses
import time

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
SHOWN = """[...document.querySelectorAll("canvas")].every((c) => c.dataset.frame === "{}")"""
FRAMES = """[...document.querySelectorAll("canvas")].map((c) => c.dataset.frame)"""
# The colour in the left half of each panel, and the number of different values in it.
PANELS = """Object.fromEntries([...document.querySelectorAll("canvas[data-panel]")].map((c) => {
  const data = c.getContext("2d").getImageData(0, 0, 16, c.height).data;
  return [c.dataset.panel, data[4 * 8]];
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
def scene():
    # As smooth as a real picture, so that its compressed form can be compared with it.
    made = bumpy_scene.make(6, 48, 64)
    colours = np.stack([np.full((48, 64, 3), 30 + 35 * t, np.uint8) for t in range(6)])
    colours[:, :, 40:] = (200, 90, 40)
    return dataclasses.replace(made, colours=colours)


@pytest.fixture(scope="module")
def path(tmp_path_factory, scene):
    summary = bumpy_scene.summary(scene) | {
        "prior": "depth_pro", "command": "python -m experiments.reconstruct --video='a b.mp4'",
    }  # fmt: skip
    page = report.render(
        scene, summary, prior_depth=scene.depth, true_world_from_cam=scene.world_from_cam
    )
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
    browser.wait_until(SHOWN.format(0))
    yield browser
    assert browser.problems == []


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def _covered(picture: np.ndarray) -> float:
    """The part of a canvas that is not its background."""
    return float((np.abs(picture.astype(int) - picture[2, 2]).max(-1) > 24).mean())


def _still(page):
    """Ends the turning, in the position in which the page opens."""
    page.evaluate("document.querySelector('[data-control=\"turn\"]').click()")
    page.evaluate("document.querySelector('[data-control=\"reset\"]').click()")
    return page.picture("#cloud")


def test_pictures_and_charts_have_content(opened):
    opened.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    pictures = opened.evaluate(PICTURES)
    assert len(pictures) == 9
    for picture in pictures:
        assert picture["width"] > 300 and picture["shown"] > 200 and picture["values"] > 3, picture
    charts = opened.evaluate(CHARTS)
    assert len(charts) == 6
    for chart in charts:
        assert chart["width"] > 300 and chart["height"] > 200 and chart["marks"] > 6, chart
        assert chart["drawn"] > 200 or "pair" in chart["name"], chart


def test_keys_move_all_panels_and_the_cloud_to_the_same_frame(opened, scene):
    before = _still(opened)
    assert len(opened.evaluate(PANELS)) == 5
    opened.evaluate("document.querySelector('[data-control=\"frame\"]').focus()")
    for key, frame in (("End", 5), ("ArrowLeft", 4), ("Home", 0), ("ArrowRight", 1)):
        opened.press(key)
        opened.wait_until(SHOWN.format(frame))
        assert abs(opened.evaluate(PANELS)["input"] - (30 + 35 * frame)) < 4
        assert f"frame {frame} / 5" in opened.evaluate(
            "document.querySelector('[data-control=\"frame-name\"]').textContent"
        )
    # On the panels as well; and the moving disc and the yellow camera are elsewhere.
    opened.evaluate("document.querySelector('[data-control=\"panels\"]').focus()")
    opened.press("End")
    opened.wait_until(SHOWN.format(5))
    assert _difference(before, opened.picture("#cloud")) > 0.2
    opened.evaluate("document.activeElement.blur()")
    opened.press("ArrowLeft")
    opened.wait_until(SHOWN.format(4))


def test_space_plays_and_stops_all_in_step(opened):
    opened.evaluate("document.querySelector('[data-control=\"panels\"]').focus()")
    opened.press(" ")
    seen = set()
    opened.evaluate("document.querySelector('[data-control=\"speed\"]').value = 2")
    deadline = time.monotonic() + 30
    while len(seen) < 6 and time.monotonic() < deadline:
        frames = opened.evaluate(FRAMES)
        assert len(set(frames)) == 1, frames  # never one ahead of another
        seen |= set(frames)
    assert len(seen) == 6
    label = "document.querySelector('[data-control=\"play\"]').textContent"
    opened.press(" ")
    assert opened.evaluate(label) == "Play"
    # One frame may be under way; then nothing moves.
    opened.evaluate("new Promise((done) => setTimeout(done, 150))")
    stopped = opened.evaluate(FRAMES)
    opened.evaluate("new Promise((done) => setTimeout(done, 300))")
    assert opened.evaluate(FRAMES) == stopped
    opened.click('[data-control="play"]')
    assert opened.evaluate(label) == "Pause"


def test_buttons_beside_findings_jump_to_their_frame(opened):
    frame = opened.evaluate("document.querySelector('[data-jump]').dataset.jump")
    opened.click("[data-jump]")
    opened.wait_until(SHOWN.format(frame))
    assert opened.evaluate("document.activeElement.dataset.control") == "panels"


def test_the_cloud_turns_until_told_not_to(opened):
    first, second = opened.picture("#cloud"), opened.picture("#cloud")
    assert 0.15 < _covered(first) < 0.95
    assert _difference(first, second) > 0.1
    opened.click('[data-control="turn"]')
    third, fourth = opened.picture("#cloud"), opened.picture("#cloud")
    assert _difference(third, fourth) == 0
    opened.click('[data-control="turn"]')
    assert _difference(fourth, opened.picture("#cloud")) > 0.1


def test_the_cloud_answers_mouse_and_keys(opened):
    start = _still(opened)
    opened.drag("#cloud", 90, 20)
    turned = opened.picture("#cloud")
    assert _difference(start, turned) > 2
    opened.scroll("#cloud", 400)
    far = opened.picture("#cloud")
    assert _covered(far) < 0.95 * _covered(turned)
    opened.press("ArrowLeft")
    assert _difference(far, opened.picture("#cloud")) > 0.5
    opened.click('[data-control="reset"]')
    assert _difference(start, opened.picture("#cloud")) == 0


def test_the_sliders_change_the_cloud_in_the_right_direction(opened):
    start = _still(opened)
    opened.click('[data-control="cameras"]')
    bare = opened.picture("#cloud")
    assert _covered(bare) < _covered(start)
    covered = [_covered(bare)]
    shares = []
    for level in (120, 200):
        opened.set_value('[data-control="confidence"]', level)
        covered.append(_covered(opened.picture("#cloud")))
        text = opened.evaluate(
            "document.querySelector('[data-control=\"confidence-text\"]').textContent"
        )
        shares.append(int(text.split(":")[1].strip(" %")))
    assert covered[0] > covered[1] > covered[2] > 0 and 100 > shares[0] > shares[1] > 0
    opened.set_value('[data-control="confidence"]', 0)
    assert _difference(bare, opened.picture("#cloud")) == 0
    opened.set_value('[data-control="size"]', -1.5)
    small = _covered(opened.picture("#cloud"))
    opened.set_value('[data-control="size"]', 1.5)
    assert small < _covered(bare) < _covered(opened.picture("#cloud"))
    opened.set_value('[data-control="size"]', -1)
    everything = opened.picture("#cloud")
    opened.set_value('[data-control="gather"]', "past")  # of the first frame: only its own points
    first = opened.picture("#cloud")
    opened.set_value('[data-control="frame"]', 5)
    opened.wait_until(SHOWN.format(5))
    past = opened.picture("#cloud")
    opened.set_value('[data-control="gather"]', "frame")
    assert len({picture.tobytes() for picture in (everything, first, past)}) == 3
    assert _difference(past, opened.picture("#cloud")) > 0.1


def test_colours_are_what_they_say(opened):
    _still(opened)
    opened.click('[data-control="cameras"]')
    pictures = {"image": opened.picture("#cloud")}
    for name in ("depth", "confidence", "motion"):
        opened.set_value('[data-control="colour"]', name)
        pictures[name] = opened.picture("#cloud")
    assert len({picture.tobytes() for picture in pictures.values()}) == 4

    def red(picture):
        return int((np.abs(picture.astype(int) - (230, 60, 40)).max(-1) < 12).sum())

    moving = red(pictures["motion"])
    assert moving > 100 and moving > 5 * red(pictures["image"])
    opened.click('[data-control="moving"]')
    assert red(opened.picture("#cloud")) == 0
    # Still things are grey in this choice.
    seen = opened.picture("#cloud").astype(int)
    ink = seen[np.abs(seen - seen[2, 2]).max(-1) > 24]
    assert np.median(np.ptp(ink, axis=-1)) <= 2


def test_tab_reaches_every_control_and_leaves_again(opened):
    wanted = opened.evaluate(
        '[...document.querySelectorAll(\'button, input, select, canvas[tabindex], [tabindex="0"], '
        "summary')].filter((e) => e.checkVisibility()).length"
    )
    names = []
    for _ in range(wanted + 3):
        opened.press("Tab")
        names.append(opened.evaluate(
            "(() => { const e = document.activeElement; if (e === document.body) return null;"
            " const s = getComputedStyle(e); e.dataset.seen = 1; return [e.dataset.control || e.id"
            " || e.tagName, s.outlineStyle !== 'none', Boolean(e.ariaLabel || e.textContent.trim()"
            " || (e.labels && e.labels.length))]; })()"
        ))  # fmt: skip
        if names[-1] is None:
            break
    reached = opened.evaluate("document.querySelectorAll('[data-seen]').length")
    assert reached == wanted, (reached, wanted, names)
    controls = [name for name, *_ in filter(None, names)]
    order = ["play", "frame", "speed", "panels", "cloud", "colour", "gather", "confidence"]
    assert [name for name in controls if name in order] == order
    for name, visible, named in filter(None, names):
        assert visible and named, name


def test_the_command_is_copied(opened):
    opened.click('[data-copy="command"]')
    opened.wait_until("document.querySelector('[data-copy]').textContent === 'Copied'")
    assert opened.evaluate("document.getElementById('command').textContent").endswith("'a b.mp4'")


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
    opened.resize(390, 844, phone=True)
    opened.open(path)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
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
