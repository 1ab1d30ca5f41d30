"""Reading of the recorded alignment files into our structures."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from align3r_jax.alignment import variables as variables_lib
from align3r_jax.structs import AlignmentVariables, OpticalFlow, PairGraph, PairPredictions

# Recorded group -> how our variables split it.
GROUPS = (
    "im_depthmaps",
    "im_poses",
    "im_focals",
    "im_pp",
    "pw_poses",
    "pw_adaptors",
)


def variables(golden, prefix: str, size: tuple[int, int]) -> AlignmentVariables:
    """The recorded parameters `prefix + group`; groups that are not recorded are zero."""
    values = {
        group: jnp.asarray(golden[prefix + group], jnp.float32)
        for group in GROUPS
        if prefix + group in golden
    }
    frames, pairs = values["im_poses"].shape[0], values["pw_poses"].shape[0]
    return AlignmentVariables(
        log_depth=values["im_depthmaps"].reshape(frames, *size),
        frame_quaternion=values["im_poses"][:, :4],
        frame_translation=values["im_poses"][:, 4:],
        log_focal=values["im_focals"][:, 0],
        principal_point=values.get("im_pp", jnp.zeros((frames, 2))),
        pair_quaternion=values["pw_poses"][:, :4],
        pair_translation=values["pw_poses"][:, 4:7],
        pair_log_scale=values["pw_poses"][:, 7],
        pair_adaptor=values.get("pw_adaptors", jnp.zeros((pairs, 2))),
    )


def groups(tree: AlignmentVariables) -> dict[str, np.ndarray]:
    """The inverse of `variables` (for gradients): recorded group -> array."""
    frames = tree.log_depth.shape[0]
    pose = [tree.frame_quaternion, tree.frame_translation]
    pair = [tree.pair_quaternion, tree.pair_translation, tree.pair_log_scale[:, None]]
    return {
        "im_depthmaps": np.asarray(tree.log_depth).reshape(frames, -1),
        "im_poses": np.concatenate(pose, axis=-1),
        "im_focals": np.asarray(tree.log_focal)[:, None],
        "im_pp": np.asarray(tree.principal_point),
        "pw_poses": np.concatenate(pair, axis=-1),
        "pw_adaptors": np.asarray(tree.pair_adaptor),
    }


def predictions(scene, rows=slice(None)) -> PairPredictions:
    """The stored pair predictions, float32, optionally only some pairs."""
    names = ("pred_i", "pred_j", "conf_i", "conf_j")
    return PairPredictions(*(jnp.asarray(scene[name][rows], jnp.float32) for name in names))


def graph(pairs, num_frames: int | None = None) -> PairGraph:
    """A graph of the given pairs; symmetric if the second half reverses the first."""
    pairs = np.asarray(pairs, np.int32)
    half = len(pairs) // 2
    symmetric = len(pairs) % 2 == 0 and bool((pairs[:half] == pairs[half:, ::-1]).all())
    return PairGraph(
        pairs=pairs,
        num_frames=int(pairs.max()) + 1 if num_frames is None else num_frames,
        symmetric=symmetric,
        name="recorded",
    )


def flow(scene, pairs, rows=slice(None)) -> OpticalFlow:
    """One field per pair and direction, all weights 1 (fields of reversed pairs differ)."""
    pairs = np.asarray(pairs, np.int32)
    fields = [np.moveaxis(scene[name][rows], 1, -1) for name in ("flow_ij", "flow_ji")]
    fields = jnp.asarray(np.concatenate(fields), jnp.float32)
    return OpticalFlow(
        pairs=np.concatenate([pairs, pairs[:, ::-1]]),
        flow=fields,
        weight=jnp.ones(fields.shape[:3]),
    )


# About 5x what float32 against float64 differs by after 300 iterations.
FINAL = {"median_depth": 5e-4, "depth": 1e-2, "pose": 7.5e-3, "focal": 0.1}
CHAOTIC = {"median_depth": 4e-3, "depth": 0.1, "pose": 0.1, "focal": 1.5}


def assert_cameras_and_depth(geometry, depth, world_from_cam, focals, bars=FINAL) -> None:
    """Compares a decoded scene with recorded arrays; depth relative, the rest absolute."""
    error = np.abs(np.asarray(geometry.depth).reshape(depth.shape) / depth - 1)
    assert np.median(error) < bars["median_depth"] and error.max() < bars["depth"]
    np.testing.assert_allclose(geometry.world_from_cam, world_from_cam, atol=bars["pose"])
    np.testing.assert_allclose(geometry.focal, focals, atol=bars["focal"])


def assert_final_state(tree, config, golden, name, size) -> None:
    """Compares optimised variables with the recorded end of the run `name`."""
    geometry = variables_lib.decode(tree, config, size)
    assert_cameras_and_depth(
        geometry,
        golden[f"{name}_depth"],
        golden[f"{name}_cam_to_world"],
        golden[f"{name}_focals"],
    )
