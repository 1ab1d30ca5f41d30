"""The depth prior as a fourth channel: it reaches the output, and starts from DUSt3R unnoticed."""

import dataclasses

import jax
import numpy as np
import pytest

from align3r_jax.networks import align3r
from align3r_jax.training import initialise
from tests.networks import micro

PLAIN = dataclasses.replace(micro.ALIGN3R, prior_branch=False, dec_depth=2)
CONCAT = dataclasses.replace(PLAIN, prior_branch=True, prior_injection="concat")


@pytest.fixture(scope="module")
def start():
    """(parameters of a network without prior, the same as start of one with a fourth channel)."""
    rng = np.random.default_rng(0)
    plain = jax.tree.map(
        lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32),
        align3r.abstract_params(PLAIN),
    )
    params, report = initialise.from_params(CONCAT, plain, PLAIN, jax.random.key(1))
    assert not report.fresh and not report.unused
    return plain, params


def _views(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, (2, 2, 32, 48, 3)).astype(np.float32)
    priors = rng.uniform(0, 1, (2, 2, 32, 48, 3)).astype(np.float32)
    return images, priors


@pytest.fixture(scope="module")
def run():
    def apply(params, images, priors, has_prior):
        return align3r.Align3R(CONCAT).apply(
            {"params": params}, *images, *priors, has_prior1=has_prior, has_prior2=has_prior
        )

    return jax.jit(apply)


def test_the_new_channel_adds_nothing_at_first(start, run):
    plain, params = start
    images, priors = _views()
    without = align3r.Align3R(PLAIN).apply({"params": plain}, *images)
    added = run(params, images, priors, np.ones(2, bool))
    np.testing.assert_allclose(added.pointmap1, without.pointmap1, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(added.confidence2, without.confidence2, rtol=1e-4)


def test_only_the_z_of_frames_with_a_prior_counts(start, run):
    params = micro.noisy(start[1], seed=3, only="patch_embed")
    images, priors = _views()
    base = run(params, images, priors, np.array([True, False]))
    other = priors.copy()
    other[..., :2] += 1.0
    same = run(params, images, other, np.array([True, False]))
    np.testing.assert_array_equal(base.pointmap1, same.pointmap1)
    other[..., 2] += 1.0
    moved = run(params, images, other, np.array([True, False]))
    np.testing.assert_array_equal(base.pointmap1[1], moved.pointmap1[1])
    assert np.abs(base.pointmap1[0] - moved.pointmap1[0]).max() > 1e-4


def test_there_is_no_branch():
    tree = align3r.abstract_params(CONCAT)
    assert "prior_branch" not in tree
    assert tree["encoder"]["patch_embed"]["kernel"].shape == (16, 16, 4, 16)
