"""A tiny scene with a minimum: noisy observations of one world, in the precision in force."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from align3r_jax.alignment import variables as variables_lib
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import rigid, warp
from align3r_jax.structs import AlignmentPriors, OpticalFlow, PairGraph, PairPredictions

T, H, W = 3, 6, 8
PAIRS = np.array([[0, 1], [1, 2], [1, 0], [2, 1]], np.int32)
GRAPH = PairGraph(PAIRS, T, symmetric=True, name="chain")
CONFIG = AlignmentConfig(
    iterations=16, distance_floor=0.05, flow_weight=0.02, depth_regulariser_weight=0.05
)


def scene(seed=0, noise=0.03):
    """(predictions, priors with flow, a mask and a start near the truth) of `GRAPH`."""
    rng = np.random.default_rng(seed)
    focal, centre = 7.0, np.array([W / 2, H / 2])
    depth = 3 + 2 * rng.uniform(size=(T, H, W))
    turns = np.asarray(rigid.exp_so3(jnp.asarray(0.1 * rng.normal(size=(T, 3)))))
    poses = np.tile(np.eye(4), (T, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = turns, 0.6 * rng.normal(size=(T, 3))
    x, y = np.meshgrid(np.arange(W), np.arange(H))
    rays = np.stack([(x - centre[0]) / focal, (y - centre[1]) / focal, np.ones((H, W))], -1)
    world = np.einsum("tij,thwj->thwi", turns, rays * depth[..., None])
    world = world + poses[:, None, None, :3, 3]
    scale = np.exp(0.2 * rng.normal(size=len(PAIRS)))

    def view(side):
        frame, first = PAIRS[:, side], PAIRS[:, 0]
        local = np.einsum(
            "eji,ehwj->ehwi", turns[first], world[frame] - poses[first][:, None, None, :3, 3]
        )
        return scale[:, None, None, None] * (local + noise * rng.normal(size=local.shape))

    predictions = PairPredictions(
        view(0), view(1), *(rng.uniform(1.5, 9, size=(len(PAIRS), H, W)) for _ in range(2))
    )
    intrinsics = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
    fields = [
        warp.ego_flow(depth[i], intrinsics, intrinsics, poses[i], poses[j])
        for i, j in PAIRS.tolist()
    ]
    flow = OpticalFlow(
        PAIRS,
        jnp.asarray(np.stack(fields) + 0.2 * rng.normal(size=(len(PAIRS), H, W, 2))),
        jnp.asarray(rng.uniform(0.3, 1, size=(len(PAIRS), H, W))),
    )
    start = variables_lib.encode(
        jnp.asarray(depth * np.exp(0.05 * rng.normal(size=depth.shape))),
        jnp.asarray(poses),
        jnp.asarray(rng.uniform(6.7, 7.3, size=T)),
        jnp.asarray(1 / scale),
        jnp.asarray(turns[PAIRS[:, 0]]),
        jnp.asarray(poses[PAIRS[:, 0], :3, 3]),
        CONFIG,
    )
    start = dataclasses.replace(
        start, frame_translation=start.frame_translation + 0.02 * rng.normal(size=(T, 3))
    )
    priors = AlignmentPriors(flow=flow, dynamic_mask=np.zeros((T, H, W), bool), start=start)
    return jax.tree.map(jnp.asarray, predictions), priors


def summary(variables, config=CONFIG):
    """Something of the scene that does not depend on the frame of the world; smooth."""
    geometry = variables_lib.decode(variables, config, (H, W))
    relative = rigid.compose(
        rigid.invert(geometry.world_from_cam[:-1]), geometry.world_from_cam[1:]
    )
    weights = jnp.cos(jnp.arange(geometry.depth.size)).reshape(geometry.depth.shape)
    mean = jnp.mean(geometry.depth)
    return (
        jnp.sum(weights * geometry.depth) / mean
        + jnp.sum(relative[:, :3, 3]) / mean
        + jnp.sum(relative[:, 0, 1:3])
        + jnp.log(geometry.focal[0])
    )
