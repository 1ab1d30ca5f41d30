"""Clips of different lengths in one call: each as if it were alone, compiled once per bucket."""

import dataclasses

import jax
import numpy as np
import pytest

from align3r_jax.alignment import batch, solve
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.structs import AlignmentPriors
from tests.alignment import recorded

CONFIG = AlignmentConfig(iterations=12, flow_start=0.2)


def _clip(scene, frames, flow=None, stride=3):
    """The recorded scene's pairs among some frames, every few pixels."""
    edges = np.asarray(scene["edges"])
    rows = np.flatnonzero(np.isin(edges, frames).all(-1))
    pairs = edges[rows] - min(frames)
    graph = recorded.graph(pairs, len(frames))
    predictions = jax.tree.map(
        lambda a: a[:, ::stride, ::stride], recorded.predictions(scene, rows)
    )
    if flow is None:
        return predictions, graph, AlignmentPriors()
    fields = recorded.flow(scene, pairs, rows)
    fields = fields.replace(
        flow=fields.flow[:, ::stride, ::stride] / stride,
        weight=fields.weight[:, ::stride, ::stride],
    )
    if flow == "one per direction":
        count = len(pairs)
        fields = fields.replace(
            pairs=fields.pairs[:count], flow=fields.flow[:count], weight=fields.weight[:count]
        )
    return predictions, graph, AlignmentPriors(flow=fields)


@pytest.fixture(scope="module")
def scene(golden_dir):
    return dict(np.load(golden_dir / "alignment_scene.npz"))


def _assert_alone(clip, variables, trace):
    expected, expected_trace = jax.device_get(solve.align(*clip, CONFIG))
    np.testing.assert_allclose(trace["total"], expected_trace["total"], rtol=1e-4)
    assert np.mean(trace["dynamic_mask"] != expected_trace["dynamic_mask"]) < 1e-3
    for field in dataclasses.fields(variables):
        got, other = getattr(variables, field.name), getattr(expected, field.name)
        assert got.shape == other.shape, field.name
        # Where the gradient is rounding only, Adam walks either way.
        assert np.mean(np.abs(got - other) > 1e-3) < 1e-2, field.name
    np.testing.assert_allclose(trace["pair_losses"], expected_trace["pair_losses"], rtol=1e-3)


def test_buckets():
    sizes = sorted({batch.bucket(count) for count in range(1, 80)})
    assert sizes[:18] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48]
    for count in range(1, 2000):
        assert count <= batch.bucket(count) <= 1.25 * count + 1


@pytest.mark.golden
@pytest.mark.slow
def test_clips_in_a_batch_are_as_if_alone_and_compile_once(scene):
    clips = [_clip(scene, range(5)), _clip(scene, range(2, 5))]
    stacked = batch.pad_and_stack(clips)
    frames, pairs = stacked.graph.num_frames, stacked.graph.pairs.shape[1]
    assert frames == 5 and pairs == 2 * batch.bucket(clips[0][1].num_pairs // 2)
    assert stacked.graph.symmetric
    before = batch._align._cache_size()
    results = batch.split(stacked, *batch.align(stacked, CONFIG))
    # The longer clip is not filled up with frames, the shorter one is; both must be right.
    _assert_alone(clips[1], *results[1])
    # Other clips of the same bucket: nothing is compiled again.
    again = [_clip(scene, range(1, 6)), _clip(scene, range(4))]
    batch.align(batch.pad_and_stack(again), CONFIG)
    assert batch._align._cache_size() == before + 1


@pytest.mark.golden
@pytest.mark.slow
@pytest.mark.parametrize("flow", ["two per pair", "one per direction"])
def test_clips_with_flow_are_as_if_alone(scene, flow):
    clips = [_clip(scene, range(5), flow), _clip(scene, range(2, 5), flow)]
    stacked = batch.pad_and_stack(clips)
    results = batch.split(stacked, *batch.align(stacked, CONFIG))
    for clip, result in zip(clips, results, strict=True):
        _assert_alone(clip, *result)


@pytest.mark.golden
def test_clips_that_cannot_share_a_shape_are_refused(scene):
    clip = _clip(scene, range(3))
    other = _clip(scene, range(3), stride=2)
    with pytest.raises(UserError, match="one image size"):
        batch.pad_and_stack([clip, other])
    with pytest.raises(UserError, match="same kinds of priors"):
        batch.pad_and_stack([clip, _clip(scene, range(3), "two per pair")])
    with pytest.raises(UserError, match="at least one"):
        batch.pad_and_stack([])
