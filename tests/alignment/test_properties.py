"""What must change nothing but the gauge, or nothing at all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import initialise, objective, user_cameras, user_world, variables
from align3r_jax.structs import KnownCameras, PairGraph, WorkingSize
from tests.alignment import synthetic

CONFIG = synthetic.CONFIG
POSES = synthetic.path()
DEPTH = synthetic.depths(POSES)
GRAPH = synthetic.graph()
SIZE = (synthetic.H, synthetic.W)


@pytest.fixture(scope="module")
def inputs():
    return synthetic.predictions(POSES, DEPTH, GRAPH), synthetic.flow(POSES, DEPTH, GRAPH)


def scene(predictions, flow, graph=GRAPH):
    result = align_lib.align_graph(predictions, graph, flow, CONFIG)
    geometry = variables.decode(result.variables, CONFIG, SIZE)
    return np.asarray(geometry.world_from_cam), np.asarray(geometry.depth), result


@pytest.fixture(scope="module")
def plain(inputs):
    return scene(*inputs)


def assert_same_up_to_gauge(found, expected, tolerance=2e-3):
    """One similarity between both: equal relative poses in units of the typical depth."""
    steps = []
    for poses, depth, *_ in (found, expected):
        relative = np.linalg.inv(poses[0]) @ poses
        relative[:, :3, 3] /= np.median(depth)
        steps.append(relative)
    np.testing.assert_allclose(steps[0], steps[1], atol=tolerance)
    ratio = found[1] / expected[1]
    np.testing.assert_allclose(ratio / np.median(ratio), 1, atol=tolerance)


def permuted(predictions, order):
    return jax.tree.map(lambda values: np.asarray(values)[order], predictions)


@pytest.mark.parametrize("factor", [1e-5, 0.5, 1e5])
def test_the_unit_of_all_point_maps(inputs, plain, factor):
    predictions, flow = inputs
    other = dataclasses.replace(
        predictions,
        pointmap1=predictions.pointmap1 * np.float32(factor),
        pointmap2=predictions.pointmap2 * np.float32(factor),
    )
    # Rates are absolute steps of the codings, so the paths differ a little, not their end.
    assert_same_up_to_gauge(scene(other, flow), plain, tolerance=1.5e-2)


def test_the_order_of_pairs(inputs, plain):
    predictions, flow = inputs
    half = np.random.default_rng(0).permutation(GRAPH.num_pairs // 2)
    order = np.concatenate([half, half + GRAPH.num_pairs // 2])
    graph = dataclasses.replace(GRAPH, pairs=GRAPH.pairs[order])
    found = scene(permuted(predictions, order), flow, graph)
    assert_same_up_to_gauge(found, plain)
    np.testing.assert_allclose(found[2].trace["total"][:5], plain[2].trace["total"][:5], rtol=1e-4)
    np.testing.assert_allclose(found[2].pair_losses, plain[2].pair_losses[order], rtol=2e-2)


def test_time_reversed(inputs, plain):
    predictions, flow = inputs
    last = synthetic.T - 1
    graph = dataclasses.replace(GRAPH, pairs=last - GRAPH.pairs)
    backwards = dataclasses.replace(flow, pairs=last - flow.pairs)
    poses, depth, _ = scene(predictions, backwards, graph)
    assert_same_up_to_gauge((poses[::-1], depth[::-1]), plain)


def test_duplicates_double_the_weight(inputs):
    predictions, _ = inputs
    config = dataclasses.replace(CONFIG, flow_weight=0.0)
    once = np.arange(GRAPH.num_pairs)
    values = []
    start = initialise.initialise(predictions, GRAPH, config)
    for order in (once, np.append(once, 3)):
        graph = PairGraph(GRAPH.pairs[order], GRAPH.num_frames, False, "duplicates")
        problem = objective.prepare(permuted(predictions, order), graph, None, start, None, config)
        pair_names = ("pair_quaternion", "pair_translation", "pair_log_scale", "pair_adaptor")
        point = start.replace(**{name: getattr(start, name)[order] for name in pair_names})
        no_gauge = dataclasses.replace(config, normalise_pair_scale=False)
        total, terms = objective.evaluate(point, problem, no_gauge)
        values.append((float(total), np.asarray(terms["pairs"])))
    (total, pairs), (with_one, _) = values
    count = GRAPH.num_pairs
    assert with_one * (count + 1) == pytest.approx(total * count + pairs[:, 3].sum(), rel=1e-5)


def test_a_similarity_of_the_known_world_moves_the_result(inputs):
    """The user's frame and unit play no part inside: the placed problem is the same."""
    predictions, _ = inputs
    rotation = Rotation.from_rotvec([1.0, -0.4, 2.0]).as_matrix()
    moved = POSES.copy()
    moved[:, :3, :3] = rotation @ POSES[:, :3, :3]
    moved[:, :3, 3] = 250 * POSES[:, :3, 3] @ rotation.T + [3e3, -1e3, 5e2]
    size = WorkingSize(original=SIZE, resized=SIZE, crop=(0, 0), working=SIZE)
    placed = []
    for poses in (POSES, moved):
        some = np.where(np.isin(np.arange(synthetic.T), [0, 2, 3])[:, None, None], poses, np.nan)
        known, _ = user_cameras.from_user(size, synthetic.T, KnownCameras(world_from_cam=some))
        placed.append(user_world.place(predictions, GRAPH, CONFIG, known))
    first, second = placed
    for a, b in zip(jax.tree.leaves(first.start), jax.tree.leaves(second.start)):
        np.testing.assert_allclose(a, b, atol=2e-5)
    mask = first.known.pose_mask
    np.testing.assert_allclose(
        first.known.world_from_cam[mask], second.known.world_from_cam[mask], atol=1e-9
    )
    found = variables.decode(first.start, first.config, SIZE).world_from_cam
    carried = first.world.poses_to_user(found)
    expected = second.world.poses_to_user(jnp.asarray(found))
    np.testing.assert_allclose(
        250 * carried[:, :3, 3] @ rotation.T + [3e3, -1e3, 5e2], expected[:, :3, 3], atol=1e-3
    )
    np.testing.assert_allclose(rotation @ carried[:, :3, :3], expected[:, :3, :3], atol=1e-6)
