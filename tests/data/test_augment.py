"""Draws in the recorded order, colours against formulas on 8 bit, views against recorded ones."""

import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from align3r_jax.errors import UserError
from align3r_jax.io import train_crop
from data import augment, view
from data.readers.training import TrainingFrame


@pytest.fixture
def recorded(golden_dir):
    return json.loads((golden_dir / "datasets.json").read_text())


def _options(case):
    return augment.Augmentation(
        scales=train_crop.FOCAL_SCALES if case["aug_f"] else (),
        extra=int(case["aug_crop"]),
        colours=None,
    )


def _matrix(fx, fy, cx, cy):
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


@pytest.mark.golden
def test_draws_come_in_the_reference_order(recorded):
    case = recorded["rng_draws"]
    generator = np.random.default_rng(case["seed"])
    draws = iter(case["sequence"])
    options = augment.Augmentation(colours=None)
    for name, expected in draws:
        if name == "choice3":
            drawn = augment.draw_crop(
                generator, (300, 500), _matrix(400, 400, 250, 150), (288, 512), options
            )
            kind, extra = next(draws)
            assert kind == "integers16" and (drawn.centre_scale, drawn.extra) == (expected, extra)
        else:
            square = augment.draw_crop(
                generator, (300, 300), _matrix(400, 400, 150, 150), (288, 512), augment.NONE
            )
            assert name == "integers2" and square == train_crop.CropDraw(portrait=bool(expected))


@pytest.mark.golden
def test_cameras_of_real_sizes_match_the_reference(recorded):
    assert recorded["k_only"]
    for case in recorded["k_only"]:
        width, height = case["input_wh"]
        goal = case["resolution"][::-1]
        drawn = augment.draw_crop(
            np.random.default_rng(case["rng_seed"]),
            (height, width),
            _matrix(*case["K"]),
            goal,
            _options(case),
        )
        steps = {step[0]: step for step in case["steps"]}
        assert (drawn.centre_scale is None) == ("center_crop_scale" not in steps)
        if drawn.centre_scale is not None:
            assert drawn.centre_scale == steps["center_crop_scale"][1]
        asked = steps["resize_to_at_least"][1]
        assert asked == [side + (drawn.extra or 0) for side in goal[::-1]]
        cropped = train_crop.crop_view(
            train_crop.View(np.zeros((height, width, 3), np.uint8), {}, _matrix(*case["K"])),
            goal,
            drawn,
        )
        got = cropped.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
        np.testing.assert_allclose(got, case["out_K"], atol=1e-3)
        assert cropped.shape == tuple(case["out_wh"][::-1])


@pytest.mark.golden
def test_views_match_the_reference(recorded, golden_dir):
    arrays = np.load(golden_dir / "datasets.npz")
    assert recorded["cases"]
    for case in recorded["cases"]:
        name = f"case{case['index']}"
        frame = TrainingFrame(
            arrays[f"{name}/rgb"],
            arrays[f"{name}/depth"],
            arrays[f"{name}/K"].astype(np.float64),
            np.eye(4),
            prior_depth=arrays[f"{name}/mono"],
        ).check(name)
        generator = np.random.default_rng(case["rng_seed"])
        got = view.training_view(
            frame, tuple(case["resolution"][::-1]), _options(case), generator, generator
        )
        out = {key: arrays[f"{name}/out_{key}"] for key in ("rgb", "depth", "prior", "K")}
        np.testing.assert_array_equal(got.image, out["rgb"], name)
        np.testing.assert_array_equal(got.depth, out["depth"], name)
        np.testing.assert_allclose(got.prior_points, out["prior"], atol=1e-6)
        np.testing.assert_allclose(got.intrinsics, out["K"], atol=1e-3)
        assert got.prior_points.dtype == got.depth.dtype == np.float32 and not got.portrait


def _picture(seed=0, shape=(30, 40)):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def test_colours_are_pillows_one_after_the_other():
    image = _picture()
    draw = augment.ColourDraw((2, 0, 1), 1.3, 0.6, 1.4, 0.0)
    expected = Image.fromarray(image)
    for enhance, factor in (
        (ImageEnhance.Color, 1.4), (ImageEnhance.Brightness, 1.3), (ImageEnhance.Contrast, 0.6),
    ):  # fmt: skip
        expected = enhance(expected).enhance(factor)
    np.testing.assert_array_equal(augment.apply_colours(image, draw), np.asarray(expected))


def test_colours_follow_their_formulas():
    image = _picture(1)
    grey = image @ np.array([0.299, 0.587, 0.114])

    def only(step, **amounts):
        values = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, **amounts}
        return augment.apply_colours(image, augment.ColourDraw((step,), **values)).astype(float)

    def near(got, expected, levels):
        assert np.abs(got - np.clip(expected, 0, 255)).max() <= levels

    near(only(0, brightness=0.7), 0.7 * image, 1)
    near(only(0, brightness=1.4), 1.4 * image, 1)
    near(only(1, contrast=0.6), 0.6 * image + 0.4 * grey.mean(), 1.5)
    near(only(2, saturation=1.5), 1.5 * image - 0.5 * grey[..., None], 2)
    # A third of a circle turns red into green into blue (85 of 256 steps).
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 200
    turned = augment.apply_colours(red, augment.ColourDraw((3,), 1, 1, 1, 1 / 3))
    assert turned[0, 0].argmax() == 1 and turned[0, 0, 1] == 200
    turned = augment.apply_colours(red, augment.ColourDraw((3,), 1, 1, 1, -1 / 3))
    assert turned[0, 0].argmax() == 2


def test_hue_turns_the_8_bit_value_and_truncates():
    image = _picture(2)
    for turn in (0.0999, -0.0999, 0.05):
        hsv = np.array(Image.fromarray(image).convert("HSV"))
        hsv[..., 0] = (hsv[..., 0].astype(int) + int(np.trunc(255 * turn))) % 256
        expected = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
        got = augment.apply_colours(image, augment.ColourDraw((3,), 1, 1, 1, turn))
        np.testing.assert_array_equal(got, expected)


def test_colour_draws_have_their_ranges_and_all_orders():
    generator = np.random.default_rng(0)
    draws = [augment.draw_colours(generator, augment.ColourJitter()) for _ in range(2000)]
    for name, low, high in (
        ("brightness", 0.5, 1.5), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5),
        ("hue", -0.1, 0.1),
    ):  # fmt: skip
        values = np.array([getattr(draw, name) for draw in draws])
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high >= values.max() > high - 0.05 * (high - low)
        assert abs(values.mean() - (low + high) / 2) < 0.03 * (high - low)
    assert len({draw.order for draw in draws}) == 24


def test_field_of_view_of_monst3r():
    options = augment.augmentation("monst3r")
    generator = np.random.default_rng(0)
    centred = _matrix(300, 300, 100, 60)
    scales = np.array(
        [
            augment.draw_crop(generator, (120, 200), centred, (64, 112), options).centre_scale
            for _ in range(3000)
        ]
    )
    # Beta(1/2, 1/2): mean 1/2, variance 1/8, a third of the mass below 1/4
    shares = (scales - 0.9) / 0.1
    assert shares.min() >= 0 and shares.max() <= 1
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(0.125, abs=0.01)
    assert (shares < 0.25).mean() == pytest.approx(1 / 3, abs=0.03)
    off = _matrix(300, 300, 40, 60)
    with pytest.raises(UserError, match="within 0.2 of the size"):
        augment.draw_crop(generator, (120, 200), off, (64, 112), options)
    augment.draw_crop(generator, (120, 200), off, (64, 112), augment.PRESETS["align3r"])


def test_augmentation_by_name_and_by_fields():
    assert augment.augmentation("none") == augment.NONE
    made = augment.augmentation({"preset": "monst3r", "extra": 4, "colours": {"hue": 0.0}})
    assert made.focal_beta == 0.9 and made.extra == 4 and made.colours.hue == 0.0
    assert augment.augmentation({"scales": [0.5]}).scales == (0.5,)
    for bad, message in (
        ("alignr", "known are none, align3r"),
        ({"extr": 3}, "Did you mean 'extra'"),
        ({"colours": {"hues": 1}}, "Did you mean 'hue'"),
        ({"scales": [1.2]}, r"\(0, 1\]"),
        ({"focal_beta": 0.9}, "Choose scales or focal_beta"),
        ({"extra": -1}, "at least 0"),
        ({"colours": {"hue": 0.7}}, r"\[0, 0.5\]"),
        ({"wander": 7}, "even number"),
    ):
        with pytest.raises(UserError, match=message):
            augment.augmentation(bad)


def _ramp_frame(height, width, seed=0):
    """A frame whose prior depth is known in closed form and whose image names its pixel."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns % 256, rows % 256, 0 * rows], axis=-1).astype(np.uint8)
    depth = (1 + 0.01 * rows + 0.02 * columns).astype(np.float32)
    intrinsics = _matrix(1.1 * width, 1.2 * width, width / 2 - 0.3, height / 2 + 0.2)
    return TrainingFrame(image, depth, intrinsics, np.eye(4), prior_depth=2 * depth)


@pytest.mark.parametrize("shape", [(60, 100), (100, 60)])
@pytest.mark.parametrize("wander", [0, 12])
def test_cameras_and_maps_stay_on_the_pixels_in_both_orientations(shape, wander):
    """Points from the stored arrays must be points of the camera, whatever was done to them."""
    frame = _ramp_frame(*shape)
    options = augment.Augmentation(scales=(0.9,), extra=5, wander=wander, colours=None)
    got = view.training_view(
        frame, (32, 48), options, np.random.default_rng(1), np.random.default_rng(2)
    )
    assert got.image.shape == (32, 48, 3) and got.prior_points.shape == (32, 48, 3)
    assert got.portrait == (shape[0] > shape[1])
    rows, columns = np.mgrid[:32, :48]
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    points = (pixels @ np.linalg.inv(got.intrinsics).T) * got.depth[..., None]
    # Back in the picture as it was, the depth there is the stored one (nearest neighbour).
    seen = points @ frame.intrinsics.T
    column, row = seen[..., 0] / seen[..., 2], seen[..., 1] / seen[..., 2]
    assert np.abs(1 + 0.01 * row + 0.02 * column - got.depth).max() < 0.03 * 1.5
    # The prior is scaled over the whole picture: its Z from the known minimum and maximum.
    prior = frame.prior_depth
    expected = (2 * got.depth - prior.min()) / (prior.max() - prior.min())
    np.testing.assert_allclose(got.prior_points[..., 2], expected, atol=1e-5)
    x = (column - shape[1] / 2) * 2 * got.depth
    full = (np.arange(shape[1]) - shape[1] / 2) * prior
    expected = (x - full.min()) / (full.max() - full.min())
    assert np.abs(got.prior_points[..., 0] - expected).max() < 0.03


def test_crops_of_pre_training_lie_anywhere_and_carry_their_cameras():
    options = augment.augmentation({"preset": "croco", "colours": None})
    frame = _ramp_frame(90, 160)
    generator = np.random.default_rng(0)
    camera = frame.intrinsics
    shifts = np.array(
        [
            augment.draw_crop(generator, (90, 160), camera, (56, 56), options).shift
            for _ in "x" * 4000
        ]
    )
    # Uniform on -16 ... 16 in both directions, which know nothing of each other.
    assert shifts.min() == -16 and shifts.max() == 16
    np.testing.assert_allclose(shifts.var(0), (33**2 - 1) / 12, rtol=0.05)
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.05

    def crop(rows, columns):
        draw = train_crop.CropDraw(extra=32, shift=(rows, columns))
        view = train_crop.View(frame.image, {"depth": frame.depth}, frame.intrinsics)
        return train_crop.crop_view(view, (56, 56), draw)

    middle, moved = crop(0, 0), crop(-16, 9)
    np.testing.assert_allclose(
        moved.intrinsics - middle.intrinsics, [[0, 0, -9], [0, 0, 16], [0] * 3]
    )
    np.testing.assert_array_equal(moved.image[16:, :-9], middle.image[:-16, 9:])
    np.testing.assert_array_equal(moved.maps["depth"][16:, :-9], middle.maps["depth"][:-16, 9:])
    assert crop(16, -16).shape == crop(-16, 16).shape == (56, 56)


def test_views_of_a_pair_are_cropped_and_coloured_each_on_its_own():
    frame, options = _ramp_frame(90, 160), augment.PRESETS["croco"]

    def pair(seed):
        crops, colours = np.random.default_rng(seed), np.random.default_rng((seed, 1))
        return [view.training_view(frame, (56, 56), options, crops, colours) for _ in range(2)]

    first, second = pair(0)
    assert not np.array_equal(first.intrinsics, second.intrinsics)
    # Where both views see one pixel of the frame, one is brighter all over.
    column, row = np.rint((first.intrinsics - second.intrinsics)[:2, 2]).astype(int)
    cut = lambda n: (slice(max(n, 0), 56 + min(n, 0)), slice(max(-n, 0), 56 + min(-n, 0)))  # noqa: E731
    (rows1, rows2), (columns1, columns2) = cut(row), cut(column)
    depths = first.depth[rows1, columns1], second.depth[rows2, columns2]
    np.testing.assert_array_equal(*depths)
    assert not np.array_equal(first.image[rows1, columns1], second.image[rows2, columns2])
    for got, again in zip((first, second), pair(0)):
        np.testing.assert_array_equal(got.image, again.image)


def test_no_turn_of_the_hue_leaves_every_colour():
    every = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), -1).reshape(18, -1, 3)
    still = augment.ColourDraw((3,), 1, 1, 1, 0.0)
    np.testing.assert_array_equal(augment.apply_colours(every.astype(np.uint8), still), every)
    draws = [
        augment.draw_colours(np.random.default_rng(k), augment.PRESETS["croco"].colours)
        for k in range(200)
    ]
    factors = np.array([(d.brightness, d.contrast, d.saturation) for d in draws])
    assert 0.6 <= factors.min() < 0.62 and 1.38 < factors.max() <= 1.4
    assert all(draw.hue == 0 for draw in draws)


def test_relative_pose_is_in_the_first_camera():
    first, second = _ramp_frame(8, 8), _ramp_frame(8, 8)
    turn = np.array([[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1.0]])
    moved = np.eye(4)
    moved[:3, 3] = (5, 6, 7)
    first = TrainingFrame(first.image, first.depth, first.intrinsics, turn)
    second = TrainingFrame(second.image, second.depth, second.intrinsics, moved)
    relative = view.cam1_from_cam2(first, second)
    # the centre of camera 2, (5, 6, 7) in the world, is (4, 4, 4) away from camera 1
    np.testing.assert_allclose(relative[:3, 3], turn[:3, :3].T @ [4, 4, 4])
    np.testing.assert_allclose(turn @ relative, moved, atol=1e-12)
