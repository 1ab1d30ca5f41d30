"""One small clip and one batch of pairs, rendered once for all tests of this folder."""

import jax
import jax.numpy as jnp
import pytest

from data.procedural import benchmark, cameras, pairs, scene, sensor, textures

PERFECT = sensor.SensorOptions(shutter=0.0, exposure=0.0, balance=0.0, noise=0.0, vignetting=0.0)


@pytest.fixture(scope="session")
def bank():
    return textures.make_bank(seed=5, tiles=24)


@pytest.fixture(scope="session")
def small_clip(bank):
    """Three frames of a benchmark clip in which much moves, seen by a perfect camera."""
    return benchmark.render(
        "crowded", frames=3, height=72, width=96, supersample=3, bank=bank, camera=PERFECT
    )


@pytest.fixture(scope="session")
def scenes():
    """400 scenes; the first two have the same key. (axes of the camera, scene), stacked."""
    numbers = jnp.arange(400).at[0].set(1)
    keys = jax.vmap(jax.random.key)(numbers)

    def draw(key):
        drawn = scene.sample_scene(key)
        return cameras.pose_at(drawn.camera, 0.0)[0], drawn

    return jax.device_get(jax.jit(jax.vmap(draw))(keys))


@pytest.fixture(scope="session")
def batch(bank):
    return jax.device_get(pairs.render_pairs(jax.random.key(0), bank, 12, 48, 64))
