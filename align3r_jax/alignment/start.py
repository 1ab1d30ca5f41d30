"""Where a compiled alignment starts: the spanning tree on a lattice of pixels, traceable.

The same idea as `initialise` (which runs on the host, frame by frame, and is the one compared with
recorded numbers): the tree of the most confident pairs chains all frames into one world, cameras
come from the pairs, every pair is registered to the world's points. Here with static shapes, on
some 2,300 pixels of a frame, so that it can be jitted, vmapped over clips and spread over devices.
No gradient passes through it: a start is a choice.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from align3r_jax.alignment import initialise as initialise_lib
from align3r_jax.alignment import lattice, spanning_tree
from align3r_jax.alignment import variables as variables_lib
from align3r_jax.config import AlignmentConfig
from align3r_jax.geometry import pointmap, registration, resection, rigid
from align3r_jax.structs import AlignmentVariables, Array, PairGraph, PairPredictions

_PIXELS = 2304  # of a frame that are looked at
_FEW_POINTS = 16  # of a frame: with fewer above the confidence bar all points are used


class _Placed(NamedTuple):
    """Frames in one world so far; T frames of h x w lattice points.

    points: (T, h, w, 3), NaN where unknown. placed, posed: (T,) bool, whether the frame has points
    and a camera. world_from_cam: (T, 4, 4), that of the pair a frame came with while not posed.
    pair, side: (T,) the map that placed the frame; scale (T,) and world_from_pair (T, 4, 4) (a
    rigid motion after the scale) carry it into the world.
    """

    points: Array
    placed: Array
    posed: Array
    world_from_cam: Array
    pair: Array
    side: Array
    scale: Array
    world_from_pair: Array


def initialise(
    predictions: PairPredictions,
    graph: PairGraph,
    config: AlignmentConfig,
    *,
    known: variables_lib.Known | None = None,
    frame_valid: Array | None = None,
    pair_valid: Array | None = None,
    axis: str | None = None,
) -> AlignmentVariables:
    """Returns the aligner's variables at their start; traceable in all arrays.

    Frames that no pair reaches stand at the origin with depth 1; parts of a graph that is not
    connected are put into one world as they are.

    Args:
        predictions, graph: H x W, any order of pairs.
        config: with `variables.settings_with_known`.
        known: focals and principal points are used; the scene is carried onto known poses (held or
            soft). What is held is written over the start.
        frame_valid, pair_valid: (T,), (P,) bool; what is not valid is not looked at.
        axis: name of the mesh axis over which predictions and pairs are spread; pair_valid and the
            result count the pairs of all devices.
    """
    known = known or variables_lib.Known()
    listed: Array = jnp.asarray(graph.pairs)
    predictions, pairs, known = jax.lax.stop_gradient((predictions, listed, known))
    frames = graph.num_frames
    height, width = predictions.confidence1.shape[1:]
    stride = lattice.stride_for(height, width, pixels=_PIXELS)
    small = _usable(lattice.predictions(predictions, stride))
    if axis is not None:
        small, pairs = jax.lax.all_gather((small, pairs), axis, tiled=True)
    valid = jnp.ones(len(pairs), bool) if pair_valid is None else jnp.asarray(pair_valid) > 0
    pairs = jnp.where(valid[:, None], pairs, 0)
    scores = jnp.where(valid, _scores(small), -jnp.inf)

    centre = jnp.full((frames, 2), jnp.array([width / 2, height / 2]))
    if known.principal_point is not None:
        given = jnp.asarray(known.principal_point, jnp.float32)
        centre = _where_known(known.intrinsics_mask, given, centre)
    focal, has_focal = _focals(small, pairs, scores, centre, stride, known, frame_valid)

    tree = _chain(small, pairs, scores, frames)
    pixels = _pixels(height, width, stride)
    weight = _resection_weight(small, pairs, valid, tree, config.min_confidence)
    found, free = jax.vmap(resection.resect, in_axes=(0, None, 0, 0, 0, 0, 0))(
        tree.points.reshape(frames, -1, 3), pixels, weight, focal, centre, tree.world_from_cam,
        ~has_focal,
    )  # fmt: skip
    seen_first = tree.posed | ~tree.placed
    world_from_cam = jnp.where(seen_first[:, None, None], tree.world_from_cam, found)
    focal = jnp.where(has_focal | ~tree.placed, focal, free)
    scene = tree._replace(world_from_cam=world_from_cam)
    if known.world_from_cam is not None:
        scene = _onto_known(scene, known, frame_valid)
    return _encode(
        predictions, small, pairs, valid, scene, focal, centre, config, known, frame_valid, axis
    )


def _usable(small: PairPredictions) -> PairPredictions:
    """Float32, and confidence 0 where points or confidences are not finite."""
    maps = []
    for points, confidence in (
        (small.pointmap1, small.confidence1),
        (small.pointmap2, small.confidence2),
    ):
        points, confidence = jnp.asarray(points, jnp.float32), jnp.asarray(confidence, jnp.float32)
        usable = jnp.all(jnp.isfinite(points), axis=-1) & jnp.isfinite(confidence)
        maps.append((jnp.where(usable[..., None], points, 0), jnp.where(usable, confidence, 0)))
    (points1, confidence1), (points2, confidence2) = maps
    return PairPredictions(points1, points2, confidence1, confidence2)


def _scores(small: PairPredictions) -> Array:
    """Mean confidence of one side times that of the other, (P,)."""
    return jnp.mean(small.confidence1, axis=(1, 2)) * jnp.mean(small.confidence2, axis=(1, 2))


def _where_known(mask: Array | None, given: Array, other: Array) -> Array:
    if mask is None:
        return given
    return jnp.where(jnp.asarray(mask).reshape((-1,) + (1,) * (given.ndim - 1)), given, other)


def _pixels(height: int, width: int, stride: int) -> Array:
    """Returns (h w, 2), the full-resolution (x, y) of the lattice's pixels."""
    x, y = jnp.meshgrid(
        jnp.arange(stride // 2, width, stride), jnp.arange(stride // 2, height, stride)
    )
    return jnp.stack([x, y], axis=-1).reshape(-1, 2).astype(jnp.float32)


def _focals(small, pairs, scores, centre, stride, known, frame_valid) -> tuple[Array, Array]:
    """Weiszfeld focals from the best pair that shows a frame first; the mean of these elsewhere.

    Returns (T,) pixels and (T,) bool, whether the frame has one of its own.
    """
    frames = centre.shape[0]
    leads = pairs[:, 0] == jnp.arange(frames)[:, None]
    best = jnp.argmax(jnp.where(leads, scores, -jnp.inf), axis=1)
    own = jax.vmap(spanning_tree.confident_focal)(
        small.pointmap1[best], small.confidence1[best], (centre - stride // 2) / stride
    )
    own = own * stride
    leads = jnp.any(leads & jnp.isfinite(scores), axis=1)
    good = leads & jnp.isfinite(own) & (own > 0)
    if frame_valid is not None:
        good &= jnp.asarray(frame_valid) > 0
    # Points behind their camera, or none at all: a view of about 53 degrees.
    usual = jnp.max(centre) * 2
    mean = jnp.sum(jnp.where(good, own, 0)) / jnp.maximum(jnp.sum(good), 1)
    focal = jnp.where(good, own, jnp.where(jnp.any(good), mean, usual))
    if known.focal is not None:
        focal = _where_known(known.intrinsics_mask, jnp.asarray(known.focal, jnp.float32), focal)
        is_known = jnp.ones(frames, bool)
        good |= _where_known(known.intrinsics_mask, is_known, ~is_known)
    return focal, good


def _chain(small: PairPredictions, pairs: Array, scores: Array, num_frames: int) -> _Placed:
    """Chains the frames along the maximum spanning tree of the scores, best pair first (Prim)."""
    maps = (small.pointmap1, small.pointmap2)
    confidences = (small.confidence1, small.confidence2)
    identity = jnp.tile(jnp.eye(4), (num_frames, 1, 1))
    start = _Placed(
        points=jnp.full((num_frames, *small.confidence1.shape[1:], 3), jnp.nan),
        placed=jnp.zeros(num_frames, bool),
        posed=jnp.zeros(num_frames, bool),
        world_from_cam=identity,
        pair=jnp.zeros(num_frames, jnp.int32),
        side=jnp.zeros(num_frames, jnp.int32),
        scale=jnp.ones(num_frames),
        world_from_pair=identity,
    )

    def add(scene: _Placed, _):
        placed = scene.placed[pairs]
        usable = jnp.isfinite(scores)
        reaches = usable & (placed[:, 0] ^ placed[:, 1])
        # Nothing reaches further: the best pair of what is left starts a part of its own.
        apart = usable & ~placed[:, 0] & ~placed[:, 1]
        begins = ~jnp.any(reaches)
        choice = jnp.where(begins, apart, reaches)
        active = jnp.any(choice)
        k = jnp.argmax(jnp.where(choice, scores, -jnp.inf))
        first = pairs[k, 0]

        known_side = jnp.where(placed[k, 0], 0, 1)
        local, confidence = (
            jnp.where(known_side == 0, pair[0][k], pair[1][k]) for pair in (maps, confidences)
        )
        scale, rotation, translation = spanning_tree.register_maps(
            local, confidence, scene.points[pairs[k, known_side]]
        )
        # Constant or missing points: better in the wrong place than nowhere.
        good = ~begins & jnp.isfinite(scale) & (scale > 0)
        scale = jnp.where(good, scale, 1)
        pose = jnp.where(good, rigid.pose(rotation, translation), jnp.eye(4))

        for side in (0, 1):
            frame = pairs[k, side]
            new = active & ~scene.placed[frame]
            moved = pointmap.change_frame(maps[side][k], pose[:3, :3], pose[:3, 3], scale)
            moved = jnp.where((confidences[side][k] > 1)[..., None], moved, jnp.nan)

            def write(values, value, frame=frame, new=new):
                return values.at[frame].set(jnp.where(new, value, values[frame]))

            scene = scene._replace(
                points=write(scene.points, moved),
                pair=write(scene.pair, k),
                side=write(scene.side, side),
                scale=write(scene.scale, scale),
                world_from_pair=write(scene.world_from_pair, pose),
                world_from_cam=write(scene.world_from_cam, pose),
                placed=write(scene.placed, True),
            )
        new = active & ~scene.posed[first]
        camera = jnp.where(new, pose, scene.world_from_cam[first])
        return scene._replace(
            world_from_cam=scene.world_from_cam.at[first].set(camera),
            posed=scene.posed.at[first].set(scene.posed[first] | active),
        ), None

    return jax.lax.scan(add, start, None, length=num_frames - 1)[0]


def _resection_weight(small, pairs, valid, tree, min_confidence) -> Array:
    """(T, h w): 1 where the best confidence of a frame exceeds the bar, if enough pixels do."""
    frames = tree.placed.shape[0]
    best = jnp.zeros((frames, *small.confidence1.shape[1:]))
    for side, confidence in enumerate((small.confidence1, small.confidence2)):
        best = best.at[pairs[:, side]].max(jnp.where(valid[:, None, None], confidence, 0))
    best = best.reshape(frames, -1)
    sure = best > min_confidence
    enough = jnp.sum(sure, axis=1, keepdims=True) >= _FEW_POINTS
    return jnp.where(enough, sure, best > 1).astype(jnp.float32)


def _onto_known(scene: _Placed, known: variables_lib.Known, frame_valid: Array | None) -> _Placed:
    """Carries the scene onto the known poses, by their centres and orientations.

    Rotation: Procrustes of the centres and, as far from them as these are spread, of the cameras'
    axes, so that one camera or cameras in one place fix it too. Scale: that of the spreads, 1
    without any.
    """
    given = jnp.asarray(known.world_from_cam, jnp.float32)
    frames = given.shape[0]
    counts = scene.placed
    for mask in (known.pose_mask, frame_valid):
        counts = counts if mask is None else counts & (jnp.asarray(mask) > 0)
    counts = counts.astype(jnp.float32)
    total = jnp.maximum(jnp.sum(counts), 1)
    # A pose that does not count may hold anything.
    given = jnp.where(counts[:, None, None] > 0, given, jnp.eye(4))
    offsets, means, spreads = [], [], []
    for poses in (scene.world_from_cam, given):
        centres = poses[:, :3, 3]
        mean = jnp.sum(counts[:, None] * centres, axis=0) / total
        offset = counts[:, None] * (centres - mean)
        offsets.append(offset)
        means.append(mean)
        spreads.append(jnp.sqrt(jnp.sum(offset**2) / total))
    apart = (spreads[0] > 1e-6) & (spreads[1] > 1e-6)
    product = jnp.where(apart, spreads[0] * spreads[1], 1)
    axes = [counts[:, None, None] * poses[:, :3, :3] for poses in (given, scene.world_from_cam)]
    moments = jnp.einsum("tia,tja->ij", *axes, precision="highest")
    spread = jnp.einsum("ti,tj->ij", offsets[1], offsets[0], precision="highest")
    moments += jnp.where(apart, spread / product, 0)
    rotation = registration.nearest_rotation(moments)
    rotation = jnp.where(jnp.sum(counts) > 0, rotation, jnp.eye(3))
    scale = jnp.where(apart, spreads[1] / jnp.where(apart, spreads[0], 1), 1.0)
    shift = jnp.where(jnp.sum(counts) > 0, means[1] - scale * rigid.rotate(rotation, means[0]), 0)

    def move(poses):
        centres = scale * rigid.rotate(rotation, poses[:, :3, 3]) + shift
        return rigid.pose(rigid.compose(rotation, poses[:, :3, :3]), centres)

    turns = jnp.broadcast_to(rotation, (frames, 3, 3))
    shifts, scales = jnp.broadcast_to(shift, (frames, 3)), jnp.broadcast_to(scale, (frames,))
    return scene._replace(
        points=pointmap.change_frame(scene.points, turns, shifts, scales),
        world_from_cam=move(scene.world_from_cam),
        world_from_pair=move(scene.world_from_pair),
        scale=scale * scene.scale,
    )


def _encode(
    predictions, small, pairs, valid, scene, focal, centre, config, known, frame_valid, axis
) -> AlignmentVariables:
    """Registers the pairs, normalises the scale and reads the depth off the full-size maps."""
    similarity = initialise_lib.register_pairs(
        small.pointmap1, small.confidence1, scene.points, pairs[:, 0]
    )
    scale, rotation, translation = initialise_lib.replace_unusable(
        jnp.where(valid, similarity[0], jnp.nan),
        *similarity[1:],
        scene.world_from_cam[pairs[:, 0]],
    )
    gain = variables_lib.scale_normalisation(jnp.log(scale), config, valid.astype(jnp.float32))
    depth = initialise_lib.fill_depth(gain * _depths(predictions, scene, axis))
    if frame_valid is not None and config.shared_focal:
        mean = variables_lib.mean_of_valid(focal, jnp.asarray(frame_valid).astype(jnp.float32))
        focal = jnp.broadcast_to(mean, focal.shape)
    start = variables_lib.encode(
        depth,
        scene.world_from_cam.at[:, :3, 3].multiply(gain),
        focal,
        scale,
        rotation,
        translation,
        config,
        principal_point=centre,
    )
    return variables_lib.with_known(start, known, config)


def _depths(predictions: PairPredictions, scene: _Placed, axis: str | None) -> Array:
    """Returns (T, H, W): z of the map that placed each frame, in its camera; NaN where unknown."""
    pairs = predictions.confidence1.shape[0]

    def one(inputs):
        k, side, placed, scale, world_from_pair, world_from_cam = inputs
        is_here = True
        if axis is not None:
            k = k - pairs * jax.lax.axis_index(axis)
            is_here = (k >= 0) & (k < pairs)
            k = jnp.clip(k, min=0, max=pairs - 1)
        points = jnp.where(side == 0, predictions.pointmap1[k], predictions.pointmap2[k])
        confidence = jnp.where(side == 0, predictions.confidence1[k], predictions.confidence2[k])
        cam_from_pair = rigid.compose(rigid.invert(world_from_cam), world_from_pair)
        row = scale * cam_from_pair[2, :3]
        points = points.astype(jnp.float32)
        z = row[0] * points[..., 0] + row[1] * points[..., 1] + row[2] * points[..., 2]
        z = z + cam_from_pair[2, 3]
        known = pointmap.validity(points, confidence) & placed
        # 0 stands for unknown, so that a sum over devices keeps the one that has the map.
        return jnp.where(known & is_here, z, 0)

    inputs = (
        scene.pair, scene.side, scene.placed, scene.scale, scene.world_from_pair,
        scene.world_from_cam,
    )  # fmt: skip
    depth = jax.lax.map(one, inputs)
    if axis is not None:
        depth = jax.lax.psum(depth, axis)
    return jnp.where(depth == 0, jnp.nan, depth)
