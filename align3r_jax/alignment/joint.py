"""All frames of a long video refined together, after its clips were aligned one by one.

Minimises the loss of `objective` over all cameras, focals, pair similarities and the depth of a
few hundred pixels per frame, on the pairs of the key frames, of all clips, and across the borders
of clips. What comes back is a change of the cameras and one factor per frame for the full depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from align3r_jax.alignment import align as align_lib
from align3r_jax.alignment import initialise as initialise_lib
from align3r_jax.alignment import lattice, objective
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.alignment.solvers import adam
from align3r_jax.alignment.terms import pointmap
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import warp
from align3r_jax.structs import (
    AlignmentVariables,
    Array,
    OpticalFlow,
    PairGraph,
    PairPredictions,
)

_LR, _LR_MIN = 3e-3, 1e-4  # small steps: the clips are nearly right


@struct.dataclass
class Observations:
    """What is kept of the pairs, NumPy: every `stride`-th pixel in x and y of what they predict.

    pairs: (P, 2) frame numbers of the video. predictions: (P, h, w, ...). flow: fields (D, h, w)
    in pixels of the full image, or None. image_size: (H, W) of the full image.
    """

    pairs: np.ndarray
    predictions: PairPredictions
    flow: OpticalFlow | None
    stride: int = struct.field(pytree_node=False)
    image_size: tuple[int, int] = struct.field(pytree_node=False)


def stride_of(height: int, width: int, config: AlignmentConfig) -> int:
    """Returns the stride at which about `config.joint_pixels` pixels of a frame are left."""
    return max(1, int(np.sqrt(height * width / config.joint_pixels)))


def observe(
    pairs: np.ndarray, predictions: PairPredictions, flow: OpticalFlow | None, stride: int
) -> Observations:
    """Returns the lattice of full-size predictions and flow; nothing full-size is referred to."""
    height, width = predictions.confidence1.shape[1:]
    return Observations(
        np.asarray(pairs, np.int32),
        jax.tree.map(np.array, lattice.predictions(predictions, stride)),
        jax.tree.map(np.array, lattice.flow(flow, stride)),
        stride=stride,
        image_size=(int(height), int(width)),
    )


def observe_in_parts(
    graph: PairGraph,
    predict: Callable[[PairGraph], PairPredictions],
    flow_of: Callable[[PairGraph], OpticalFlow | None] | None,
    config: AlignmentConfig,
    pairs_at_once: int,
) -> Observations:
    """Asks for the pairs of a graph some at a time and keeps their lattice."""
    parts = []
    for first in range(0, graph.num_pairs, pairs_at_once):
        pairs = graph.pairs[first : first + pairs_at_once]
        part = dataclasses.replace(graph, pairs=pairs, symmetric=False)
        found = predict(part)
        height, width = found.confidence1.shape[1:]
        stride = stride_of(height, width, config)
        parts.append(observe(pairs, found, flow_of(part) if flow_of else None, stride))
    return concatenate(parts)


def concatenate(parts: Iterable[Observations]) -> Observations:
    """Returns the observations of all parts; of several fields of one direction the first."""
    parts = list(parts)
    predictions = jax.tree.map(
        lambda *arrays: np.concatenate(arrays), *(part.predictions for part in parts)
    )
    fields = [part.flow for part in parts if part.flow is not None]
    flow = None
    if fields:
        _, first = np.unique(
            np.concatenate([part.pairs for part in fields]), axis=0, return_index=True
        )
        pairs, vectors, weight = (
            np.concatenate([np.asarray(getattr(part, name)) for part in fields])[first]
            for name in ("pairs", "flow", "weight")
        )
        flow = OpticalFlow(pairs, vectors, weight, name=fields[0].name)
    pairs = np.concatenate([part.pairs for part in parts])
    return Observations(pairs, predictions, flow, parts[0].stride, parts[0].image_size)


@struct.dataclass
class Refined:
    """variables: depth on the lattice. trace: as of `solvers.adam`. pair_losses: (P,)."""

    variables: AlignmentVariables
    trace: dict[str, Array]
    pair_losses: Array
    failed: bool = struct.field(pytree_node=False)


def solve(
    observations: Observations,
    start: AlignmentVariables,
    dynamic_mask: Array | None,
    config: AlignmentConfig,
    *,
    known: variables_lib.Known | None = None,
    ignore: Array | None = None,
    depth_prior: Array | None = None,
    progress: adam.Progress | None = None,
) -> Refined:
    """Minimises the loss on the lattice from `start` with `config.iterations` steps of Adam.

    start: depth (T, h, w) on the lattice. dynamic_mask, ignore, depth_prior: (T, h, w). The
    smoothness term counts with its mean over the frames: as a sum, beside terms that are means, it
    would shorten the path of a long video.
    """
    frames = start.log_depth.shape[0]
    graph = PairGraph(observations.pairs, frames, symmetric=False, name="joint")
    config = dataclasses.replace(config, smoothness_weight=config.smoothness_weight / frames)
    problem = lattice.at_pixels(
        objective.prepare(
            observations.predictions,
            graph,
            observations.flow,
            start,
            dynamic_mask,
            config,
            known=known,
            ignore=ignore,
            depth_prior=depth_prior,
        ),
        observations.image_size,
        observations.stride,
    )
    outcome = adam.optimise(
        start, problem, config, variables_lib.trainable(start, config, known), progress=progress
    )
    return Refined(
        outcome.variables,
        outcome.trace,
        align_lib.pair_losses(outcome.variables, problem, config),
        outcome.failed,
    )


def register(
    observations: Observations,
    geometry: variables_lib.Geometry,
    config: AlignmentConfig,
) -> AlignmentVariables:
    """Returns the start of `solve`: every pair registered to the world points of a scene.

    geometry: depth (T, h, w) at the lattice, cameras of the full image.
    """
    frames, rows, columns = geometry.depth.shape
    grid = jnp.moveaxis(warp.pixel_grid(*observations.image_size), -1, 0)
    pixels = lattice.images(grid, observations.stride).reshape(2, -1)
    points = pointmap.world_points(geometry, pixels)
    scene = initialise_lib.register_scene(
        observations.predictions,
        PairGraph(observations.pairs, frames, symmetric=False, name="joint"),
        config,
        jnp.moveaxis(points, 1, -1).reshape(frames, rows, columns, 3),
        geometry.world_from_cam,
        geometry.focal,
    )
    return initialise_lib.encode(scene, config)


def refine(
    joined: AlignmentVariables,
    observations: Observations,
    dynamic_mask: Array,
    config: AlignmentConfig,
    *,
    known: variables_lib.Known | None = None,
    ignore: Array | None = None,
    depth_prior: Array | None = None,
    progress: adam.Progress | None = None,
) -> Refined:
    """Refines the joined clips of a video together.

    Args:
        joined: depth (T, H, W), NumPy; cameras in one world. Pair variables do not count.
        observations: pairs of key frames, clips and borders.
        dynamic_mask, ignore: (T, H, W) bool. depth_prior: (T, H, W).
        config: `joint_iterations` counts, and all weights.

    Returns:
        Variables of all frames, depth (T, H, W) times one factor per frame; pair variables those
        of `observations.pairs`, all in one world.
    """
    stride = observations.stride
    config = dataclasses.replace(
        config,
        iterations=config.joint_iterations,
        lr=min(config.lr, _LR),
        lr_min=min(config.lr_min, _LR_MIN),
        schedule="cosine",
    )
    before = lattice.images(np.asarray(joined.log_depth), stride)
    geometry = variables_lib.decode(
        dataclasses.replace(joined, log_depth=jnp.asarray(before)),
        config,
        observations.image_size,
    )
    known = _on_lattice(known, stride)
    config = variables_lib.settings_with_known(config, known)
    start = variables_lib.with_known(register(observations, geometry, config), known, config)

    def thin(values: Array | None) -> np.ndarray | None:
        return None if values is None else lattice.images(np.asarray(values), stride)

    found = solve(
        observations,
        start,
        thin(dynamic_mask),
        config,
        known=known,
        ignore=thin(ignore),
        depth_prior=thin(depth_prior),
        progress=progress,
    )
    change = np.asarray(found.variables.log_depth) - before
    factor = np.median(change.reshape(len(change), -1), axis=1).astype(np.float32)
    log_depth = np.asarray(joined.log_depth) + factor[:, None, None]
    return dataclasses.replace(
        found, variables=dataclasses.replace(found.variables, log_depth=log_depth)
    )


def align(
    observations: Observations,
    graph: PairGraph,
    config: AlignmentConfig,
    *,
    known: variables_lib.Known | None = None,
    progress: adam.Progress | None = None,
) -> align_lib.AlignResult:
    """Aligns the pairs of a graph from their lattice alone, from the start on: many key frames.

    The lattice is an image of its own with focals `stride` times smaller and, because its pixels
    lie `stride // 2` from the corner, a principal point of its own; the start is found in it.
    Returns depth on the lattice, cameras of the full image; nothing moves by itself.
    """
    stride, (height, width) = observations.stride, observations.image_size
    known = _on_lattice(known, stride)
    config = variables_lib.settings_with_known(config, known)
    centre = np.array([width / 2, height / 2], np.float32)
    point = np.tile((centre - stride // 2) / stride, (graph.num_frames, 1))
    inner = variables_lib.Known(principal_point=point)
    if known is not None:
        inner = dataclasses.replace(
            inner,
            world_from_cam=known.world_from_cam,
            pose_mask=known.pose_mask,
            rotation_deviation=known.rotation_deviation,
            translation_deviation=known.translation_deviation,
        )
    scene = initialise_lib.starting_scene(observations.predictions, graph, config, known=inner)
    start = initialise_lib.encode(dataclasses.replace(scene, focal=scene.focal * stride), config)
    start = variables_lib.with_known(start, known, config)
    found = solve(observations, start, None, config, known=known, progress=progress)
    return align_lib.AlignResult(
        variables=found.variables,
        dynamic_mask=np.zeros(found.variables.log_depth.shape, bool),
        trace=found.trace,
        pair_losses=found.pair_losses,
        confidence=initialise_lib.frame_confidence(observations.predictions, graph),
        pairs=graph.pairs,
        failed=found.failed,
        fixed_world=known is not None and known.world_from_cam is not None,
    )


def _on_lattice(known: variables_lib.Known | None, stride: int) -> variables_lib.Known | None:
    if known is None or known.depth is None:
        return known
    return dataclasses.replace(known, depth=lattice.images(np.asarray(known.depth), stride))
