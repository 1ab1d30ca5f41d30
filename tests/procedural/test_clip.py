"""The truth of a rendered clip agrees with itself and with the colours."""

import jax
import jax.numpy as jnp
import numpy as np

from data.procedural import clip, layout, noise, scene, textures


def _pixels(height, width):
    y, x = np.mgrid[:height, :width].astype(np.float64)
    return x, y


def _ego_flow(depth, intrinsics, from_pose, to_pose):
    """float64, straight from the definition."""
    x, y = _pixels(*depth.shape)
    focal, cx, cy = intrinsics[0, 0], intrinsics[0, 2], intrinsics[1, 2]
    depth = depth.astype(np.float64)
    points = np.stack([(x - cx) / focal * depth, (y - cy) / focal * depth, depth], -1)
    relative = np.linalg.inv(to_pose.astype(np.float64)) @ from_pose.astype(np.float64)
    moved = points @ relative[:3, :3].T + relative[:3, 3]
    x2 = moved[..., 0] / moved[..., 2] * focal + cx
    y2 = moved[..., 1] / moved[..., 2] * focal + cy
    return np.stack([x2 - x, y2 - y], -1), moved[..., 2]


def _sample(image, xy):
    x, y = np.clip(xy[..., 0], 0, image.shape[1] - 1), np.clip(xy[..., 1], 0, image.shape[0] - 1)
    x0 = np.minimum(x.astype(int), image.shape[1] - 2)
    y0 = np.minimum(y.astype(int), image.shape[0] - 2)
    wx, wy = (x - x0)[..., None], (y - y0)[..., None]
    image = image.astype(np.float64)
    top = image[y0, x0] * (1 - wx) + image[y0, x0 + 1] * wx
    bottom = image[y0 + 1, x0] * (1 - wx) + image[y0 + 1, x0 + 1] * wx
    return top * (1 - wy) + bottom * wy


def test_shapes_and_conventions(small_clip):
    count, height, width = small_clip.depth.shape
    assert small_clip.images.shape == (count, height, width, 3)
    assert small_clip.images.dtype == np.uint8
    assert small_clip.forward_flow.shape == (count - 1, height, width, 2)
    np.testing.assert_allclose(small_clip.world_from_cam[0], np.eye(4), atol=1e-6)
    rotations = small_clip.world_from_cam[:, :3, :3].astype(np.float64)
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (count, 1, 1)), atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-5)
    assert (small_clip.intrinsics[:, 0, 2] == width / 2).all()
    assert (small_clip.intrinsics[:, 1, 2] == height / 2).all()
    assert small_clip.depth.min() > 0.1
    clip.frames_of(small_clip)


def test_static_flow_is_the_ego_flow(small_clip):
    """Depth, poses, intrinsics and flow were made by different code paths; they must agree."""
    for first in range(small_clip.num_frames - 1):
        for source, target, flow in (
            (first, first + 1, small_clip.forward_flow[first]),
            (first + 1, first, small_clip.backward_flow[first]),
        ):
            ego, z = _ego_flow(
                small_clip.depth[source],
                small_clip.intrinsics[source],
                small_clip.world_from_cam[source],
                small_clip.world_from_cam[target],
            )
            still = ~small_clip.dynamic_mask[source] & (z > 0.05)
            assert still.mean() > 0.3
            assert np.abs(ego - flow)[still].max() < 1e-3
            moving = small_clip.dynamic_mask[source] & (z > 0.05)
            assert np.linalg.norm(ego - flow, axis=-1)[moving].max() > 0.5


def test_warping_by_the_flow_brings_the_image_back(small_clip):
    """Visible pixels, static and moving, against the unwarped difference."""
    x, y = _pixels(*small_clip.depth.shape[1:])
    grid = np.stack([x, y], -1)
    for first in range(small_clip.num_frames - 1):
        one, two = small_clip.images[first], small_clip.images[first + 1]
        back = _sample(two, grid + small_clip.forward_flow[first])
        error = np.abs(back - one).mean(-1) / 255
        unwarped = np.abs(two.astype(float) - one).mean(-1) / 255
        visible = small_clip.forward_visible[first]
        moving = small_clip.dynamic_mask[first]
        for part in (visible & ~moving, visible & moving):
            assert part.sum() > 50
            assert np.median(error[part]) < 0.03
            assert error[part].mean() < 0.6 * unwarped[part].mean()


def test_visible_points_keep_their_instance(small_clip):
    """Where a point is visible, the nearest pixel of the target shows the same object."""
    height, width = small_clip.depth.shape[1:]
    x, y = _pixels(height, width)
    target = np.stack([x, y], -1) + small_clip.forward_flow[0]
    column = np.clip(np.round(target[..., 0]), 0, width - 1).astype(int)
    row = np.clip(np.round(target[..., 1]), 0, height - 1).astype(int)
    same = small_clip.instance[1][row, column] == small_clip.instance[0]
    visible = small_clip.forward_visible[0]
    assert same[visible].mean() > 0.97
    hidden = ~visible & (target >= 0).all(-1) & (target[..., 0] < width - 1)
    hidden &= target[..., 1] < height - 1
    assert hidden.sum() == 0 or same[hidden].mean() < 0.5


def test_dynamic_mask_is_on_movers_only(small_clip):
    moving = np.append(np.asarray(small_clip.source.motion.moving), False)
    index = np.minimum(small_clip.instance, len(moving) - 1)
    np.testing.assert_array_equal(small_clip.dynamic_mask, moving[index])
    assert 0 < small_clip.dynamic_mask.mean() < 0.6


def test_flow_between_any_frames(small_clip):
    field = clip.flow_between(small_clip, np.array([[0, 1], [2, 0]]))
    np.testing.assert_allclose(field.flow[0], small_clip.forward_flow[0], atol=2e-3)
    ego, z = _ego_flow(
        small_clip.depth[2],
        small_clip.intrinsics[2],
        small_clip.world_from_cam[2],
        small_clip.world_from_cam[0],
    )
    still = ~small_clip.dynamic_mask[2] & (z > 0.05)
    assert np.abs(ego - field.flow[1])[still].max() < 1e-3


def test_depth_agrees_with_the_target_depth(small_clip):
    """A static visible point, moved to camera 2, lies on the surface that camera 2 sees."""
    _, z = _ego_flow(
        small_clip.depth[0],
        small_clip.intrinsics[0],
        small_clip.world_from_cam[0],
        small_clip.world_from_cam[1],
    )
    x, y = _pixels(*z.shape)
    seen = _sample(
        small_clip.depth[1][..., None], np.stack([x, y], -1) + small_clip.forward_flow[0]
    )[..., 0]
    part = small_clip.forward_visible[0] & ~small_clip.dynamic_mask[0]
    assert np.median(np.abs(np.log(seen / z))[part]) < 1e-3
    assert np.percentile(np.abs(np.log(seen / z))[part], 80) < 0.02


def test_same_key_same_scene(scenes):
    drawn = scenes[1]
    for leaf in jax.tree.leaves(drawn):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    assert not np.allclose(drawn.position[1], drawn.position[2])


def test_what_is_drawn(scenes):
    """Shares of places, small things on tables, thin structures, contact with what carries."""
    drawn = scenes[1]
    assert 0.1 < drawn.outdoor.mean() < 0.3
    clutter = drawn.scale[:, layout.CLUTTER]
    assert (np.median(clutter.max(-1), axis=0) < 0.6).all()
    assert (drawn.scale[:, layout.THIN].min(-1) < 0.03).all()
    assert (drawn.scale > 0).all() and np.isfinite(drawn.position).all()
    moving = drawn.motion.moving
    assert not moving[:, : layout.MOVERS.start].any() and moving[:, layout.MOVERS.start :].all()


def test_some_scenes_fade(scenes):
    options = scene.SceneOptions(faded=0.5)
    keys = jax.vmap(jax.random.key)(jnp.arange(400).at[0].set(1))
    draw = jax.jit(jax.vmap(lambda key: scene.sample_scene(key, options)))
    contrast = np.asarray(draw(keys).surfaces.contrast)
    assert 0.4 < (contrast < 1).mean() < 0.6
    assert contrast.min() >= 0 and 0.4 < contrast[contrast < 1].mean() < 0.6
    assert (scenes[1].surfaces.contrast == 1).all()  # by default none does


def test_evaluation_textures_are_unseen():
    train = np.asarray(textures.make_bank(tiles=12).texels)
    unseen = np.asarray(textures.make_bank(textures.EVALUATION_SEED, tiles=12).texels)
    again = np.asarray(textures.make_bank(tiles=12).texels)
    np.testing.assert_array_equal(train, again)
    distance = np.abs(train[:, None, ::64].astype(int) - unseen[None, :, ::64]).mean((2, 3))
    assert distance.min() > 2


def test_prior_noise(small_clip):
    key = jax.random.key(0)
    noisy = np.asarray(noise.noisy_prior(key, small_clip.depth, small_clip.instance))
    again = np.asarray(noise.noisy_prior(key, small_clip.depth, small_clip.instance))
    np.testing.assert_array_equal(noisy, again)
    assert noisy.shape == small_clip.depth.shape and (noisy > 0).all()
    ratio = np.log(noisy / small_clip.depth)
    assert 0.03 < np.abs(ratio).mean() < 0.8
    none = noise.NoiseOptions(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    clean = noise.noisy_prior(key, small_clip.depth, small_clip.instance, none)
    np.testing.assert_allclose(clean, small_clip.depth, rtol=1e-4)
