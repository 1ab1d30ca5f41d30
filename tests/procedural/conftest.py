"""One small clip and one batch of pairs, rendered once for all tests of this folder."""

import jax
import numpy as np
import pytest

from data.procedural import cameras, clip, pairs, scene, sensor, textures

STILL_SENSOR = sensor.SensorOptions(
    shutter=0.0, exposure=0.0, balance=0.0, noise=0.0, vignetting=0.0
)


@pytest.fixture(scope="session")
def bank():
    return textures.make_bank(seed=5, tiles=24)


@pytest.fixture(scope="session")
def moving_scene():
    """A room with movers that fill a good part of the view, camera in motion."""
    options = scene.SceneOptions(
        moving=1.0, outdoor=0.0, camera=cameras.CameraOptions(standing=0.0, speed=(0.5, 1.0))
    )
    times = np.array([0.0, 0.15, 0.3])
    return clip.find_scene(
        jax.random.key(3), times, options, dynamic=(0.06, 0.4), travel=(0.02, 0.3)
    )


@pytest.fixture(scope="session")
def small_clip(moving_scene, bank):
    return clip.render_clip(
        moving_scene, bank, np.array([0.0, 0.15, 0.3]), 72, 96, supersample=3, camera=STILL_SENSOR
    )


@pytest.fixture(scope="session")
def batch(bank):
    return jax.device_get(pairs.render_pairs(jax.random.key(0), bank, 12, 48, 64))
