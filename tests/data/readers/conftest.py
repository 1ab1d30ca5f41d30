"""The rendered world that tests of training readers write to disk and read back."""

import dataclasses

import pytest

from tests.data.readers import folders, synthetic_folders


@pytest.fixture(scope="session")
def training_world() -> folders.World:
    """Four frames of the rendered sample, (24, 32) pixels, with exact depth, poses, intrinsics."""
    return folders.sample_world(4)


@pytest.fixture(scope="session")
def tiny(training_world):
    """Both sides at a few pixels, for what needs no cameras."""
    few = dataclasses.replace(
        training_world,
        images=training_world.images[:, :4, :6],
        depth=training_world.depth[:, :4, :6],
    )
    return {"left": few, "right": synthetic_folders.beside(few)}
