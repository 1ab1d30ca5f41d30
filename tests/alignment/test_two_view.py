"""Two frames by themselves: against the recorded values and on exact predictions."""

import numpy as np
import pytest

from align3r_jax import pairing
from align3r_jax.alignment import two_view
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from tests.alignment import recorded
from tests.alignment.test_initialise import (
    FOCAL,
    HEIGHT,
    WIDTH,
    _check_similar,
    _perfect,
    _truth,
    decode,
)


@pytest.mark.golden
def test_two_view_golden(golden_dir):
    scene = np.load(golden_dir / "alignment_scene.npz")
    golden = np.load(golden_dir / "alignment_flow.npz")
    graph = recorded.graph(scene["edges"])
    scenes = two_view.solve(recorded.predictions(scene), graph, AlignmentConfig())
    np.testing.assert_array_equal(scenes.pairs, graph.pairs[: graph.num_pairs // 2])
    np.testing.assert_allclose(scenes.focal, golden["pair_focals"], rtol=1e-4)
    np.testing.assert_allclose(scenes.world_from_cam, golden["pair_poses"], atol=1e-4)
    np.testing.assert_allclose(scenes.depth[..., ::4, ::4], golden["pair_depth"], rtol=1e-4)


def test_two_frames_are_the_whole_video():
    graph = pairing.make_pairs(2, "complete")  # the pair (1, 0) first
    depth, poses = _truth(2)
    config = AlignmentConfig()
    start = two_view.initialise(_perfect(graph, depth, poses), graph, config)
    decoded = decode(start, config, (HEIGHT, WIDTH))
    np.testing.assert_allclose(decoded.focal, FOCAL, rtol=1e-3)
    _check_similar(decoded, depth, poses)
    # The pairs' similarities agree with the scene: pair (1, 0) maps camera 1 into the world.
    np.testing.assert_allclose(np.exp(np.mean(np.log(decoded.pair_scale))), 0.5, rtol=1e-5)


def test_one_way_graphs_are_refused():
    graph = pairing.make_pairs(4, "complete", symmetrize=False)
    predictions = _perfect(graph, *_truth())
    with pytest.raises(UserError, match="one direction only"):
        two_view.solve(predictions, graph, AlignmentConfig())
