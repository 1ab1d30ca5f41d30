"""Rotary positions against recorded numbers, and the property that they are there for."""

import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.networks.layers import rope2d

BASE = 100.0


@pytest.mark.golden
def test_recorded(golden_dir):
    file = np.load(golden_dir / "network_rope2d.npz")
    tokens = file["tokens"]
    by = rope2d.rotation(jnp.asarray(file["positions"]), tokens.shape[-1], BASE)
    rotated = np.asarray(rope2d.rotate(jnp.asarray(tokens), by))
    assert np.abs(rotated - file["rotated"]).max() <= 1e-6 * np.abs(file["rotated"]).max()

    count, half = file["cos"].shape
    diagonal = jnp.stack([jnp.arange(count)] * 2, axis=-1)[None]
    table = rope2d.rotation(diagonal, 2 * half, BASE)
    for got, name in ((table.cos, "cos"), (table.sin, "sin")):
        for axis in (0, 1):
            twice = np.tile(np.asarray(got[0, :, axis]), 2)
            np.testing.assert_allclose(twice, file[name], atol=3e-6)


def test_products_depend_on_the_difference_of_positions():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 1, 1, 1, 32))
    at, other = np.array([2, 5]), np.array([7, 1])

    def product(shift):
        turned = [
            rope2d.rotate(jnp.asarray(t), rope2d.rotation(jnp.asarray([[p + shift]]), 32, BASE))
            for t, p in ((query, at), (key, other))
        ]
        return float(jnp.sum(turned[0] * turned[1]))

    assert abs(product(np.array([0, 0])) - product(np.array([11, 3]))) < 1e-4
    assert abs(product(np.array([0, 0])) - float(np.sum(query * key))) > 1e-2


def test_bfloat16_tokens_keep_float32_angles():
    position = jnp.asarray([[[200, 201]]])  # bfloat16 would round 201 to 200 or 202
    tokens = jnp.ones((1, 1, 1, 16))
    exact = rope2d.rotate(tokens, rope2d.rotation(position, 16, BASE))
    rounded = rope2d.rotate(tokens.astype(jnp.bfloat16), rope2d.rotation(position, 16, BASE))
    assert rounded.dtype == jnp.bfloat16
    assert float(jnp.abs(rounded.astype(jnp.float32) - exact).max()) < 1e-2
