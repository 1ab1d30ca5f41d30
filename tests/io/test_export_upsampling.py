"""Depth at the original size: what must stay exact, and edges where the picture has them."""

import numpy as np
import pytest

from align3r_jax.io import joint_upsampling
from align3r_jax.structs import WorkingSize

# Anisotropic, with a crop: 3.2 and 3 original pixels per working pixel.
SIZE = WorkingSize(original=(96, 128), resized=(32, 40), crop=(2, 4), working=(28, 32))


def grids():
    """Columns and rows of the working pixels; where original pixels lie among them."""
    u, v = np.meshgrid(np.arange(32.0), np.arange(28.0))
    x = (np.arange(128) + 0.5) * 40 / 128 - 0.5 - 4
    y = (np.arange(96) + 0.5) * 32 / 96 - 0.5 - 2
    x, y = np.meshgrid(x, y)
    return u, v, x, y


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def test_original_pixels_lie_where_the_size_says():
    _, _, x, y = grids()
    columns, rows = joint_upsampling.working_coordinates(SIZE)
    np.testing.assert_allclose(columns, x[0])
    np.testing.assert_allclose(rows, y[:, 0])


def test_a_constant_stays_exactly_constant_whatever_the_picture():
    depth = np.full((28, 32), 3.7, np.float32)
    result = joint_upsampling.upsample_depth(depth, noise((28, 32)), noise((96, 128), 1), SIZE)
    _, _, x, y = grids()
    inside = (x >= -0.5) & (x < 31.5) & (y >= -0.5) & (y < 27.5)
    assert inside.any() and not inside.all()
    assert result.dtype == np.float32 and (result[inside] == np.float32(3.7)).all()
    assert np.isnan(result[~inside]).all()


def test_texture_leaves_no_relief_on_a_slanted_plane():
    u, v, x, y = grids()
    plane = lambda u, v: 1 / (0.1 + 0.004 * u + 0.007 * v)  # noqa: E731
    result = joint_upsampling.upsample_depth(
        plane(u, v).astype(np.float32), noise((28, 32)), noise((96, 128), 1), SIZE
    )
    inside = (x >= 0) & (x <= 31) & (y >= 0) & (y <= 27)
    np.testing.assert_allclose(result[inside], plane(x, y)[inside], rtol=2e-6)


def step(position=13.3):
    """A near half with one colour before a far one with another; truth at the original size."""
    u, _, x, _ = grids()
    depth = np.where(u < position, 2.0, 4.0).astype(np.float32)
    pictures = [
        np.where((grid < position)[..., None], [200, 60, 40], [40, 90, 160]).astype(np.uint8)
        for grid in (u, x)
    ]
    return depth, *pictures, np.where(x < position, 2.0, 4.0)


@pytest.mark.parametrize("position", [12.9, 13.3, 13.6])
def test_an_edge_in_the_picture_keeps_the_edge_of_depth_sharper_than_bilinear(position):
    depth, colours, picture, truth = step(position)
    result = joint_upsampling.upsample_depth(depth, colours, picture, SIZE)
    columns, rows = joint_upsampling.working_coordinates(SIZE)
    bilinear = 1 / joint_upsampling._bilinear(1 / depth, columns, rows)
    valid = np.isfinite(result)
    wrong, wrong_bilinear = (
        (np.abs(d[valid] - truth[valid]) > 0.05 * truth[valid]).mean() for d in (result, bilinear)
    )
    assert wrong_bilinear > 0.02
    assert wrong == 0


def test_without_an_edge_in_the_picture_one_surface_is_chosen_and_none_invented():
    depth, colours, _, _ = step()
    flat = np.full((96, 128, 3), 120, np.uint8)
    result = joint_upsampling.upsample_depth(depth, np.full_like(colours, 120), flat, SIZE)
    values = result[np.isfinite(result)]
    assert values.min() >= 2 and values.max() <= 4
    assert (np.minimum(np.abs(values - 2), np.abs(values - 4)) < 0.05).mean() > 0.995


def test_missing_depth_stays_missing_and_spoils_nothing_beside_it():
    depth = np.full((28, 32), 2.0, np.float32)
    depth[10:16, 10:16] = np.nan
    depth[3, 3] = 0
    result = joint_upsampling.upsample_depth(depth, noise((28, 32)), noise((96, 128), 1), SIZE)
    _, _, x, y = grids()
    hole = (np.abs(x - 12.5) <= 2.4) & (np.abs(y - 12.5) <= 2.4)
    assert np.isnan(result[hole]).all()
    away = (np.abs(x - 12.5) > 3.1) | (np.abs(y - 12.5) > 3.1)
    away &= (np.abs(x - 3) > 1) | (np.abs(y - 3) > 1)
    away &= (x >= -0.5) & (x < 31.5) & (y >= -0.5) & (y < 27.5)
    assert (result[away] == 2).all()
    empty = joint_upsampling.upsample_depth(
        np.full((28, 32), np.nan, np.float32), noise((28, 32)), noise((96, 128)), SIZE
    )
    assert np.isnan(empty).all()


def test_without_a_resize_depth_is_moved_and_nothing_else():
    size = WorkingSize(original=(30, 36), resized=(30, 36), crop=(1, 2), working=(28, 32))
    depth = np.random.default_rng(0).uniform(1, 5, (28, 32)).astype(np.float32)
    depth[5, 5] = 0
    result = joint_upsampling.upsample_depth(depth, noise((28, 32)), noise((30, 36)), size)
    expected = np.pad(np.where(depth > 0, depth, np.nan), ((1, 1), (2, 2)), constant_values=np.nan)
    np.testing.assert_array_equal(result, expected)


def test_masks_are_those_of_the_pixel_that_the_point_lies_in():
    mask = np.random.default_rng(0).random((28, 32)) > 0.5
    result = joint_upsampling.nearest(mask, SIZE)
    _, _, x, y = grids()
    inside = (x >= -0.5) & (x < 31.5) & (y >= -0.5) & (y < 27.5)
    expected = mask[np.rint(y[inside]).astype(int), np.rint(x[inside]).astype(int)]
    np.testing.assert_array_equal(result[inside], expected)
    assert not result[~inside].any()
