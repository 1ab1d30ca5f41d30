"""Pair graphs against the recorded lists, spanning trees against SciPy, clips against the table."""

import json

import numpy as np
import pytest
from scipy.sparse import coo_array, csgraph

from align3r_jax import pairing
from align3r_jax.config import PairConfig
from align3r_jax.errors import UserError


@pytest.mark.golden
def test_graphs_golden(golden_dir):
    recorded = json.loads((golden_dir / "alignment_graphs.json").read_text())["align3r"]
    for key, pairs in recorded.items():
        name, num_frames = key.split("|")
        name, _, prefilter = name.partition("+")
        graph = pairing.make_pairs(int(num_frames), name, prefilter=prefilter or None)
        ours = [tuple(pair) for pair in graph.pairs.tolist()]
        # Self-pairs of cyclic windows are dropped.
        theirs = [tuple(pair) for pair in pairs if pair[0] != pair[1]]
        if name.startswith(("complete", "oneref")):
            assert ours == theirs, key
        else:
            assert set(ours) == set(theirs) and len(ours) == len(theirs), key
        half = graph.num_pairs // 2
        np.testing.assert_array_equal(graph.pairs[:half], graph.pairs[half:, ::-1])


@pytest.mark.golden
def test_clip_size_golden(golden_dir):
    table = json.loads((golden_dir / "alignment_graphs.json").read_text())["clip_size"]
    for start, sizes in table.items():
        for num_frames, size in sizes.items():
            ours = pairing.clip_size(int(num_frames), int(start))
            assert ours == (int(num_frames) if size is None else size), (start, num_frames)


@pytest.mark.golden
def test_hierarchical_graphs_golden(golden_dir):
    plan = json.loads((golden_dir / "alignment_hier_plan.json").read_text())
    num_frames = sum(len(clip) for clip in plan["clips"])
    assert pairing.clip_size(num_frames, plan["clip"]) == plan["clip"]
    clips = pairing.clips(num_frames, plan["clip"])
    assert [list(clip) for clip in clips] == plan["clips"]
    keys = np.array([clip[0] for clip in clips])
    assert keys.tolist() == plan["keys"]
    for symmetric, name in ((True, "pose_graphs"), (False, "depth_graphs")):
        graph = pairing.key_frame_graph(len(keys), symmetric)
        assert keys[graph.pairs].tolist() == plan[name][0]
        for clip, expected in zip(clips, plan[name][1:], strict=True):
            graph = pairing.clip_graph(len(clip), symmetric)
            assert (graph.pairs + clip[0]).tolist() == expected


def test_every_clip_has_at_least_two_frames():
    for num_frames in range(2, 300):
        size = pairing.clip_size(num_frames, 10)
        runs = pairing.clips(num_frames, size)
        assert [frame for run in runs for frame in run] == list(range(num_frames))
        assert min(len(run) for run in runs) >= 2


def test_named_graphs():
    def undirected(num_frames, name):
        graph = pairing.make_pairs(num_frames, name, symmetrize=False)
        assert not graph.symmetric
        return " ".join(f"{i}{j}" for i, j in graph.pairs)

    assert undirected(5, "swin-3-noncyclic") == "01 02 03 12 13 14 23 24 34"
    assert undirected(5, "swinstride-3-noncyclic") == "01 03 12 14 23 34"
    assert undirected(5, "swin2stride-3-noncyclic") == "01 04 12 23 34"
    assert undirected(5, "logwin-3-noncyclic") == "01 02 04 12 13 23 24 34"
    assert undirected(5, "oneref") == "01 02 03 04"
    assert undirected(5, "oneref-2") == "20 21 23 24"
    assert undirected(5, "swin-1") == "01 04 12 23 34"
    # A missing or unreadable window is 3.
    for name in ("swin", "swin-x", "swin-0"):
        assert undirected(9, name) == undirected(9, "swin-3")
    assert undirected(9, "swin-noncyclic") == undirected(9, "swin-3-noncyclic")
    # An offset equal to the number of frames would pair a frame with itself.
    assert "33" not in undirected(4, "swin-4").split()
    long = pairing.make_pairs(60, "swinstride-5-noncyclic")
    assert long.num_pairs == 550 and long.symmetric


def test_config_decides():
    graph = pairing.make_pairs(6, PairConfig(graph="swin-2-noncyclic", symmetrize=False))
    assert graph.num_pairs == 9 and graph.name == "swin-2-noncyclic"


def test_prefilter():
    assert pairing.make_pairs(8, "complete", prefilter="seq2").num_pairs == 2 * 13
    assert pairing.make_pairs(8, "complete", prefilter="cyc2").num_pairs == 2 * 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((5, "nonsense"), ["nonsense", "swinstride"]),
        ((5, "complete-3"), ["complete-3"]),
        ((1, "complete"), ["2 frames", "1"]),
        ((5, "oneref-7"), ["frame 7", "5 frames"]),
    ],
)
def test_bad_names_are_sentences(arguments, words):
    with pytest.raises(UserError) as caught:
        pairing.make_pairs(*arguments)
    assert all(word in str(caught.value) for word in words)


def test_disconnected_graphs_are_refused():
    with pytest.raises(UserError, match="does not connect all 6 frames"):
        pairing.make_pairs(6, "complete", prefilter="seq0")
    with pytest.raises(UserError, match="seq"):
        pairing.make_pairs(6, "complete", prefilter="near3")
    assert not pairing.is_connected(np.array([[0, 1], [2, 3]]), 4)
    assert not pairing.is_connected(np.array([[0, 1]]), 3)
    assert pairing.is_connected(np.array([[1, 0], [1, 2]]), 3)


def test_spanning_tree_is_scipys():
    rng = np.random.default_rng(0)
    for trial in range(30):
        num_frames = int(rng.integers(3, 15))
        graph = pairing.make_pairs(num_frames, "complete", symmetrize=trial % 2 == 0)
        scores = rng.uniform(1, 100, graph.num_pairs)
        chosen = pairing.spanning_tree(scores, graph.pairs, num_frames)
        weights = coo_array((-scores, graph.pairs.T), (num_frames, num_frames)).tocsr()
        tree = csgraph.minimum_spanning_tree(weights).tocoo()
        expected = set(zip(tree.row.tolist(), tree.col.tolist(), strict=True))
        assert {tuple(pair) for pair in graph.pairs[chosen].tolist()} == expected
        assert np.all(np.diff(scores[chosen]) <= 0)


def test_spanning_tree_breaks_ties_by_frame_numbers():
    graph = pairing.key_frame_graph(4, symmetric=True)
    chosen = pairing.spanning_tree(np.ones(graph.num_pairs), graph.pairs, 4)
    assert graph.pairs[chosen].tolist() == [[0, 1], [0, 2], [0, 3]]


def test_directed_pairs():
    graph = pairing.make_pairs(4, "swin-1-noncyclic", symmetrize=False)
    expected = [[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 2]]
    assert pairing.directed_pairs(graph).tolist() == expected
    both = pairing.make_pairs(4, "swin-1-noncyclic")
    assert pairing.directed_pairs(both).tolist() == expected
