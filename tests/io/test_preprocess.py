"""Working sizes, resizing and prior point maps against the recorded numbers and by hand."""

import numpy as np
import pytest
from PIL import Image

from align3r_jax.errors import UserError
from align3r_jax.io import preprocess, train_crop

POINTMAP_TOLERANCE = 2e-6


def _cases(recorded) -> list[str]:
    return sorted(key.removesuffix("_args") for key in recorded if key.endswith("_args"))


def _seed(recorded) -> int:
    return int(recorded["seed"]) if "seed" in recorded else 0


def _image(weights, name, shape, seed):
    waves = weights.image(name, (*shape, 3), seed)
    return np.clip(np.round((waves + 1) * 127.5), 0, 255).astype(np.uint8)


def _depth(weights, name, shape, seed):
    return np.float32(2) + weights.image(name, (*shape, 1), seed)[..., 0] * np.float32(1.5)


@pytest.mark.golden
def test_images_and_pointmaps_match_the_reference(golden_dir, golden_weights):
    recorded = dict(np.load(golden_dir / "network_preprocess.npz"))
    seed = _seed(recorded)
    assert _cases(recorded)
    for case in _cases(recorded):
        height, width, depth_height, depth_width, size, crop = map(int, recorded[f"{case}_args"])
        image = _image(golden_weights, f"pre_{case}", (height, width), seed)
        depth = _depth(golden_weights, f"pre_depth_{case}", (depth_height, depth_width), seed)
        plan = preprocess.plan_working_size((height, width), size, crop=bool(crop))
        working = preprocess.to_working_size(image, plan)
        native = preprocess.normalised_pointmap(depth, focal=700.0)
        pointmap = preprocess.pointmap_to_working(native, plan)

        shapes = (*working.shape[:2], *pointmap.shape[:2])
        assert shapes == tuple(recorded[f"{case}_out_hw"]), case
        assert working.shape[:2] == plan.working, case
        np.testing.assert_array_equal(working[::4, ::4], recorded[f"{case}_img"], err_msg=case)
        first_row = preprocess.network_input(working)[0, ::16].T
        np.testing.assert_array_equal(first_row, recorded[f"{case}_norm_first_row"], err_msg=case)
        for got, name in (
            (native[::16, ::16], "pointmap_native"),
            (pointmap[::8, ::8], "pointmap"),
        ):
            expected = recorded[f"{case}_{name}"]
            assert got.dtype == np.float32
            assert np.abs(got - expected).max() <= POINTMAP_TOLERANCE, (case, name)


@pytest.mark.golden
def test_training_crops_match_the_reference(golden_dir, golden_weights):
    recorded = dict(np.load(golden_dir / "network_train_crop.npz"))
    seed = _seed(recorded)
    assert _cases(recorded)
    for case in _cases(recorded):
        height, width, fx, fy, cx, cy, goal_width, goal_height, scale, extra = recorded[
            f"{case}_args"
        ]
        shape = (int(height), int(width))
        image = _image(golden_weights, f"train_{case}", shape, seed)
        mono = _depth(golden_weights, f"train_mono_{case}", shape, seed)
        maps = {
            "depth": _depth(golden_weights, f"train_depth_{case}", shape, seed),
            "pointmap": preprocess.normalised_pointmap(mono, focal=fx),
        }
        intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        draw = train_crop.CropDraw(
            centre_scale=None if scale < 0 else float(scale),
            extra=None if extra < 0 else int(extra),
        )
        view = train_crop.crop_view(
            train_crop.View(image, maps, intrinsics), (int(goal_height), int(goal_width)), draw
        )
        assert view.shape == (int(goal_height), int(goal_width)), case
        np.testing.assert_array_equal(view.image[::8, ::8], recorded[f"{case}_img"], err_msg=case)
        np.testing.assert_array_equal(
            view.maps["depth"][::4, ::4], recorded[f"{case}_depth"], err_msg=case
        )
        difference = np.abs(view.maps["pointmap"][::8, ::8] - recorded[f"{case}_pointmap"]).max()
        assert difference <= POINTMAP_TOLERANCE, case
        np.testing.assert_allclose(view.intrinsics, recorded[f"{case}_K"], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(
    ("original", "size", "working"),
    [
        ((436, 1024), 512, (208, 512)),
        ((480, 640), 512, (384, 512)),
        ((1080, 1920), 512, (288, 512)),
        ((375, 1242), 512, (144, 512)),
        ((640, 361), 512, (512, 288)),
        ((700, 700), 512, (384, 512)),
        ((700, 700), 224, (224, 224)),
        ((1080, 1920), 224, (224, 224)),
        ((1920, 1080), 320, (320, 176)),
        ((500, 500), 240, (176, 240)),
        ((120, 160), 256, (192, 256)),
    ],
)
def test_working_sizes(original, size, working):
    for crop in (True, False):
        plan = preprocess.plan_working_size(original, size, crop=crop)
        assert plan.working == working
        image = np.zeros((*original, 3), np.uint8)
        assert preprocess.to_working_size(image, plan).shape == (*working, 3)
        pointmap = np.zeros((*original, 3), np.float32)
        assert preprocess.pointmap_to_working(pointmap, plan).shape == (*working, 3)
        assert preprocess.depth_to_working(pointmap[..., 0], plan).shape == working


def test_square_frames_stay_square_when_asked():
    assert preprocess.plan_working_size((600, 600), square_ok=True).working == (512, 512)


def test_too_thin_and_too_small_are_refused():
    with pytest.raises(UserError, match="too long and thin"):
        preprocess.plan_working_size((32, 3000), 512)
    with pytest.raises(UserError, match="at least 32"):
        preprocess.plan_working_size((480, 640), 16)


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("original", [(437, 1021), (640, 361), (90, 131)])
def test_working_size_says_where_pixels_went(original, crop):
    """A ramp of x (then y), resized, holds at each pixel the coordinate that the struct states."""
    plan = preprocess.plan_working_size(original, 256, crop=crop)
    for axis in (0, 1):
        ramp = np.arange(original[axis], dtype=np.float32)
        depth = np.broadcast_to(ramp[:, None] if axis == 0 else ramp[None], original)
        got = preprocess.depth_to_working(np.ascontiguousarray(depth), plan)
        scale = plan.original[axis] / plan.resized[axis]
        expected = (np.arange(plan.working[axis]) + plan.crop[axis] + 0.5) * scale - 0.5
        inside = (expected > 0) & (expected < original[axis] - 1)
        line = got[:, 0] if axis == 0 else got[0]
        np.testing.assert_allclose(line[inside], expected[inside], atol=5e-3)


def test_image_crop_matches_the_struct():
    """The working image lies where the struct says: found again in a separate plain resize."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (375, 1242, 3), np.uint8)
    plan = preprocess.plan_working_size(image.shape[:2], 512)
    plain = np.asarray(Image.fromarray(image).resize(plan.resized[::-1], Image.Resampling.LANCZOS))
    top, left = plan.crop
    expected = plain[top : top + plan.working[0], left : left + plan.working[1]]
    np.testing.assert_array_equal(preprocess.to_working_size(image, plan), expected)


def test_valid_mask_is_false_on_black_only():
    image = np.zeros((1, 4, 3), np.uint8)
    image[0, 1] = (1, 1, 0)  # sum 2 / 255 < 0.01
    image[0, 2] = (3, 0, 0)
    image[0, 3] = 255
    np.testing.assert_array_equal(preprocess.valid_mask(image), [[False, False, True, True]])


def test_pointmap_ignores_focal_and_scale_and_survives_degenerate_depth():
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 4, (30, 40)).astype(np.float32)
    reference = preprocess.normalised_pointmap(depth, 700.0)
    np.testing.assert_allclose(
        preprocess.normalised_pointmap(3 * depth, 200.0), reference, atol=1e-6
    )
    assert reference.min() == 0 and reference.max() == 1

    flat = preprocess.normalised_pointmap(np.full((30, 40), 2.0, np.float32))
    np.testing.assert_allclose(flat[3, :, 0], np.arange(40) / 39, atol=1e-6)
    assert (flat[..., 2] == 0).all()

    holes = depth.copy()
    holes[0, 0], holes[5, 5] = np.inf, np.nan
    patched = preprocess.normalised_pointmap(holes)
    assert np.isfinite(patched).all()
    assert (patched[0, 0] == 0).all() and (patched[5, 5] == 0).all()
    assert patched[..., 2].max() == 1
    assert (preprocess.normalised_pointmap(np.full((4, 4), np.nan)) == 0).all()


def test_missing_depth_does_not_leak_into_its_neighbours():
    depth = np.full((64, 96), 3.0, np.float32)
    depth[:, 48:] = np.nan
    plan = preprocess.plan_working_size((64, 96), 48)
    working = preprocess.depth_to_working(depth, plan)
    known = np.isfinite(working)
    np.testing.assert_allclose(working[known], 3.0, rtol=1e-6)
    assert known[:, :23].all() and not known[:, 25:].any()


def test_portrait_targets_and_bad_views_in_training_crops():
    view = train_crop.View(
        np.zeros((600, 400, 3), np.uint8),
        {"depth": np.ones((600, 400), np.float32)},
        np.array([[300.0, 0, 200], [0, 300, 300], [0, 0, 1]]),
    )
    assert train_crop.crop_view(view, (288, 512)).shape == (512, 288)
    square = train_crop.View(
        view.image[100:500], {}, view.intrinsics - [[0] * 3, [0, 0, 100], [0] * 3]
    )
    assert train_crop.crop_view(square, (288, 512)).shape == (288, 512)
    portrait = train_crop.CropDraw(portrait=True)
    assert train_crop.crop_view(square, (288, 512), portrait).shape == (512, 288)
    with pytest.raises(ValueError, match="Map 'depth'"):
        train_crop.crop_view(
            train_crop.View(view.image, {"depth": np.ones((3, 4))}, view.intrinsics), (64, 64)
        )


def test_training_intrinsics_follow_the_pixels():
    """A coordinate ramp carried as a map tells where each output pixel came from."""
    height, width = 300, 470
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    focal, centre = 350.0, np.array([230.3, 149.6])
    rays = np.stack([(columns - centre[0]) / focal, (rows - centre[1]) / focal], axis=-1)
    intrinsics = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
    view = train_crop.crop_view(
        train_crop.View(np.zeros((height, width, 3), np.uint8), {"rays": rays}, intrinsics),
        (128, 224),
        train_crop.CropDraw(centre_scale=0.9, extra=7),
    )
    rows, columns = np.mgrid[: view.shape[0], : view.shape[1]]
    x = view.intrinsics[0, 0] * view.maps["rays"][..., 0] + view.intrinsics[0, 2]
    y = view.intrinsics[1, 1] * view.maps["rays"][..., 1] + view.intrinsics[1, 2]
    # nearest neighbour (rounded down) and the remainder of the rounded size: about a pixel
    for difference in (np.abs(x - columns), np.abs(y - rows)):
        assert difference.max() < 1.25 and difference.mean() < 0.75
