"""Sampling on hand-made images; ego flow against explicit projection and the recorded flows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align3r_jax.geometry import rigid, warp


def test_pixel_grid_is_x_then_y():
    grid = warp.pixel_grid(2, 3)
    assert grid.shape == (2, 3, 2)
    np.testing.assert_array_equal(grid[1, 2], [2, 1])


def test_sample_bilinear_is_exact_on_a_plane():
    grid = warp.pixel_grid(7, 9)
    image = jnp.stack([2 * grid[..., 0] + 3 * grid[..., 1], grid[..., 0] - grid[..., 1]], axis=-1)
    xy = jnp.asarray(np.random.default_rng(0).uniform(0, 6, size=(5, 4, 2)), jnp.float32)
    expected = jnp.stack([2 * xy[..., 0] + 3 * xy[..., 1], xy[..., 0] - xy[..., 1]], axis=-1)
    np.testing.assert_allclose(warp.sample_bilinear(image, xy), expected, atol=1e-4)


@pytest.mark.parametrize(
    "xy, zero, replicate",
    [((-0.25, 0.0), 0.75, 1.0), ((-1.0, 0.0), 0.0, 1.0), ((3.5, 2.5), 1.0, 4.0), ((99, -99), 0, 3)],
)
def test_sample_bilinear_outside(xy, zero, replicate):
    image = jnp.zeros((3, 4, 1)).at[0, 0, 0].set(1.0).at[2, 3, 0].set(4.0).at[0, 3, 0].set(3.0)
    at = jnp.array(xy, jnp.float32)
    np.testing.assert_allclose(warp.sample_bilinear(image, at)[0], zero, atol=1e-6)
    np.testing.assert_allclose(
        warp.sample_bilinear(image, at, "replicate")[0], replicate, atol=1e-6
    )


def test_invert_intrinsics():
    intrinsics = jnp.array([[50.0, 0.3, 20.0], [0.0, 60.0, 15.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(
        intrinsics @ warp.invert_intrinsics(intrinsics), np.eye(3), atol=1e-6
    )


def test_ego_flow_is_projection_of_moved_points():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        depth = jnp.asarray(rng.uniform(2, 5, size=(2, 6, 8)))
        k1 = jnp.array([[30.0, 0, 4.0], [0, 30.0, 3.0], [0, 0, 1]])
        k2 = jnp.array([[25.0, 0, 4.5], [0, 28.0, 2.5], [0, 0, 1]])
        rotation = rigid.exp_so3(jnp.asarray(0.1 * rng.normal(size=(4, 3))))
        pose = rigid.pose(rotation, jnp.asarray(0.2 * rng.normal(size=(4, 3))))
        flow = warp.ego_flow(depth, k1, k2, pose[:2], pose[2:])
        grid = warp.pixel_grid(6, 8)
        ray = jnp.stack(
            [(grid[..., 0] - 4) / 30, (grid[..., 1] - 3) / 30, jnp.ones((6, 8))], axis=-1
        )
        world = rigid.apply(pose[:2], depth[..., None] * ray)
        pixel = rigid.rotate(k2, rigid.apply(rigid.invert(pose[2:]), world))
        expected = pixel[..., :2] / pixel[..., 2:] - grid
        np.testing.assert_allclose(flow, expected, atol=1e-4)


@pytest.mark.golden
def test_recorded_ego_flow(golden_dir):
    masks = {
        name: jnp.asarray(value) for name, value in np.load(golden_dir / "flow_masks.npz").items()
    }
    pose1, pose2 = (rigid.pose(masks[f"R{k}"], masks[f"T{k}"]) for k in (1, 2))
    forward = warp.ego_flow(masks["depth1"], masks["K1"], masks["K2"], pose1, pose2)
    backward = warp.ego_flow(masks["depth2"], masks["K2"], masks["K1"], pose2, pose1)
    np.testing.assert_allclose(forward, masks["ego12"], atol=2e-5 * np.abs(masks["ego12"]).max())
    np.testing.assert_allclose(backward, masks["ego21"], atol=2e-5 * np.abs(masks["ego21"]).max())


@pytest.mark.golden
def test_recorded_sampling(golden_dir):
    """The consistency of a flow and its reverse is one sample with zeros outside."""
    masks = {
        name: jnp.asarray(value) for name, value in np.load(golden_dir / "flow_masks.npz").items()
    }
    flow12, flow21 = masks["flow12"], masks["flow21"]
    grid = warp.pixel_grid(*flow12.shape[1:3])
    back = jax.vmap(warp.sample_bilinear)(flow21, grid + flow12)
    inconsistency = jnp.abs(jnp.sum(back + flow12, axis=-1))
    np.testing.assert_allclose(inconsistency, masks["inconsistency"], atol=1e-4)
