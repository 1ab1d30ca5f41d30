"""Separable resizes against plain formulas; positions of DINOv2 against recorded numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.networks import dinov2
from align3r_jax.networks.layers import resample, resize


def _cubic(distance):
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def _matrix(n_in, place, kernel, reach):
    """(n_out, n_in): weights of the samples at `place`, taps beyond the border on the border."""
    matrix = np.zeros((len(place), n_in))
    for row, s in enumerate(place):
        for tap in range(int(np.floor(s)) - reach + 1, int(np.floor(s)) + reach + 1):
            matrix[row, min(max(tap, 0), n_in - 1)] += kernel(s - tap)
    return matrix


def _triangle(distance):
    return max(0.0, 1 - abs(distance))


SIZES = [(5, 12), (12, 5), (7, 7), (1, 3), (4, 1), (9, 10)]


def _places(n_in, n_out, kind):
    i = np.arange(n_out)
    if kind == "corners":
        return i * (n_in - 1) / (n_out - 1) if n_out > 1 else np.zeros(1)
    if kind == "edges":
        return np.maximum((i + 0.5) * n_in / n_out - 0.5, 0)
    return (i + 0.5) * n_in / (n_out + (0.1 if kind == "offset" else 0)) - 0.5


@pytest.mark.parametrize("kind", ["corners", "edges", "size", "offset"])
def test_resizes_are_two_matrix_products(kind):
    for rows_in, rows_out in SIZES:
        columns_in, columns_out = rows_out + 2, rows_in + 1
        values = np.random.default_rng(rows_in).normal(size=(2, rows_in, columns_in, 3))
        values = values.astype(np.float32)
        shape = (rows_out, columns_out)
        if kind in ("corners", "edges"):
            got = resize.bilinear(jnp.asarray(values), shape, align_corners=kind == "corners")
            kernel, reach = _triangle, 1
        else:
            got = resize.bicubic(jnp.asarray(values), shape, offset=0.1 * (kind == "offset"))
            kernel, reach = _cubic, 2
        rows = _matrix(rows_in, _places(rows_in, rows_out, kind), kernel, reach)
        columns = _matrix(columns_in, _places(columns_in, columns_out, kind), kernel, reach)
        expected = np.einsum("ih,jw,bhwc->bijc", rows, columns, values)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, atol=5e-6, err_msg=f"{kind} {shape}")


def test_doubling_is_the_special_case():
    values = np.random.default_rng(0).normal(size=(1, 6, 9, 2)).astype(np.float32)
    got = resize.bilinear(jnp.asarray(values), (12, 18), align_corners=True)
    np.testing.assert_allclose(got, resample.upsample2(jnp.asarray(values)), atol=1e-6)


def test_coordinates_are_rounded_as_float32():
    """The fraction at a large coordinate carries the rounding of float32, not of float64."""
    taps = resize.bilinear_taps(1536, 480, False)
    exact = (np.arange(480) + 0.5) * 3.2 - 0.5
    error = np.abs(taps.weight[:, 1] - (exact - np.floor(exact)))
    assert 1e-6 < error.max() < 2e-4
    np.testing.assert_allclose(taps.weight.sum(axis=1), 1, atol=1e-7)


@pytest.mark.golden
def test_positions_match_the_reference(golden_dir, golden_weights):
    recorded = np.load(golden_dir / "monodepth_aux.npz")
    seed = int(recorded["seed"]) if "seed" in recorded else 0
    cases = [key for key in recorded.files if key.startswith("pos/")]
    assert cases
    filled = golden_weights.fill("pretrained.pos_embed", (1, 1370, 384), seed)
    learnt = jnp.asarray(filled[:, 1:].reshape(1, 37, 37, 384)[..., ::48])
    for key in cases:
        mode, size = key.removeprefix("pos/").split("_")
        grid = tuple(int(side) for side in size.split("x"))
        got = np.asarray(dinov2.resize_positions(learnt, grid, mode))[0]
        assert got.shape == recorded[key].shape, key
        assert np.abs(got - recorded[key]).max() <= 1e-5, key
