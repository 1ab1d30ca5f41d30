"""The start of the alignment against the recorded one, and on scenes whose truth is known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from align3r_jax import pairing
from align3r_jax.alignment import initialise, spanning_tree, variables
from align3r_jax.config import AlignmentConfig
from align3r_jax.errors import UserError
from align3r_jax.structs import PairPredictions
from tests.alignment import recorded

PARITY = AlignmentConfig(stale_focal=True, shared_focal=False)
SHARED = AlignmentConfig(stale_focal=True, shared_focal=True)

decode = jax.jit(variables.decode, static_argnames=("config", "image_size"))


def _compare(start, golden, prefix, atol=1e-4):
    ours = recorded.groups(start)
    for group in ("im_depthmaps", "im_poses", "im_focals", "pw_poses"):
        expected = golden[prefix + group]
        np.testing.assert_allclose(
            ours[group].reshape(expected.shape), expected, atol=atol, err_msg=group
        )


@pytest.mark.golden
def test_spanning_tree_golden(golden_dir):
    scene = np.load(golden_dir / "alignment_scene.npz")
    golden = np.load(golden_dir / "alignment_dust3r.npz")
    predictions, graph = recorded.predictions(scene), recorded.graph(scene["edges"])
    scores = initialise.pair_scores(predictions)
    np.testing.assert_allclose(scores, golden["mst_edge_scores"], rtol=1e-5)
    tree = spanning_tree.chain(predictions, graph, scores, PARITY)
    assert tree.pairs == [tuple(pair) for pair in golden["mst_edges"].tolist()]
    points = np.stack(tree.points)
    np.testing.assert_allclose(points[:, ::4, ::4], golden["mst_pts3d"], atol=1e-4)
    confidence = initialise.frame_confidence(predictions, graph)
    np.testing.assert_allclose(confidence[:, ::4, ::4], golden["im_conf"], rtol=1e-6)

    # The recorded poses and focals are those after the missing ones were found, before scaling.
    start = initialise.starting_scene(predictions, graph, PARITY)
    np.testing.assert_allclose(start.focal, golden["mst_focals"], rtol=1e-5)
    gain = variables.scale_normalisation(jnp.log(start.pair_scale), PARITY)
    poses = np.array(start.world_from_cam)
    poses[:, :3, 3] /= gain
    np.testing.assert_allclose(poses, golden["mst_poses"], atol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "config"), [("alignment_dust3r", PARITY), ("alignment_flow", SHARED)]
)
def test_start_golden(golden_dir, name, config):
    scene = np.load(golden_dir / "alignment_scene.npz")
    start = initialise.initialise(
        recorded.predictions(scene), recorded.graph(scene["edges"]), config
    )
    _compare(start, np.load(golden_dir / f"{name}.npz"), "init_")


@pytest.mark.golden
def test_known_cameras_golden(golden_dir):
    scene = np.load(golden_dir / "alignment_scene.npz")
    golden = np.load(golden_dir / "alignment_dust3r.npz")
    num_frames, size = int(scene["N"]), (int(scene["H"]), int(scene["W"]))
    known = variables.Known(
        world_from_cam=scene["poses"], focal=np.full(num_frames, float(scene["focal"]))
    )
    start = initialise.initialise(
        recorded.predictions(scene), recorded.graph(scene["edges"]), PARITY, known=known
    )
    # The orientation about the baseline is ill-conditioned and was recorded in float32: against
    # float64 the recorded quaternions are off by 1.4e-4. All else is well within 1e-4.
    expected = golden["known_init_pw_poses"]
    np.testing.assert_allclose(start.pair_quaternion, expected[:, :4], atol=1e-3)
    np.testing.assert_allclose(start.pair_translation, expected[:, 4:7], atol=1e-4)
    np.testing.assert_allclose(start.pair_log_scale, expected[:, 7], atol=1e-4)
    np.testing.assert_allclose(np.exp(start.log_depth), golden["known_init_depth"], atol=1e-4)
    settings = variables.settings_with_known(PARITY, known)
    decoded = decode(start, settings, size)
    matrices = golden["known_init_pw_matrices"]
    np.testing.assert_allclose(decoded.pair_matrix, matrices[:, :3, :3], atol=2e-3)
    np.testing.assert_allclose(decoded.pair_offset, matrices[:, :3, 3], atol=1e-4)
    np.testing.assert_allclose(decoded.world_from_cam, scene["poses"], atol=1e-5)
    np.testing.assert_allclose(decoded.focal, scene["focal"], rtol=1e-5)


@pytest.mark.golden
@pytest.mark.parametrize(("kind", "config"), [("pose", SHARED), ("depth", PARITY)])
def test_clips_start_from_their_key_frames_golden(golden_dir, kind, config):
    scene = np.load(golden_dir / "alignment_hier_scene.npz")
    plan = json.loads((golden_dir / "alignment_hier_plan.json").read_text())
    golden = np.load(golden_dir / f"alignment_hier_{kind}.npz")
    row = {tuple(pair): k for k, pair in enumerate(scene["edges"].tolist())}
    size = (int(scene["H"]), int(scene["W"]))
    for c, frames in enumerate(plan["clips"]):
        pairs = np.array(plan[f"{kind}_graphs"][1 + c])
        predictions = recorded.predictions(scene, [row[tuple(pair)] for pair in pairs.tolist()])
        if kind == "depth":
            predictions = _confidence_ten(predictions)
        start = initialise.initialise(
            predictions,
            recorded.graph(pairs - frames[0], len(frames)),
            config,
            key_frame_prior=initialise.KeyFramePrior(
                golden["key_cam_to_world"][c], golden["key_focals"][c]
            ),
        )
        decoded = decode(start, config, size)
        expected = golden[f"clip{c}_init_cam_to_world"]
        np.testing.assert_allclose(decoded.world_from_cam, expected, atol=1e-4)
        groups = recorded.groups(start)
        np.testing.assert_allclose(groups["pw_poses"], golden[f"clip{c}_init_pw_poses"], atol=1e-4)
        focals = golden[f"clip{c}_init_focal{'' if kind == 'pose' else 's'}"]
        np.testing.assert_allclose(decoded.focal, np.broadcast_to(focals, len(frames)), rtol=1e-5)
        if kind == "pose":
            np.testing.assert_allclose(
                decoded.depth[:, ::4, ::4], golden[f"clip{c}_init_depth"], atol=1e-4
            )


def _confidence_ten(predictions):
    """The depth evaluation of the paper's code sets every confidence above 1 to 10."""
    ten = {
        name: jnp.where(getattr(predictions, name) > 1, 10.0, getattr(predictions, name))
        for name in ("confidence1", "confidence2")
    }
    return predictions.replace(**ten)


HEIGHT, WIDTH, FOCAL = 24, 32, 40.0


def _truth(num_frames=4, seed=0):
    """Depth and poses of a wavy wall seen by a moving camera."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    depth = np.stack([3 + np.sin(x / 5 + n) + 0.5 * np.cos(y / 4) for n in range(num_frames)])
    poses = np.tile(np.eye(4), (num_frames, 1, 1))
    angles = 0.1 * rng.normal(size=(num_frames, 3))
    poses[:, :3, :3] = Rotation.from_rotvec(angles).as_matrix()
    poses[:, :3, 3] = 0.3 * rng.normal(size=(num_frames, 3))
    return depth, poses


def _perfect(graph, depth, poses, seed=0, principal_point=(WIDTH / 2, HEIGHT / 2)):
    """Exact predictions, every pair in a scale of its own."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    rays = np.stack(
        [(x - principal_point[0]) / FOCAL, (y - principal_point[1]) / FOCAL, np.ones(x.shape)], -1
    )
    maps = ([], [])
    for i, j in graph.pairs:
        scale = np.exp(0.5 * rng.normal())
        for side, frame in enumerate((i, j)):
            cam1_from_cam = np.linalg.inv(poses[i]) @ poses[frame]
            points = depth[frame][..., None] * rays
            maps[side].append(scale * (points @ cam1_from_cam[:3, :3].T + cam1_from_cam[:3, 3]))
    shape = (graph.num_pairs, HEIGHT, WIDTH)
    confidence = 4 + rng.random((2, *shape))
    arrays = [np.array(values, np.float32) for values in (*maps, *confidence)]
    return PairPredictions(*(jnp.asarray(array) for array in arrays))


def _check_similar(decoded, depth, poses, atol=2e-3):
    """Equal up to one similarity, which depth and poses share."""
    scale = np.median(np.asarray(decoded.depth) / depth)
    np.testing.assert_allclose(decoded.depth, scale * depth, rtol=atol)
    ours = np.asarray(decoded.world_from_cam)
    rebased = np.linalg.inv(ours[0]) @ ours
    truth = np.linalg.inv(poses[0]) @ poses
    truth[:, :3, 3] *= scale
    np.testing.assert_allclose(rebased, truth, atol=atol)


@pytest.mark.parametrize("symmetrize", [True, False])
def test_exact_predictions_start_at_the_truth(symmetrize):
    """Also the last frame of one-way graphs, which has neither pose nor focal from the tree."""
    graph = pairing.make_pairs(4, "swin-3-noncyclic", symmetrize=symmetrize)
    depth, poses = _truth()
    config = AlignmentConfig(shared_focal=False)
    start = initialise.initialise(_perfect(graph, depth, poses), graph, config)
    decoded = decode(start, config, (HEIGHT, WIDTH))
    frames = slice(None) if symmetrize else slice(-1)  # its focal comes from 21 candidates
    np.testing.assert_allclose(decoded.focal[frames], FOCAL, rtol=1e-3)
    if symmetrize:
        _check_similar(decoded, depth, poses)
    # Every pair maps its points onto the world.
    np.testing.assert_allclose(np.exp(np.mean(np.log(decoded.pair_scale))), 0.5, rtol=1e-5)


def test_stale_focal_is_only_for_parity():
    """A pair with stretched x and y spoils one focal, in parity mode also those of other frames."""
    graph = pairing.make_pairs(4, "swin-3-noncyclic")
    depth, poses = _truth()
    predictions = _perfect(graph, depth, poses)
    wrong = int(np.argmax(initialise.pair_scores(predictions)))
    stretch = jnp.array([1.3, 1.3, 1.0])
    predictions = predictions.replace(
        pointmap1=predictions.pointmap1.at[wrong].multiply(stretch),
        pointmap2=predictions.pointmap2.at[wrong].multiply(stretch),
    )
    fixed = initialise.starting_scene(predictions, graph, AlignmentConfig()).focal
    stale = initialise.starting_scene(predictions, graph, AlignmentConfig(stale_focal=True)).focal
    assert np.sum(np.abs(fixed / FOCAL - 1) > 0.1) == 1
    assert np.sum(np.abs(stale / FOCAL - 1) > 0.1) > 1


def test_known_poses_alone_fix_the_world():
    graph = pairing.make_pairs(4, "complete")
    depth, poses = _truth()
    known = variables.Known(world_from_cam=poses)
    config = variables.settings_with_known(AlignmentConfig(), known)
    start = initialise.initialise(_perfect(graph, depth, poses), graph, config, known=known)
    decoded = decode(start, config, (HEIGHT, WIDTH))
    np.testing.assert_allclose(decoded.world_from_cam, poses, atol=1e-4)
    np.testing.assert_allclose(decoded.depth, depth, rtol=2e-3)


def test_known_cameras_reach_frames_that_only_come_second():
    graph = pairing.make_pairs(4, "swin-3-noncyclic", symmetrize=False)
    depth, poses = _truth()
    known = variables.Known(world_from_cam=poses, focal=np.full(4, FOCAL))
    config = variables.settings_with_known(AlignmentConfig(), known)
    start = initialise.initialise(_perfect(graph, depth, poses), graph, config, known=known)
    decoded = decode(start, config, (HEIGHT, WIDTH))
    np.testing.assert_allclose(decoded.depth, depth, rtol=2e-3)


def test_known_cameras_that_stand_still_give_no_nan():
    graph = pairing.make_pairs(4, "complete")
    depth, poses = _truth()
    poses[1] = poses[0]
    known = variables.Known(world_from_cam=poses, focal=np.full(4, FOCAL))
    config = variables.settings_with_known(AlignmentConfig(), known)
    start = initialise.initialise(_perfect(graph, depth, poses), graph, config, known=known)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(start))


def test_known_principal_point_counts():
    graph = pairing.make_pairs(4, "complete")
    depth, poses = _truth()
    point = (WIDTH / 2 + 4.0, HEIGHT / 2 - 3.0)
    predictions = _perfect(graph, depth, poses, principal_point=point)
    known = variables.Known(principal_point=np.tile(point, (4, 1)))
    config = AlignmentConfig(shared_focal=False)
    start = initialise.initialise(predictions, graph, config, known=known)
    decoded = decode(start, config, (HEIGHT, WIDTH))
    np.testing.assert_allclose(decoded.focal, FOCAL, rtol=1e-3)
    np.testing.assert_allclose(decoded.principal_point, np.tile(point, (4, 1)), rtol=1e-5)


def test_unreliable_frames_stay_where_they_are():
    """Too few confident points for PnP: identity pose, finite variables."""
    graph = pairing.make_pairs(4, "swin-3-noncyclic", symmetrize=False)
    depth, poses = _truth()
    predictions = _perfect(graph, depth, poses)
    predictions = predictions.replace(confidence2=jnp.full_like(predictions.confidence2, 1.5))
    start = initialise.initialise(predictions, graph, AlignmentConfig())
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(start))


def test_partly_known_cameras_are_refused():
    graph = pairing.make_pairs(4, "complete")
    depth, poses = _truth()
    known = variables.Known(world_from_cam=poses[:2])
    with pytest.raises(UserError, match="every frame"):
        initialise.initialise(_perfect(graph, depth, poses), graph, AlignmentConfig(), known=known)


def test_meaningless_points_change_nothing():
    """Confidence 1 or NaN: no weight anywhere, and other pairs know the depth."""
    graph = pairing.make_pairs(4, "complete")
    depth, poses = _truth()
    predictions = _perfect(graph, depth, poses)
    rng = np.random.default_rng(5)
    values = {}
    for side, value in ((1, 77.0), (2, np.nan)):
        wrong = jnp.asarray(rng.random(predictions.confidence1.shape) < 0.1)
        points = getattr(predictions, f"pointmap{side}")
        confidence = getattr(predictions, f"confidence{side}")
        values[f"pointmap{side}"] = jnp.where(wrong[..., None], value, points)
        values[f"confidence{side}"] = jnp.where(wrong, 1.0, confidence)
    config = AlignmentConfig(shared_focal=False)
    start = initialise.initialise(PairPredictions(**values), graph, config)
    decoded = decode(start, config, (HEIGHT, WIDTH))
    np.testing.assert_allclose(decoded.focal, FOCAL, rtol=1e-3)
    scale = np.median(np.asarray(decoded.depth) / depth)
    # A pixel is known in one of its six pairs at least.
    assert np.mean(np.isclose(decoded.depth, scale * depth, rtol=2e-3)) > 0.999


def test_a_pair_without_any_points_does_no_harm_to_others():
    graph = pairing.make_pairs(4, "complete")
    depth, poses = _truth()
    predictions = _perfect(graph, depth, poses)
    predictions = predictions.replace(
        pointmap1=predictions.pointmap1.at[2].set(0.0),
        pointmap2=predictions.pointmap2.at[2].set(0.0),
        confidence1=predictions.confidence1.at[2].set(1.0),
        confidence2=predictions.confidence2.at[2].set(1.0),
    )
    config = AlignmentConfig()
    start = initialise.initialise(predictions, graph, config)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(start))
    _check_similar(decode(start, config, (HEIGHT, WIDTH)), depth, poses)


def test_nothing_but_constant_points_still_starts():
    graph = pairing.make_pairs(4, "complete")
    depth, poses = _truth()
    predictions = jax.tree.map(jnp.ones_like, _perfect(graph, depth, poses))
    start = initialise.initialise(predictions, graph, AlignmentConfig())
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(start))
