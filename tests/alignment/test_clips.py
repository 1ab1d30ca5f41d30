"""Clips solved in one call are what each would be alone, ragged ones and new masks included."""

import dataclasses

import jax
import numpy as np
import pytest

from align3r_jax import pairing
from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import clips, variables
from align3r_jax.alignment.solvers import adam, second_order
from align3r_jax.config import AlignmentConfig
from align3r_jax.structs import OpticalFlow, PairPredictions

H, W = 16, 24
CONFIG = AlignmentConfig(iterations=8, optimise_two_frames=True)


def _task(frames, seed, config=CONFIG):
    """A flat-ish random scene seen by a moving camera; every pair in a scale of its own."""
    rng = np.random.default_rng(seed)
    graph = pairing.clip_graph(frames, True)
    y, x = np.mgrid[:H, :W]
    ray = np.stack([(x - W / 2) / 30, (y - H / 2) / 30, np.ones_like(x)], -1)
    depth = 2 + 0.3 * np.sin(x / 5 + np.arange(frames)[:, None, None] / 3) + 0.02 * y
    centre = 0.05 * np.arange(frames)[:, None] * np.array([1, 0.2, 0.1])
    world = ray * depth[..., None] + centre[:, None, None]
    maps = [[], []]
    for i, j in graph.pairs.tolist():
        scale = np.exp(0.3 * rng.standard_normal())
        for side, frame in enumerate((i, j)):
            noise = 1 + 0.01 * rng.standard_normal((H, W, 1))
            maps[side].append(scale * (world[frame] - centre[i]) * noise)
    confidence = rng.uniform(2, 8, (2, graph.num_pairs, H, W)).astype(np.float32)
    points = [np.float32(np.stack(side)) for side in maps]
    fields = pairing.directed_pairs(graph)
    flow = 0.5 * rng.standard_normal((len(fields), H, W, 2)) + (fields[:, 0] - fields[:, 1])[
        :, None, None, None
    ] * np.array([0.7, 0.1])
    pose = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
    pose[:, :3, 3] = centre + 0.01 * rng.standard_normal((frames, 3))
    unit = np.ones(graph.num_pairs), pose[graph.pairs[:, 0], :3, :3], pose[graph.pairs[:, 0], :3, 3]
    start = variables.encode(np.float32(depth), pose, np.full(frames, 28.0), *unit, config)
    return align_lib.Task(
        predictions=PairPredictions(points[0], points[1], confidence[0], confidence[1]),
        graph=graph,
        flow=OpticalFlow(fields, np.float32(flow), np.ones((len(fields), H, W), np.float32)),
        # Turned a little: at the identity the gradient of a quaternion's length is rounding noise,
        # and Adam's first steps follow its sign.
        start=jax.tree.map(lambda x: np.float32(x + 0.03 * rng.standard_normal(x.shape)), start),
        mask=depth < 1.9,
        known=None,
        ignore=None,
        depth_prior=None,
        config=config,
        scene_mask=lambda found: np.tile(np.arange(W) % 3 == 0, (len(found.log_depth), H, 1)),
        updates=1,
    )


@pytest.fixture(scope="module", autouse=True)
def short_chunks():
    """Two looks at the host, so that masks are found again on the way; clips side by side."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adam, "CHUNK", 4)
        patch.setitem(clips._SIDE_BY_SIDE, "cpu", True)
        yield


@pytest.fixture(scope="module")
def tasks():
    return [_task(5, 0), _task(5, 1), _task(3, 2)]


@pytest.fixture(scope="module")
def together(tasks):
    reports = []
    found = clips.solve(tasks, lambda *report: reports.append(report[:2]))
    assert reports[-1] == (8, 8)
    return found


@pytest.mark.slow
def test_one_call_equals_one_clip_after_the_other(tasks, together):
    for task, found in zip(tasks, together):
        alone = align_lib.solve(task)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5),
            found.outcome.variables,
            alone.outcome.variables,
        )
        np.testing.assert_allclose(found.pair_losses, alone.pair_losses, rtol=1e-4)
        np.testing.assert_allclose(
            found.outcome.trace["total"], alone.outcome.trace["total"], rtol=1e-5
        )


@pytest.mark.slow
def test_the_short_clip_keeps_its_own_shapes(tasks, together):
    found = together[2].outcome.variables
    assert found.log_depth.shape == (3, H, W)
    assert found.pair_quaternion.shape == (tasks[2].graph.num_pairs, 4)
    assert together[2].pair_losses.shape == (tasks[2].graph.num_pairs,)


@pytest.mark.slow
def test_clips_with_settings_of_their_own_are_solved_alone(tasks):
    other = dataclasses.replace(CONFIG, iterations=0)
    odd = dataclasses.replace(tasks[2], config=other)
    found = clips.solve([tasks[2], odd])
    assert len(found[0].outcome.trace["total"]) == 8
    assert not found[1].outcome.trace


def test_gauss_newton_solves_ragged_clips_in_one_program():
    config = dataclasses.replace(
        CONFIG, solver="gauss_newton", gauss_newton_steps=6, lattice_stride=2
    )
    tasks = [_task(5, 0, config), _task(3, 2, config)]
    reports = []
    before = second_order._steps._cache_size()
    found = clips.solve(
        tasks, lambda *report: reports.append(report[:2]), like=pairing.clip_graph(5, True)
    )
    assert second_order._steps._cache_size() == before + 1
    assert reports == sorted(reports) and reports[-1] == (12, 12)
    for task, solved in zip(tasks, found):
        assert not solved.outcome.failed
        assert solved.outcome.variables.log_depth.shape == (task.graph.num_frames, H, W)
        assert solved.pair_losses.shape == (task.graph.num_pairs,)
    alone = align_lib.solve(tasks[1])
    np.testing.assert_allclose(
        found[1].outcome.trace["total"][-1], alone.outcome.trace["total"][-1], rtol=1e-3
    )
    np.testing.assert_allclose(found[1].pair_losses, alone.pair_losses, rtol=0.02)
