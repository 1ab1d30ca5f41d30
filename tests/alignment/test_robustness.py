"""Degenerate and spoiled inputs: finite results or a sentence, never a silent NaN."""

import dataclasses

import jax
import numpy as np
import pytest

from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import soundness, variables
from align3r_jax.errors import UserError
from align3r_jax.structs import PairGraph
from tests.alignment import synthetic

CONFIG = synthetic.CONFIG
CONFIGS = {"adam": CONFIG, "gauss_newton": dataclasses.replace(CONFIG, solver="gauss_newton")}
SOLVERS = pytest.mark.parametrize(
    "solver", ["adam", pytest.param("gauss_newton", marks=pytest.mark.slow)]
)
POSES = synthetic.path()
DEPTH = synthetic.depths(POSES)
GRAPH = synthetic.graph()


def align(poses=POSES, depth=DEPTH, spoil=None, spoil_flow=None, graph=GRAPH, config=CONFIG):
    """Returns poses, depth and result; asserts that all of it is finite."""
    predictions = synthetic.predictions(poses, depth, graph)
    flow = synthetic.flow(poses, depth, graph)
    predictions = predictions if spoil is None else spoil(predictions)
    flow = flow if spoil_flow is None else spoil_flow(flow)
    result = align_lib.align_graph(predictions, graph, flow, config)
    geometry = variables.decode(result.variables, config, (synthetic.H, synthetic.W))
    tree = (result.variables, result.trace, result.pair_losses, result.confidence, geometry)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))
    assert (np.asarray(geometry.depth) > 0).all() and not result.failed
    return geometry.world_from_cam, geometry.depth, result


def scaled(factor):
    def spoil(predictions):
        return dataclasses.replace(
            predictions,
            pointmap1=predictions.pointmap1 * np.float32(factor),
            pointmap2=predictions.pointmap2 * np.float32(factor),
        )

    return spoil


def with_arrays(change):
    """Applies change(arrays by name) to writable copies of the predictions' arrays."""

    def spoil(predictions):
        names = ("pointmap1", "pointmap2", "confidence1", "confidence2")
        arrays = {name: np.array(getattr(predictions, name)) for name in names}
        change(arrays)
        return dataclasses.replace(predictions, **arrays)

    return spoil


def nan_in_one_edge(arrays):
    arrays["pointmap1"][3] = arrays["pointmap2"][3] = np.nan
    arrays["confidence1"][5] = np.nan
    arrays["confidence2"][7] = np.inf


def some_edges_know_nothing(arrays):
    for name in ("confidence1", "confidence2"):
        arrays[name][:4], arrays[name][6] = 0, 1


def mover_over_most_of_the_frame(arrays):
    arrays["pointmap2"][:, :, :17, 0] += 0.3


CASES = {
    "usual": ({}, 1.0, 0.01),
    "tiny unit": ({"spoil": scaled(1e-4)}, 1.5, 0.01),
    "huge unit": ({"spoil": scaled(1e4)}, 1.5, 0.01),
    "NaN in one edge": ({"spoil": with_arrays(nan_in_one_edge)}, 1.0, 0.02),
    "edges without confidence": ({"spoil": with_arrays(some_edges_know_nothing)}, 1.5, 0.02),
    "mover": ({"spoil": with_arrays(mover_over_most_of_the_frame)}, 8.0, 0.2),
    "NaN in the flow": (
        {"spoil_flow": lambda flow: dataclasses.replace(
            flow, flow=np.where(flow.pairs[:, :1, None, None] == 2, np.float32(np.nan), flow.flow)
        )}, 1.0, 0.01,
    ),
}  # fmt: skip


@SOLVERS
@pytest.mark.parametrize("name", CASES)
def test_spoiled_predictions(name, solver):
    arguments, degrees, abs_rel = CASES[name]
    poses, depth, _ = align(**arguments, config=CONFIGS[solver])
    turn, error = synthetic.errors(poses, depth, POSES, DEPTH)
    assert turn < degrees and error < abs_rel, (turn, error)


@SOLVERS
@pytest.mark.parametrize(
    ("travel", "turn", "relief"),
    [(0, 0, 0.2), (0, 2, 0.2), (0.12, 2, 0)],
    ids=["standing camera", "pure rotation", "plane"],
)
def test_degenerate_scenes(travel, turn, relief, solver):
    true_poses = synthetic.path(travel=travel, turn=turn)
    true_depth = synthetic.depths(true_poses, relief=relief)
    poses, depth, _ = align(true_poses, true_depth, config=CONFIGS[solver])
    degrees, error = synthetic.errors(poses, depth, true_poses, true_depth)
    assert degrees < 1 and error < 0.01, (degrees, error)
    if travel == 0:
        centres = np.asarray(poses)[:, :3, 3]
        assert np.linalg.norm(centres - centres[0], axis=-1).max() < 0.03 * np.median(depth)


def test_what_no_scene_can_be_made_of_is_a_sentence():
    apart = PairGraph(np.array([[0, 1], [2, 3], [1, 0], [3, 2]], np.int32), 4, True, "mine")
    missing = PairGraph(np.array([[0, 1], [1, 2], [1, 0], [2, 1]], np.int32), 4, True, "mine")
    outside = PairGraph(np.array([[0, 1], [1, 4]], np.int32), 4, False, "mine")
    for graph, word in ((apart, "connect"), (missing, "connect"), (outside, "frame 4")):
        with pytest.raises(UserError, match=word):
            soundness.checked(_predictions_of(graph), graph)
    for name, value in (("confidence1", 0), ("pointmap1", np.nan)):

        def spoil(arrays, name=name, value=value):
            arrays[name][:] = arrays[name.replace("1", "2")][:] = value

        with pytest.raises(UserError, match="nothing to align"):
            align(spoil=with_arrays(spoil))


def _predictions_of(graph):
    inside = dataclasses.replace(graph, pairs=np.minimum(graph.pairs, synthetic.T - 1))
    return synthetic.predictions(POSES, DEPTH, inside)


def test_loose_frames_are_named():
    predictions = synthetic.predictions(POSES, DEPTH, GRAPH)
    assert soundness.notes(predictions, GRAPH) == ()

    def forget_frame_2(arrays):
        arrays["confidence1"][(GRAPH.pairs == 2).any(axis=1)] = 1

    first, second = soundness.notes(with_arrays(forget_frame_2)(predictions), GRAPH)
    assert first.startswith("6 of 12") and "Frames 2 are tied" in second


def test_a_usual_unit_is_left_alone():
    predictions = synthetic.predictions(POSES, DEPTH, GRAPH)
    assert soundness.checked(predictions, GRAPH) is predictions
    changed = soundness.checked(scaled(1e4)(predictions), GRAPH)
    assert 0.99 < soundness.typical_distance(changed) < 1.01


@SOLVERS
def test_two_equal_frames(solver):
    poses = synthetic.path(2, travel=0, turn=0)
    depth = synthetic.depths(poses)
    graph = synthetic.graph(2)
    found, found_depth, _ = align(poses, depth, graph=graph, config=CONFIGS[solver])
    degrees, error = synthetic.errors(found, found_depth, poses, depth)
    assert degrees < 1.5 and error < 0.02
