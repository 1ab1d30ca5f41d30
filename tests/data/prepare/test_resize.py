"""The published preprocessing of training pictures, against recorded sizes and cameras."""

import json

import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.io.train_crop import View
from data.prepare import resize
from data.readers.training import TrainingFrame


def camera(fx, fy, cx, cy):
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


@pytest.mark.golden
def test_boxes_sizes_and_cameras_are_the_recorded_ones(golden_dir):
    for case in json.loads((golden_dir / "datasets.json").read_text())["preprocess"]:
        width, height = case["input_wh"]
        intrinsics = camera(*case["K_in"])
        assert list(resize.principal_box((height, width), intrinsics)) == case["crop"]
        assert list(resize.asked_size((height, width), 512)[::-1]) == case["asked_wh"]
        view = View(np.zeros((height, width, 3), np.uint8), {}, intrinsics)
        out = resize.prepare_view(view, 512)
        assert [out.shape[1], out.shape[0]] == case["out_wh"]
        np.testing.assert_allclose(out.intrinsics, camera(*case["K_out"]), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [((480, 640), 512, (384, 512)), ((600, 600), 512, (512, 512)), ((640, 480), 512, (512, 384)),
     ((60, 80), 32, (24, 32)), ((108, 192), 32, (24, 42))],
)  # fmt: skip
def test_short_side_rule_with_its_floor(shape, size, expected):
    assert resize.asked_size(shape, size) == expected


def test_maps_prior_and_focal_follow_the_picture():
    """A pixel keeps its viewing ray and its depth: (u - cx) / fx before and after."""
    rows, columns = np.mgrid[:90, :160].astype(np.float32)
    intrinsics = camera(120.0, 120.0, 70.2, 44.0)
    ray = ((columns - intrinsics[0, 2]) / intrinsics[0, 0]).astype(np.float32)
    frame = TrainingFrame(
        np.repeat(columns.astype(np.uint8)[..., None], 3, -1), 2 + ray, intrinsics, np.eye(4),
        prior_depth=ray, prior_focal=60.0,
    )  # fmt: skip
    out = resize.prepare_frame(frame, 64).check("resized")
    height, width = out.image.shape[:2]
    new = (np.arange(width) - out.intrinsics[0, 2]) / out.intrinsics[0, 0]
    # Nearest neighbour by floor is off by one source pixel, rounding to whole sizes by a part.
    one_pixel = 1 / 120.0
    np.testing.assert_allclose(out.depth - 2, np.tile(new, (height, 1)), atol=1.4 * one_pixel)
    np.testing.assert_array_equal(out.depth, 2 + out.prior_depth)
    assert out.prior_focal == pytest.approx(out.intrinsics[0, 0] / 2)
    # 140 x 88 about the principal point, covering floor((160, 90) * 48 / 90).
    assert out.image.shape[:2] == (53, 85)
    assert resize.prepare_frame(frame, 0) is frame


@pytest.mark.parametrize("point", [(-3.0, 20.0), (80.0, 20.0), (20.0, 61.0), (0.4, 30.0)])
def test_a_principal_point_outside_is_a_sentence(point):
    with pytest.raises(UserError, match="principal point"):
        resize.principal_box((60, 80), camera(50, 50, *point))
