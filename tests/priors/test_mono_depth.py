"""The depth prior from every source lands on the right pixels, in the right units."""

import numpy as np
import pytest

from align3r_jax.errors import UserError
from align3r_jax.io import depth_files, preprocess
from align3r_jax.priors import mono_depth
from align3r_jax.structs import Frames

ORIGINAL = (90, 131)
COUNT = 3


def _clip(crop=True) -> tuple[Frames, np.ndarray]:
    originals = np.random.default_rng(0).integers(0, 255, (COUNT, *ORIGINAL, 3), np.uint8)
    plan = preprocess.plan_working_size(ORIGINAL, 64, crop=crop)
    images = np.stack([preprocess.to_working_size(image, plan) for image in originals])
    return Frames(images, np.arange(COUNT) / 10, plan, ("a", "b", "c")), originals


def _ramp(shape: tuple[int, int]) -> np.ndarray:
    """1 + 0.01 x + 0.02 y of the original pixel under each pixel of a map of `shape`."""
    y, x = ((np.arange(side) + 0.5) * full / side - 0.5 for side, full in zip(shape, ORIGINAL))
    return (1 + 0.01 * x[None] + 0.02 * y[:, None]).astype(np.float32)


def _expected(plan) -> np.ndarray:
    y, x = (
        (np.arange(plan.working[k]) + plan.crop[k] + 0.5) * plan.original[k] / plan.resized[k] - 0.5
        for k in (0, 1)
    )
    return (1 + 0.01 * x[None] + 0.02 * y[:, None]).astype(np.float32)


def _model(depth, focal=None, inverse=False, metric=False):
    return {"net": lambda images: (depth, focal, inverse, metric)}


def test_none_and_plane():
    frames, originals = _clip()
    assert mono_depth.estimate_depth(frames, originals, "none") is None
    plane = mono_depth.estimate_depth(frames, None, "plane")
    assert plane.depth.shape == frames.images.shape[:3] and (plane.depth == 1).all()
    assert plane.focal is None and not plane.inverse and not plane.metric


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("shape", [ORIGINAL, (45, 66), (180, 262)])
def test_a_network_map_of_any_size_lands_on_its_pixels(shape, crop):
    frames, originals = _clip(crop)
    native = np.stack([_ramp(shape) * k for k in (1, 2, 3)])
    prior = mono_depth.estimate_depth(
        frames, originals, "net", models=_model(native, focal=0.9 * shape[1], metric=True)
    )
    np.testing.assert_array_equal(prior.native, native)
    expected = _expected(frames.size)
    np.testing.assert_allclose(prior.depth[1, 2:-2, 2:-2], 2 * expected[2:-2, 2:-2], rtol=4e-3)
    assert prior.metric and prior.name == "net"
    # the same field of view in working pixels; without a crop the axes shrink unequally
    ratio = np.sqrt(np.prod(frames.size.resized) / np.prod(ORIGINAL))
    assert prior.focal.shape == (COUNT,)
    np.testing.assert_allclose(prior.focal, 0.9 * ORIGINAL[1] * ratio, rtol=0.01)


def test_a_network_fed_with_working_images_covers_the_crop_only():
    frames, _ = _clip()
    height, width = frames.size.working
    fine = np.kron(_expected(frames.size), np.ones((2, 2), np.float32))
    model = _model(np.stack([fine] * COUNT), focal=100.0)
    prior = mono_depth.estimate_depth(frames, None, "net", models=model)
    np.testing.assert_allclose(prior.depth[0], _expected(frames.size), rtol=1e-5)
    np.testing.assert_allclose(prior.focal, 50.0, rtol=1e-6)
    assert prior.native.shape[1:] == frames.size.resized
    assert np.isnan(prior.native[0]).sum() == np.prod(frames.size.resized) - height * width
    same = mono_depth.estimate_depth(frames, frames.images, "net", models=model)
    np.testing.assert_array_equal(same.depth, prior.depth)


def test_inverse_depth_is_inverted_once_and_zero_is_far():
    frames, originals = _clip()
    inverse = 1 / np.stack([_ramp(ORIGINAL)] * COUNT)
    inverse[:, :45] = 0
    prior = mono_depth.estimate_depth(
        frames, originals, "net", models=_model(inverse, inverse=True)
    )
    assert prior.inverse
    np.testing.assert_array_equal(prior.native, inverse)
    assert np.isfinite(prior.depth).all()
    np.testing.assert_allclose(prior.depth[0, -10:], _expected(frames.size)[-10:], rtol=5e-3)
    assert 50 < prior.depth[0, :10].min() == prior.depth[0, :10].max()


def test_missing_and_non_positive_depth():
    frames, originals = _clip()
    native = np.stack([_ramp(ORIGINAL)] * COUNT)
    native[0, :, 100:] = np.nan
    native[1, :, 100:] = np.inf
    native[2, :, 100:] = 0
    prior = mono_depth.estimate_depth(frames, originals, "net", models=_model(native))
    assert np.isnan(prior.depth[..., -10:]).all()
    assert np.isfinite(prior.depth[..., :40]).all()


def test_files(tmp_path):
    frames, originals = _clip()
    for k, name in enumerate(frames.names):
        depth_files.write_depth(
            tmp_path / f"{name}_pred_depth_depthpro.npz", _ramp(ORIGINAL) + k, focal=120.0 + k
        )
    prior = mono_depth.estimate_depth(frames, originals, f"files:{tmp_path}")
    assert prior.metric and prior.name == "files"
    np.testing.assert_allclose(prior.depth[2], _expected(frames.size) + 2, rtol=1e-3)
    ratio = np.sqrt(64 / 131 * frames.size.resized[0] / 90)
    np.testing.assert_allclose(prior.focal, np.array([120, 121, 122]) * ratio, rtol=1e-6)


@pytest.mark.parametrize(
    ("native", "sentence"),
    [
        (np.full((COUNT, 9, 13), np.nan), "no usable depth .* frame 'a'"),
        (np.stack([_ramp((9, 13)), np.zeros((9, 13)), _ramp((9, 13))]), "frame 'b'"),
        (np.full((COUNT, 9, 13), 2.5), r"constant, 2\.5 everywhere"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_priors_that_say_nothing(native, sentence):
    frames, originals = _clip()
    with pytest.raises(UserError, match=sentence):
        mono_depth.estimate_depth(frames, originals, "net", models=_model(native))


def test_all_zero_inverse_depth():
    frames, originals = _clip()
    model = _model(np.zeros((COUNT, 9, 13)), inverse=True)
    with pytest.raises(UserError, match="no usable depth"):
        mono_depth.estimate_depth(frames, originals, "net", models=model)


def test_bad_requests():
    frames, originals = _clip()
    native = np.stack([_ramp(ORIGINAL)] * COUNT)
    with pytest.raises(UserError, match="'deep' is unknown; known are none, plane, files:DIR, net"):
        mono_depth.estimate_depth(frames, originals, "deep", models=_model(native))
    with pytest.raises(UserError, match="does not exist"):
        mono_depth.estimate_depth(frames, originals, "files:/no/such/folder")
    with pytest.raises(UserError, match="not positive"):
        mono_depth.estimate_depth(frames, originals, "net", models=_model(native, focal=-1.0))
    with pytest.raises(ValueError, match="originals are"):
        mono_depth.estimate_depth(frames, originals[:, :50], "net", models=_model(native))
    with pytest.raises(ValueError, match="returned"):
        mono_depth.estimate_depth(frames, originals, "net", models=_model(native[:2]))


def test_networks_with_a_checksum_are_cached_by_content(tmp_path):
    frames, originals = _clip()
    calls = []

    class Model:
        checksum = "v1"

        def __call__(self, images):
            calls.append(images.shape)
            depth = images[..., 0].astype(np.float32) + 1
            return depth, np.float32(70), True, True

    model = Model()
    run = lambda images: mono_depth.estimate_depth(  # noqa: E731
        frames, images, "net", cache_dir=tmp_path, models={"net": model}
    )
    first, second = run(originals), run(originals)
    assert len(calls) == 1
    for name in ("native", "depth", "focal"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert second.inverse and second.metric
    changed = originals.copy()
    changed[1, 5, 5] ^= 1
    run(changed)
    model.checksum = "v2"
    run(originals)
    assert len(calls) == 3
    del Model.checksum, model.checksum
    run(originals)
    run(originals)
    assert len(calls) == 5
