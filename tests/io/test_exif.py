"""The focal in a picture's EXIF data: the formula, all orientations, absent and damaged data."""

import math

import numpy as np
import pytest
from PIL import ExifTags, Image

from align3r_jax.errors import UserError
from align3r_jax.io import exif, images


def write(path, focal, orientation=1, nested=True):
    data = Image.Exif()
    data[0x0112] = orientation
    tags = data.get_ifd(ExifTags.IFD.Exif) if nested else data
    if focal is not None:
        tags[0xA405] = focal
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path, exif=data)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_focal_in_pixels(tmp_path, orientation):
    """A 50 mm equivalent sees 2 atan(21.63 / 50) along the diagonal, whichever way up."""
    path = write(tmp_path / "a.jpg", 50, orientation)
    height, width = images.load_image(path).shape[:2]
    angle = 2 * math.atan(math.hypot(36, 24) / 2 / 50)
    expected = 0.5 * math.hypot(width, height) / math.tan(angle / 2)
    assert math.isclose(exif.read_focal(path), expected, rel_tol=1e-9)
    assert (height, width) == ((30, 40) if orientation < 5 else (40, 30))


def test_places_of_the_tag(tmp_path):
    assert exif.read_focal(write(tmp_path / "a.png", 36, nested=False)) == pytest.approx(
        36 * 50 / math.hypot(36, 24)
    )


@pytest.mark.parametrize("focal", [None, 0])
def test_no_focal(tmp_path, focal):
    assert exif.read_focal(write(tmp_path / "a.jpg", focal)) is None


def test_damaged_data_counts_as_none(tmp_path):
    path = write(tmp_path / "a.jpg", 50)
    content = path.read_bytes()
    start = content.index(b"Exif\x00\x00") + 6
    path.write_bytes(content[:start] + b"XX" + content[start + 2 :])
    assert exif.read_focal(path) is None


def test_no_picture(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot be read"):
        exif.read_focal(tmp_path / "a.jpg")
