"""The page: self-contained, well formed, complete, and honest about what is missing."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.findings import warnings
from align3r_jax.io import scene_folder
from align3r_jax.viewer import camera_sections, report, run_sections
from tests.viewer import bumpy_scene

VOID = {"meta", "img", "input", "br", "link", "path", "circle", "rect", "image"}


class _Checker(HTMLParser):
    """Collects elements; fails on tags that do not match."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data.strip())

    def attributes(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def scene():
    return bumpy_scene.make(4, 32, 40)


@pytest.fixture(scope="module")
def page(scene):
    return report.render(
        scene, bumpy_scene.summary(scene), prior_depth=scene.depth,
        flow_images={t: np.zeros((32, 40, 3), np.uint8) for t in range(3)},
        true_world_from_cam=scene.world_from_cam,
    )  # fmt: skip


def test_nothing_is_fetched(page):
    checked = _Checker(page)
    for _, attributes in checked.elements:
        for name in ("src", "href", "action", "srcset", "poster"):
            assert (attributes.get(name) or "data:").startswith(("data:image/", "data:"))
    assert not re.search(r"https?://|//cdn|@import|url\(", page)
    assert "default-src 'none'" in page
    assert len(page) < 4e6


def test_every_picture_and_chart_has_words_for_those_who_do_not_see_it(page):
    checked = _Checker(page)
    pictures = checked.attributes("img")
    # Strips of input, depth, mask, confidence and flow, map of confidence, 3 doubtful frames; the
    # prior is a plane here, of which there is nothing to see.
    assert len(pictures) == 9
    assert all(len(picture["alt"]) > 15 for picture in pictures)
    charts = [a for a in checked.attributes("svg") if a.get("role") == "img"]
    assert len(charts) == 5  # confidence, path from above, from the side, losses, pairs
    assert all(chart["aria-label"] for chart in charts)
    assert checked.attributes("html")[0]["lang"] == "en"
    canvases = checked.attributes("canvas")
    assert [c.get("data-panel") for c in canvases[:-1]] == [
        "input", "depth", "mask", "confidence", "flow",
    ]  # fmt: skip
    assert canvases[-1]["aria-label"].startswith("Turning point cloud of")
    for kind in ("input", "select", "button"):
        assert checked.attributes(kind), kind
    assert page.count("<label") >= len(checked.attributes("input") + checked.attributes("select"))


def test_the_header_names_predictor_prior_and_limits(page):
    text = " ".join(_Checker(page).words)
    assert "optical flow and geometry, without a depth prior" in text
    assert "Without learnt weights, depth far from any parallax follows a plane." in text
    assert "bumpy_wall.mp4" in text and "clips/" not in text.split("Settings")[0]
    assert "with the depth prior “depth_pro”" in report.lead_sentence({"prior": "depth_pro"})


@pytest.mark.parametrize(
    ("source", "title"),
    [("a/my.mp4", "my.mp4"), ("walks/rgb", "walks/rgb"), ("a/walks/*.png", "walks"), ("", "Video")],
)
def test_titles(scene, source, title):
    assert f"<h1>{title}</h1>" in report.render(scene, {"input": source})


def test_lead_sentence_names_the_network_and_its_weights():
    lead = report.lead_sentence(
        {"predictor": "network", "weights": {"name": "align3r_small"}, "prior": "none"}
    )
    assert "a pairwise network (align3r_small), without a depth prior" in lead


def test_errors_are_set_against_their_baselines(page):
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", page)
    ate = next(row for row in rows if row.startswith("ATE"))
    assert "0.013 m" in ate and "0.21 m (standing camera)" in ate
    assert '<span class="good">0.062 ×</span>' in ate
    assert any("delta &lt; 1.25" in row and "0.97" in row for row in rows)
    worse = run_sections.errors({"IoU": {"value": 0.2, "baseline": 0.4, "better": "higher"}})
    assert 'class="bad"' in worse
    assert run_sections.errors({"ATE": None}) == ""


def test_stages_show_time_memory_and_what_was_resumed(page):
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", page)
    align = next(row for row in rows if row.startswith("alignment"))
    assert "12.90 s" in align and "902 MB" in align and "width:78.1%" in align
    assert "resumed" in next(row for row in rows if row.startswith("optical flow"))
    device = run_sections.stages([{"stage": "a", "seconds": 1, "peak_device_memory_mb": 2048}])
    assert "2,048 MB" in device and "Device memory" in device


def test_truth_in_another_world_and_scale_falls_onto_the_same_path(scene):
    rotation = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    truth = np.array(scene.world_from_cam, np.float64)
    truth[:, :3, :3] = rotation @ truth[:, :3, :3]
    truth[:, :3, 3] = 3.7 * truth[:, :3, 3] @ rotation.T + [5, 6, 7]
    section = camera_sections.trajectory(scene, truth)
    predicted = re.findall(r'class="line s1" d="([^"]+)"', section)
    true = re.findall(r'class="line s2 dashed" d="([^"]+)"', section)
    assert len(predicted) == 3 and len(true) == 3  # two charts and the legend
    for ours, theirs in zip(predicted[:2], true[:2]):
        numbers = [np.array(re.findall(r"[\d.]+", path), float) for path in (ours, theirs)]
        np.testing.assert_allclose(*numbers, atol=0.5)


def test_a_bare_summary_makes_a_page(scene):
    bare = dataclasses.replace(scene, trace={}, pair_losses=np.zeros(0, np.float32), metric=False)
    page = report.render(bare, {})
    words = " ".join(_Checker(page).words)
    assert "scene units" in words and "Errors against" not in words and "Loss by" not in words


def test_without_pairs_the_losses_are_sorted(scene):
    page = report.render(scene, {})
    assert "worst first" in page


def test_damaged_numbers_and_empty_clouds_are_shown_not_raised(scene):
    depth = np.full_like(scene.depth, np.nan)
    trace = {"total": np.array([np.nan, 1.0, np.inf], np.float32)}
    losses = np.full_like(scene.pair_losses, np.nan)
    damaged = dataclasses.replace(scene, depth=depth, trace=trace, pair_losses=losses)
    with np.errstate(all="ignore"):
        page = report.render(damaged, bumpy_scene.summary(scene))
    assert "No pixel was confident enough" in page
    assert "NaN" not in page.split('id="cloud-meta">')[1].split("</script>")[0]


@pytest.mark.parametrize("frames", [1, 2, 40])
def test_any_number_of_frames(frames):
    scene = bumpy_scene.make(frames, 32, 40)
    checked = _Checker(report.render(scene, bumpy_scene.summary(scene)))
    assert f"of {frames} cameras" in checked.attributes("canvas")[-1]["aria-label"]


def test_the_command_can_be_copied_and_the_software_is_named(scene):
    summary = bumpy_scene.summary(scene) | {
        "command": "python -m experiments.reconstruct --video='my <clip>.mp4'",
        "software": {"jax": "0.10.2", "revision": None},
    }
    page = report.render(scene, summary)
    text = " ".join(_Checker(page).words)
    assert "experiments.reconstruct --video='my <clip>.mp4'" in text and "jax 0.10.2" in text
    assert "revision" not in text and 'data-copy="command"' in page and 'id="command"' in page
    assert "no command is recorded" in run_sections.reproduce({})


def test_warnings_stand_first_once_each_with_a_button_to_their_frame(scene):
    confidence = scene.confidence.copy()
    confidence[2] = 1.0
    doubtful = dataclasses.replace(scene, confidence=confidence)
    (found,) = warnings.find(doubtful)
    for limits in ([], ["A limit of the run.", found.sentence]):
        page = report.render(doubtful, {"limits": limits})
        notes = page.split('id="notes-title"')[1].split("</section>")[0]
        assert notes.count(found.title) == 1 and 'data-jump="2"' in notes
        assert notes.index(found.title) < notes.find("A limit") or not limits
    assert "frames 2" not in notes and "frame 2" in notes
    assert 'class="notes"' not in report.render(scene, {})  # a good result, nothing said


def test_a_prior_that_disagrees_is_drawn_and_warned_of(scene):
    prior = scene.depth.copy()
    prior[1, :, 20:] *= 4
    page = report.render(scene, {"prior": "depth_pro"}, prior_depth=prior)
    assert 'data-panel="prior"' in page and "Depth prior and alignment disagree" in page
    section = page.split('id="prior-title"')[1].split("</section>")[0]
    assert "More than 25 % in frame 1" in section and "<svg" in section
    toy = report.render(scene, {"prior": "small"}, prior_depth=prior)  # expected of it
    assert 'data-panel="prior"' in toy and "disagree" not in toy and 'id="prior-title"' not in toy


def test_intrinsics_in_original_pixels_and_degrees_with_their_spread(scene):
    intrinsics = scene.intrinsics.copy()
    intrinsics[:, 0, 0] = [30, 36, 36, 42]
    varied = dataclasses.replace(scene, intrinsics=intrinsics)
    settings = {"alignment": {"shared_focal": False}}
    section = camera_sections.intrinsics(varied, {"settings": settings})
    row = next(r for r in re.findall("<tr>(.*?)</tr>", section) if "Focal length along x" in r)
    assert re.findall(r"[\d.]+ px", row) == ["90.0 px", "10.6 px", "75.0 px", "105.0 px"]
    angle = np.degrees(2 * np.arctan(40 / 2 / 36))
    assert f"{angle:.2f} °" in section
    assert "a focal length of its own" in section and "Focal length over time" in section
    shared = camera_sections.intrinsics(
        scene, {"settings": {"alignment": {"shared_focal": True}}, "frames": 4}
    )
    assert "shared by all frames" in shared and "<svg" not in shared
    assert "came out the same" in camera_sections.intrinsics(scene, {"settings": settings})
    known = {"cameras": {"intrinsics": 4, "mode": "fixed"}, "frames": 4, "settings": settings}
    assert camera_sections.what_was_known(known, True) == (
        "Intrinsics of 4 of 4 frames were given and held as they are."
    )


def test_names_cannot_inject_markup(scene):
    evil = "<script>alert(1)</script>"
    summary = {"input": f"a{evil}.mp4", "predictor": evil, "prior": evil, "limits": [evil],
               "stages": [{"stage": evil, "seconds": 1}], "errors": {evil: 1.0},
               "settings": {"x": evil}, "weights": {"name": evil}}  # fmt: skip
    trace = {evil: np.ones(5, np.float32), "b": np.ones(5, np.float32)}
    page = report.render(dataclasses.replace(scene, trace=trace), summary)
    assert "alert(1)</script>" not in page
    _Checker(page)


def test_written_into_the_result_before_it_appears(scene, tmp_path):
    path = scene_folder.save_scene(
        scene, tmp_path / "a", bumpy_scene.summary(scene), finish=report.write_report,
        true_world_from_cam=scene.world_from_cam, prior_depth=scene.depth,
    )  # fmt: skip
    page = (path / "report.html").read_text(encoding="utf-8")
    checked = _Checker(page)
    assert len(checked.attributes("img")) == 8 and "truth" in " ".join(checked.words)
    assert not list(path.glob("*.tmp"))
    assert report.write_report(path).read_text(encoding="utf-8") == page  # again, from the folder


def test_a_folder_without_a_result(tmp_path):
    with pytest.raises(UserError, match="holds no result"):
        report.write_report(tmp_path)
