"""Tiny scenes that are computed, not read; importable, so that worker processes load them."""

import functools
import os
import time

import numpy as np

from align3r_jax.errors import UserError
from data.prepare.settings import Settings
from data.readers.training import TrainingFrame, TrainingScene

SHAPE = (24, 40)


def load(scene: int, broken: frozenset[int], prior: bool, index: int) -> TrainingFrame:
    """A frame that depends on scene and index alone; FAKE_SECONDS makes it slow."""
    time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
    if index in broken:
        raise UserError(f"'fake/{scene}/{index}.png' cannot be read (made so).")
    rng = np.random.default_rng([scene, index])
    depth = rng.uniform(0.5, 20, SHAPE).astype(np.float32)
    depth[rng.random(SHAPE) < 0.2] = 0
    pose = np.eye(4)
    pose[:3, 3] = scene, index, 1 / 3
    focal = 30.0 + scene / 7
    prior_depth = None
    if prior:
        prior_depth = (depth * 2 + 1).astype(np.float32)
        prior_depth[0, 0] = np.nan
    return TrainingFrame(
        rng.integers(0, 255, (*SHAPE, 3), np.uint8),
        depth,
        np.array([[focal, 0, 19.5], [0, focal, 11.25], [0, 0, 1]]),
        pose,
        prior_depth,
        (12.5 if scene % 2 else None) if prior else None,
    ).check("fake")


def scenes(
    counts: tuple[int, ...] = (5, 3, 9, 4),
    broken: dict[int, set[int]] | None = None,
    prior: bool = False,
    pairs: bool = False,
    dataset: str = "fake",
) -> list[TrainingScene]:
    """Scenes of so many frames; broken: scene -> frames that cannot be read."""
    listed = []
    for number, count in enumerate(counts):
        bad = frozenset((broken or {}).get(number, ()))
        steps = np.array([(i, i + 1) for i in range(count - 1)]) if pairs else None
        listed.append(
            TrainingScene(
                dataset,
                f"part/{number:02d}",
                tuple(f"f{i:03d}" for i in range(count)),
                functools.partial(load, number, bad, prior),
                steps,
            )  # fmt: skip
        )
    return listed


def settings(**changes) -> Settings:
    """Frames as they are, exact, in shards of about four frames."""
    return Settings(**{"dataset": "fake", "size": 0, "image": "png", "shard_mb": 0.03} | changes)
