"""The rendered world that tests of training readers write to disk and read back."""

import pytest

from tests.data.readers import folders


@pytest.fixture(scope="session")
def training_world() -> folders.World:
    """Four frames of the rendered sample, (24, 32) pixels, with exact depth, poses, intrinsics."""
    return folders.sample_world(4)
