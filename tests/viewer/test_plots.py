"""Charts put data where it belongs."""

import base64
import re

import cv2
import numpy as np
import pytest

from align3r_jax.viewer import plots


def _points(svg: str, style: str) -> np.ndarray:
    commands = re.search(rf'class="line {style}" d="([^"]*)"', svg).group(1)
    return np.array([[float(v) for v in p.split()] for p in re.split("[ML]", commands)[1:]])


def _ticks(svg: str, anchor: str) -> list[tuple[float, float, float]]:
    found = re.findall(rf'<text class="{anchor}" x="([\d.-]+)" y="([\d.-]+)">([^<]+)<', svg)
    return [tuple(float(value) for value in entry) for entry in found]


def test_a_value_lies_level_with_its_tick():
    y = np.array([0.0, 2.0, 4.0, 6.0])
    line = plots.Line("a", np.arange(4.0), y + 3)
    svg = plots.line_chart([line], title="t", x_label="x", y_label="y")
    points = _points(svg, "s1")
    level = {value: y for _, y, value in _ticks(svg, "end")}
    place = {value: x for x, _, value in _ticks(svg, "middle")}
    slope = (level[8.0] - level[4.0]) / 4
    for x in range(4):
        assert points[x][1] + 4 == pytest.approx(level[4.0] + (line.y[x] - 4) * slope, abs=0.2)
    assert points[2][0] == pytest.approx(place[2.0], abs=0.1)


def test_losses_over_decades_are_logarithmic():
    x = np.arange(100)
    svg = plots.line_chart([plots.Line("a", x, 10.0 ** (-x / 25))], title="t", x_label="",
                           y_label="")  # fmt: skip
    points = _points(svg, "s1")
    np.testing.assert_allclose(np.diff(points[:, 1], 2), 0, atol=0.21)  # a straight line
    assert {value for *_, value in _ticks(svg, "end")} >= {1.0, 0.1, 0.01, 0.001}


def test_zeros_and_missing_values_interrupt_a_curve():
    y = np.array([0, 0, 1, 0.5, np.nan, 0.1, 0.01])
    svg = plots.line_chart([plots.Line("a", np.arange(7), y)], title="", x_label="", y_label="")
    commands = re.search(r'class="line s1" d="([^"]*)"', svg).group(1)
    assert commands.count("M") == 2 and len(_points(svg, "s1")) == 4
    nothing = plots.Line("a", np.arange(3), np.zeros(3))
    assert plots.line_chart([nothing], title="", x_label="", y_label="") == ""


def test_long_traces_are_thinned():
    svg = plots.line_chart([plots.Line("a", np.arange(9000), np.linspace(2, 1, 9000))],
                           title="", x_label="", y_label="")  # fmt: skip
    assert len(_points(svg, "s1")) <= plots.MAX_POINTS_PER_LINE


def test_maps_have_one_scale_for_both_axes():
    angle = np.linspace(0, 2 * np.pi, 50)
    circle = plots.Line("a", 3 + np.cos(angle), np.sin(angle), ends=True)
    svg = plots.map_chart([circle], title="", x_label="", y_label="")
    width, height = np.ptp(_points(svg, "s1"), axis=0)
    assert width == pytest.approx(height, abs=1.0) and width > 150
    # y grows upwards on the page.
    assert _points(svg, "s1")[12, 1] < _points(svg, "s1")[0, 1]


def test_a_camera_that_stands_still_has_a_map():
    svg = plots.map_chart([plots.Line("a", np.zeros(3), np.zeros(3))], title="", x_label="",
                          y_label="")  # fmt: skip
    assert "nan" not in svg and "inf" not in svg


def _cells(svg: str) -> np.ndarray:
    data = re.search(r"base64,([^\"]+)", svg).group(1)
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)


def test_pair_matrix_of_many_frames_shows_the_worst_pair_of_a_cell(monkeypatch):
    monkeypatch.setattr(plots, "MAX_CELLS", 3)
    pairs = np.array([[0, 1], [1, 0], [8, 4]])  # the first two share a cell of 3 x 3 frames
    cells = _cells(plots.pair_matrix(pairs, np.array([0.4, 0.1, 0.1]), 9, title=""))
    np.testing.assert_array_equal(cells[..., 3] > 0, [[1, 0, 0], [0, 0, 0], [0, 1, 0]])
    assert cells[0, 0, :3].astype(int).sum() > cells[2, 1, :3].astype(int).sum()


def test_pair_matrix_marks_only_its_pairs():
    cells = _cells(plots.pair_matrix(np.array([[0, 1], [2, 0]]), np.array([0.1, 0.4]), 3, title=""))
    np.testing.assert_array_equal(cells[..., 3] > 0, [[0, 1, 0], [0, 0, 0], [1, 0, 0]])
    assert cells[2, 0, :3].astype(int).sum() > cells[0, 1, :3].astype(int).sum()


def test_names_cannot_inject_markup():
    lines = [plots.Line("<b>", np.arange(3), np.ones(3)), plots.Line("b", np.arange(3), np.ones(3))]
    assert "<b>" not in plots.legend(lines)
    assert "<i>" not in plots.line_chart(lines, title="<i>", x_label="<i>", y_label="<i>")
