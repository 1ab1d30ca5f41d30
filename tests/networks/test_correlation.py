"""The correlation pyramid, its three look-ups against a plain loop, and the choice among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.networks.raft import build, correlation
from align3r_jax.networks.raft.correlation import LookupPlan, plan_lookup
from tests.networks import tiny_flow

LEVELS, RADIUS = 4, 2


def plain(source, target, positions):
    """The definition, pixel by pixel: (h, w, C) maps, positions (h, w, 2)."""
    height, width, channels = source.shape
    found = []
    for level in range(LEVELS):
        sampled = np.zeros((height, width, 2 * RADIUS + 1, 2 * RADIUS + 1))
        for y, x in np.ndindex(height, width):
            map_ = target @ source[y, x] / np.sqrt(channels)
            for a, b in np.ndindex(sampled.shape[2:]):
                px, py = positions[y, x] / 2**level + (a - RADIUS, b - RADIUS)
                for row in range(map_.shape[0]):
                    for column in range(map_.shape[1]):
                        share = max(0, 1 - abs(px - column)) * max(0, 1 - abs(py - row))
                        sampled[y, x, a, b] += share * map_[row, column]
        found.append(sampled.reshape(height, width, -1))
        rows, columns = target.shape[0] // 2 * 2, target.shape[1] // 2 * 2
        halves = target[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2, channels)
        target = halves.mean((1, 3))
    return np.concatenate(found, -1)


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (2, 9)])
def test_three_look_ups_are_the_definition(size):
    rng = np.random.default_rng(size[1])
    source, target = rng.standard_normal((2, 2, *size, 6))
    positions = rng.uniform(-4, 12, (2, *size, 2))
    positions[0, 0, 0] = [1, 0]  # on a pixel
    positions[1, 0, 0] = [1e9, -1e9]
    expected = np.stack([plain(*inputs) for inputs in zip(source, target, positions)])
    inputs = [jnp.asarray(x, jnp.float32) for x in (source, target, positions)]
    for method, rows in (("gather", 1), ("hat", 1), ("on_the_fly", 2), ("on_the_fly", size[0])):

        @jax.jit
        def look(source, target, positions, plan=LookupPlan(method, rows)):  # noqa: B008
            pair = correlation.correlate(source, target, LEVELS, RADIUS, plan)
            return pair.lookup(positions)

        got = look(*inputs)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, atol=3e-6, err_msg=method)


def test_features_that_moved_correlate_most_where_they_went():
    """Images shifted by whole cells: the features move along, and the look-up finds them."""
    image = tiny_flow.images(1, 160, 176)
    moved = np.roll(image, (16, -8), (1, 2))
    network = build.make(tiny_flow.CONFIGS["sea_raft"])
    variables = {"params": tiny_flow.params("sea_raft")}
    both = jnp.concatenate([jnp.asarray(image), jnp.asarray(moved)])
    matching = jax.jit(lambda v, x: network.apply(v, x, method="encode_frames").matching)
    source, target = matching(variables, both)[:, None]
    source, target = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (source, target))
    pair = correlation.correlate(source, target, 1, RADIUS, LookupPlan("gather", 1))
    _, height, width, channels = source.shape
    best = np.asarray(pair.levels[0]).reshape(height, width, -1).argmax(-1)
    # Away from borders and the seam: a feature sees 6 cells around it.
    y, x = np.mgrid[6 : height - 8, 7 : width - 7]
    np.testing.assert_array_equal(best[y, x], (y + 2) * width + x - 1)
    grid = np.stack(np.mgrid[:height, :width][::-1], -1)[None].astype(np.float32)
    centre = pair.lookup(jnp.asarray(grid + np.float32([-1, 2])))[0, y, x, 2 * 5 + 2]
    np.testing.assert_allclose(centre, channels**-0.5, atol=1e-5)


def test_choice_by_device_and_memory():
    grid, gib = (36, 64), 1 << 30
    one = correlation.volume_bytes(1, *grid, 4)
    cells = 36 * 64 + 18 * 32 + 9 * 16 + 4 * 8
    assert one == 4 * 36 * 64 * cells
    assert plan_lookup("auto", "cpu", 12, *grid, 4, gib).method == "gather"
    assert plan_lookup("auto", "gpu", 12, *grid, 4, gib).method == "gather"
    assert plan_lookup("auto", "tpu", 12, *grid, 4, gib).method == "hat"
    for backend in ("cpu", "gpu", "tpu"):
        assert plan_lookup("auto", backend, 2, *grid, 4, 2 * one).method != "on_the_fly"
        assert plan_lookup("auto", backend, 2, *grid, 4, 2 * one - 1).method == "on_the_fly"
    for name in ("gather", "hat", "on_the_fly"):
        assert plan_lookup(name, "tpu", 1, *grid, 4, 1).method == name
    # Rows at a time: within the budget, at least one, at most all.
    rows = plan_lookup("on_the_fly", "cpu", 1, *grid, 4, one).rows
    assert 1 < rows < 36 and 2 * rows * one / 36 <= one
    assert plan_lookup("on_the_fly", "cpu", 1, *grid, 4, 1).rows == 1
    assert plan_lookup("on_the_fly", "cpu", 1, *grid, 4, 9 * one).rows == 36
    with pytest.raises(ValueError, match="lookup='fast'"):
        plan_lookup("fast", "cpu", 1, *grid, 4, gib)


def test_pooling_drops_odd_ends():
    x = jnp.arange(5 * 7 * 1.0).reshape(1, 5, 7, 1)
    pooled = correlation.pool(x)
    assert pooled.shape == (1, 2, 3, 1)
    assert pooled[0, 1, 2, 0] == np.mean([18, 19, 25, 26])
    assert correlation.pool(jnp.ones((1, 1, 3, 2))).shape == (1, 0, 1, 2)
