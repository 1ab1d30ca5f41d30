"""Known cameras through the main flow: the user's world, unit and resolution; masks; metres."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from align3r_jax import pairing, pipeline, stages
from align3r_jax.alignment import known_cameras, user_cameras, user_world, variables
from align3r_jax.config import AlignmentConfig, PairConfig, ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.geometry import camera
from align3r_jax.structs import DepthPrior, Frames, KnownCameras, WorkingSize
from data.procedural import benchmark, clip, oracle

CONFIG = ReconstructConfig(
    prior="none",
    pairs=PairConfig(graph="swinstride-2-noncyclic"),
    alignment=AlignmentConfig(iterations=60, flow_weight=0.0, motion_mask_updates=0),
)
CONFIG = dataclasses.replace(CONFIG, flow=dataclasses.replace(CONFIG.flow, source="none"))
UNIT, FRAMES = 7.5, 5
ORIGINAL = WorkingSize(original=(136, 192), resized=(68, 96), crop=(2, 0), working=(64, 96))


@pytest.fixture(scope="module")
def rendered():
    return benchmark.render("desk", frames=FRAMES, height=64, width=96, supersample=1)


@pytest.fixture(scope="module")
def world_poses(rendered):
    """The true poses turned, moved and measured in another unit."""
    rotation = Rotation.from_rotvec([0.3, 1.0, 0.2]).as_matrix()
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    true = rendered.world_from_cam.astype(np.float64)
    poses[:, :3, :3] = rotation @ true[:, :3, :3]
    poses[:, :3, 3] = UNIT * true[:, :3, 3] @ rotation.T + [100, -40, 7]
    return poses


def known_in(values, frames):
    inside = np.isin(np.arange(len(values)), frames)[:, None, None]
    return np.where(inside, values, np.nan)


def run(rendered, cameras=None, *, frames=None, prior=None, masks=None, config=CONFIG, **alignment):
    record = stages.Run()
    scene = pipeline.reconstruct(
        clip.frames_of(rendered) if frames is None else frames,
        predictor=oracle.OraclePredictor(rendered),
        cameras=cameras,
        prior=prior,
        masks=masks,
        config=dataclasses.replace(
            config, alignment=dataclasses.replace(config.alignment, **alignment)
        ),
        run=record,
    )
    return scene, record


def centre_error(scene, poses):
    """Largest distance of a camera from where it is, in spreads of the true path."""
    centres = poses[:, :3, 3]
    spread = np.sqrt(((centres - centres.mean(0)) ** 2).sum(-1).mean())
    return np.linalg.norm(scene.world_from_cam[:, :3, 3] - centres, axis=-1).max() / spread


def scale_of(scene, rendered, unit=UNIT):
    return np.median(scene.depth / (unit * rendered.depth))


def test_all_poses_are_held_and_fix_the_unit(rendered, world_poses):
    scene, _ = run(rendered, KnownCameras(world_from_cam=world_poses))
    np.testing.assert_allclose(scene.world_from_cam, world_poses, atol=2e-5)
    assert abs(scale_of(scene, rendered) - 1) < 0.02


def test_some_poses_place_the_others(rendered, world_poses):
    some = known_in(world_poses, [0, 1, 4])
    scene, record = run(rendered, KnownCameras(world_from_cam=some))
    np.testing.assert_allclose(scene.world_from_cam[[0, 1, 4]], world_poses[[0, 1, 4]], atol=2e-5)
    assert centre_error(scene, world_poses) < 0.1
    assert abs(scale_of(scene, rendered) - 1) < 0.04
    assert not any("scale" in sentence for sentence in record.limits)


@pytest.fixture(scope="module")
def predicted(rendered):
    graph = pairing.make_pairs(FRAMES, CONFIG.pairs)
    predictor = oracle.OraclePredictor(rendered)
    return predictor.predict(predictor.prepare(None, None, None), graph), graph


def place(predicted, rendered, poses):
    known, _ = user_cameras.from_user(
        clip.frames_of(rendered).size, FRAMES, KnownCameras(world_from_cam=poses)
    )
    placed = user_world.place(*predicted, CONFIG.alignment, known)
    geometry = variables.decode(placed.start, placed.config, rendered.depth.shape[1:])
    return placed, placed.world.poses_to_user(geometry.world_from_cam)


def test_one_pose_places_the_world_but_not_its_unit(predicted, rendered, world_poses):
    placed, poses = place(predicted, rendered, known_in(world_poses, [1]))
    np.testing.assert_allclose(poses[1], world_poses[1], atol=2e-5)
    turns = world_poses[:, :3, :3].transpose(0, 2, 1) @ poses[:, :3, :3]
    assert (np.trace(turns, axis1=1, axis2=2) > 3 - 0.02).all()
    assert placed.config.normalise_pair_scale and not placed.known.fixes_scale
    assert "scale of the scene is free" in placed.notes[0]


def test_cameras_on_one_spot_fix_no_unit_either(predicted, rendered, world_poses):
    on_one_spot = world_poses.copy()
    on_one_spot[:, :3, 3] = [5, 6, 7]
    placed, poses = place(predicted, rendered, on_one_spot)
    np.testing.assert_allclose(poses, on_one_spot, atol=1e-5)
    assert not placed.known.fixes_scale and "positions hardly differ" in placed.notes[0]


def test_poses_with_the_wrong_axes_are_noticed(predicted, rendered, world_poses):
    # Cameras turned by 180 degrees about their own x axis: no world makes them fit.
    placed, _ = place(predicted, rendered, world_poses * [1, -1, -1, 1])
    assert any("differ from what the video shows" in sentence for sentence in placed.notes)
    far = world_poses.copy()
    far[:, :3, 3] += 1e6
    placed, poses = place(predicted, rendered, far)
    np.testing.assert_allclose(poses, far, atol=2e-5)  # the aligner itself loses nothing
    assert any("Subtract an offset" in sentence for sentence in placed.notes)


def test_the_parallax_of_known_steps_gives_the_scale(predicted, rendered):
    predictions, graph = predicted
    own = np.array([
        np.median(predictions.pointmap1[k, ..., 2] / rendered.depth[i])
        for k, i in enumerate(graph.pairs[:, 0])
    ])  # fmt: skip
    growth = known_cameras.parallax_scale(
        predictions, graph.pairs, 0.5 / own, rendered.world_from_cam, rendered.intrinsics
    )
    assert growth == pytest.approx(2, rel=0.02)


def test_soft_poses_lie_between(rendered, world_poses):
    rng = np.random.default_rng(0)
    spread = np.std(world_poses[:, :3, 3], axis=0).max()
    noisy = world_poses.copy()
    noisy[:, :3, 3] += 0.2 * spread * rng.normal(size=(FRAMES, 3))
    turns = Rotation.from_rotvec(np.deg2rad(2) * rng.normal(size=(FRAMES, 3))).as_matrix()
    noisy[:, :3, :3] = turns @ noisy[:, :3, :3]
    soft = KnownCameras(
        world_from_cam=noisy, rotation_deviation=2.0, translation_deviation=0.2,
        relative_translation=True,
    )  # fmt: skip
    scene, _ = run(rendered, soft)
    assert scene.trace["known_cameras"][-1] > 0

    def relative_turn(poses):
        steps = np.linalg.inv(poses[:-1]) @ poses[1:]
        true = np.linalg.inv(world_poses[:-1]) @ world_poses[1:]
        trace = np.trace(true[:, :3, :3].transpose(0, 2, 1) @ steps[:, :3, :3], axis1=1, axis2=2)
        return np.rad2deg(np.arccos(np.clip((trace - 1) / 2, -1, 1))).mean()

    # The images know the rotations far better than these poses do.
    assert relative_turn(scene.world_from_cam.astype(np.float64)) < 0.5 * relative_turn(noisy)
    assert centre_error(scene, world_poses) < centre_error(scene.replace(world_from_cam=noisy),
                                                           world_poses)  # fmt: skip
    assert abs(scale_of(scene, rendered) - 1) < 0.15


def test_intrinsics_at_the_original_resolution(rendered):
    """The frames were halved and cropped; who hands over the original numbers must be right."""
    frames = Frames(rendered.images, rendered.times, ORIGINAL, clip.frames_of(rendered).names)
    original = np.asarray(camera.to_original(rendered.intrinsics, ORIGINAL), np.float64)
    scene, _ = run(rendered, KnownCameras(intrinsics=original[0]), frames=frames)
    np.testing.assert_allclose(scene.intrinsics, rendered.intrinsics, rtol=1e-5)
    good = np.mean(np.abs(scene.depth / rendered.depth / scale_of(scene, rendered, 1) - 1))
    # The trap: the same numbers taken for those of the working size, as if nothing was resized.
    trapped = KnownCameras(intrinsics=original[0], image_size=[64, 96])
    with pytest.raises(UserError, match="proportions|outside"):
        run(rendered, trapped, frames=frames)
    naive = KnownCameras(intrinsics=original[0] * [[1, 1, 0.5], [1, 1, 0.5], [1, 1, 1]])
    wrong, _ = run(rendered, naive)
    assert wrong.intrinsics[0, 0, 0] == pytest.approx(2 * rendered.intrinsics[0, 0, 0], rel=1e-5)
    bad = np.mean(np.abs(wrong.depth / rendered.depth / scale_of(wrong, rendered, 1) - 1))
    assert good < 0.02 < 0.04 < bad


def test_ignored_pixels_have_no_weight_and_given_masks_stay(rendered):
    rng = np.random.default_rng(1)
    labels = np.full(rendered.depth.shape, 255, np.uint8)
    labels[:, :, :20] = 2
    labels[0] = np.where(labels[0] == 2, 2, 0)
    labels[0, 40:50, 40:60] = 1

    class Spoiled(oracle.OraclePredictor):
        noise = 0.0

        def predict(self, state, graph):
            found = super().predict(state, graph)
            for points in (found.pointmap1, found.pointmap2):
                points[:, :, :20] *= 1 + self.noise * rng.uniform(size=points[:, :, :20].shape)
            return found

    def reconstruct(noise):
        predictor = Spoiled(rendered)
        predictor.noise = noise
        return pipeline.reconstruct(
            clip.frames_of(rendered), predictor=predictor, masks=labels, config=CONFIG
        )

    clean, spoiled = reconstruct(0.0), reconstruct(5.0)
    np.testing.assert_allclose(spoiled.world_from_cam, clean.world_from_cam, atol=1e-5)
    np.testing.assert_allclose(spoiled.depth[:, :, 20:], clean.depth[:, :, 20:], rtol=1e-4)
    assert clean.dynamic_mask[0, 45, 50] and not clean.dynamic_mask[0, 30:39, 30:].any()
    with pytest.raises(UserError, match="label 7"):
        run(rendered, masks=np.full(rendered.depth.shape, 7, np.uint8))


def test_a_metric_prior_gives_metres_and_its_spread(rendered):
    factors = np.array([1.1, 0.9, 1.0, 1.05, 0.95])[:, None, None]
    depth = (rendered.depth * factors).astype(np.float32)
    prior = DepthPrior(depth, depth, None, "files", metric=True)
    scene, record = run(rendered, prior=prior)
    assert scene.metric and abs(scale_of(scene, rendered, 1) - 1) < 0.03
    assert record.facts["depth_scale_spread"] == pytest.approx(1.4826 * 0.05, rel=0.3)
    relative = dataclasses.replace(prior, metric=False)
    assert pipeline._scale_of_prior(np.zeros(depth.shape), relative, False, record) == (1.0, False)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [range(FRAMES), [0, 2, 3]])
def test_long_videos_end_in_the_world_of_the_user(rendered, world_poses, frames):
    config = dataclasses.replace(
        CONFIG, pairs=dataclasses.replace(CONFIG.pairs, mode="hierarchical", clip_size=3)
    )
    cameras = KnownCameras(world_from_cam=known_in(world_poses, list(frames)))
    scene, record = run(rendered, cameras, config=config)
    assert abs(scale_of(scene, rendered) - 1) < 0.05
    assert centre_error(scene, world_poses) < (1e-4 if len(frames) == FRAMES else 0.3)
    held = not any("not held in it" in sentence for sentence in record.limits)
    assert held == (len(frames) == FRAMES)
