"""Pictures of every kind come out as the right 8-bit RGB, in natural order."""

import cv2
import numpy as np
import pytest
from PIL import Image

from align3r_jax.errors import UserError
from align3r_jax.io import images

_RAMP = np.arange(48 * 40 * 3, dtype=np.uint32).reshape(48, 40, 3)
RGB = (_RAMP % 251).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm", "jpg"])
def test_formats(tmp_path, suffix):
    smooth = np.stack(np.broadcast_arrays(*np.ogrid[60:156:2, 90:170:2], 77), -1).astype(np.uint8)
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {"quality": 95} if suffix == "jpg" else {}
    Image.fromarray(smooth).save(path, **options)
    loaded = images.load_image(path)
    assert loaded.dtype == np.uint8 and loaded.shape == smooth.shape
    difference = np.abs(loaded.astype(int) - smooth).max()
    assert difference == 0 if suffix != "jpg" else difference <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """The stored pixels are turned so that the upright picture comes back."""
    upright = np.zeros((40, 64, 3), np.uint8)
    upright[:20, :32] = (255, 0, 0)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(images.load_image(tmp_path / "a.png"), upright)


def test_grey_alpha_palette_and_one_bit(tmp_path):
    grey = RGB[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(
        images.load_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, -1)
    )
    Image.fromarray(np.dstack([RGB, RGB[..., :1]])).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(images.load_image(tmp_path / "alpha.png"), RGB)
    Image.fromarray(np.dstack([grey, grey])).save(tmp_path / "grey_alpha.png")
    assert (images.load_image(tmp_path / "grey_alpha.png")[..., 1] == grey).all()
    few = (RGB // 64 * 64).astype(np.uint8)
    Image.fromarray(few).quantize(256).save(tmp_path / "palette.png")
    assert np.abs(images.load_image(tmp_path / "palette.png").astype(int) - few).max() <= 2
    Image.fromarray(grey > 100).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(
        images.load_image(tmp_path / "bit.png")[..., 0], np.where(grey > 100, 255, 0)
    )


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = (np.arange(48 * 40, dtype=np.uint16).reshape(48, 40) * 34).astype(np.uint16)
    expected = np.round(deep / 257).astype(np.uint8)
    for suffix in ("png", "tiff"):
        Image.fromarray(deep).save(tmp_path / f"grey.{suffix}")
        loaded = images.load_image(tmp_path / f"grey.{suffix}")
        np.testing.assert_array_equal(loaded[..., 1], expected)
    colour = np.stack([deep, deep[::-1], deep[:, ::-1]], axis=-1)
    cv2.imwrite(str(tmp_path / "rgb.png"), colour[..., ::-1])
    loaded = images.load_image(tmp_path / "rgb.png")
    assert np.abs(loaded.astype(int) - np.round(colour / 257)).max() <= 1
    Image.fromarray((deep / 65535).astype(np.float32)).save(tmp_path / "float.tiff")
    loaded = images.load_image(tmp_path / "float.tiff")
    assert np.abs(loaded[..., 0].astype(int) - expected).max() <= 1
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "wild.tiff")
    with pytest.raises(UserError, match=r"wild.tiff.*values from 0 to"):
        images.load_image(tmp_path / "wild.tiff")


def test_folders_and_globs_are_in_natural_order(tmp_path):
    for number in (10, 9, 1, 100):
        Image.fromarray(RGB).save(tmp_path / f"Frame{number}.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    wanted = ["Frame1", "Frame9", "Frame10", "Frame100"]
    assert [path.stem for path in images.list_images(tmp_path)] == wanted
    assert [path.stem for path in images.list_images(tmp_path / "*1*.png")] == [
        "Frame1",
        "Frame10",
        "Frame100",
    ]
    listed = images.list_images([tmp_path / "Frame9.png", tmp_path / "Frame1.png"])
    assert [path.stem for path in listed] == ["Frame9", "Frame1"]
    (tmp_path / "shot[1]").mkdir()
    Image.fromarray(RGB).save(tmp_path / "shot[1]" / "a.png")
    assert len(images.list_images(tmp_path / "shot[1]")) == 1


def test_names_stay_unique(tmp_path):
    paths = [tmp_path / "left" / "a.png", tmp_path / "right" / "a.png"]
    assert images.frame_names(paths) == ["left_a.png", "right_a.png"]
    assert images.frame_names([tmp_path / "a.png", tmp_path / "a.jpg"]) == ["a.png", "a.jpg"]
    with pytest.raises(UserError, match="listed twice"):
        images.frame_names([paths[0], paths[0]])


def test_bad_pictures_get_a_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        images.list_images(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no pictures"):
        images.list_images(tmp_path)
    with pytest.raises(UserError, match="matches no pictures"):
        images.list_images(tmp_path / "*.png")
    with pytest.raises(UserError, match=r"b\.png' does not exist"):
        images.list_images([tmp_path / "b.png"])
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UserError, match=r"text\.png' cannot be read"):
        images.load_image(tmp_path / "text.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        tmp_path / "whole.png"
    )
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cut\.png' cannot be read"):
        images.load_image(tmp_path / "cut.png")


def test_masks_of_prepared_frames_are_no_frames(tmp_path):
    for name in ("00_rgb.jpg", "00_mask.png", "01_mask.png"):
        Image.fromarray(RGB).save(tmp_path / name)
    listed = [path.name for path in images.list_images(tmp_path)]
    assert listed == ["00_rgb.jpg", "01_mask.png"]  # the second has no picture beside it
